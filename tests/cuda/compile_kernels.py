"""Compile every CUDA kernel without a GPU, down to machine code, and look at the result.

    python tests/cuda/compile_kernels.py            check against registers.json; exit status 1 and a line a fault
    python tests/cuda/compile_kernels.py --write    write registers.json anew
    python tests/cuda/compile_kernels.py --only scan        some of it

Which kernels: those that forwards of every variant launch (launched.py), and forms of the launchers that no variant
needs, found by launching without a device. All are compiled for 9.0; for the other capabilities all of the scan, which
uses the most registers, and of every other kernel's forms each third. What is looked at: no float64 instruction in the
PTX (an accumulator `s = 0.0`, `max(x, 0)` and `x / (i + 1)` each bring it in), no spilled register, no stack frame, the
parameters that mmref.kernels.cuda.launch passes, and no more registers than the budget. Registers are handed out in
eights, so budgets are multiples of 8: what stays inside one changes nothing.

It must pass with the newest NumPy that pip would take, too, where numba-cuda may lack what NumPy removed:

    python3.12 -m venv newest && newest/bin/pip install -e ".[cuda]" "cuda-toolkit[nvcc]==13.0.*" pytest hypothesis
    newest/bin/python tests/cuda/compile_kernels.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from launched import launch_forwards

from mmref.kernels.cuda import compiler, launch

CAPABILITIES = ((7, 5), (8, 0), (9, 0), (10, 0))
MAIN = ((9, 0),)
BUDGET = Path(__file__).parent / "registers.json"
MODULES = ("depthwise", "epilogue", "join", "layout", "maps", "matmul", "norm_gate", "plain", "pool", "rows", "scan",
           "selective_scan", "squeeze_excite", "stem", "tokens", "wavelet_branch")


class Shape:
    """What a launcher asks of an array before it launches: where it lies (`at`: an address), and how."""

    def __init__(self, *shape, at=0):
        self.size = math.prod(shape)
        self.shape, self.strides, self.ctypes = shape, (4 * shape[-1], 4)[-len(shape):], SimpleNamespace(data=at)

    def reshape(self, *shape):
        return Shape(*shape)


def find_ptxas() -> str:
    """The assembler of the package nvidia-cuda-nvcc, which the tests pin, else the one on the PATH."""
    for folder in (find_spec("nvidia").submodule_search_locations if find_spec("nvidia") else ()):
        for path in Path(folder).glob("*/bin/ptxas*"):
            return str(path)
    path = shutil.which("ptxas")
    if path is None:
        raise SystemExit("no ptxas: pip install 'cuda-toolkit[nvcc]==13.0.*'")
    return path


@dataclass
class Launched:
    """A kernel that something launches; `capabilities` to compile it for; the grids it was launched in."""

    kernel: compiler.Kernel
    capabilities: tuple
    grids: list


def name_of(kernel: compiler.Kernel) -> str:
    """Name in registers.json."""
    return f"{kernel}" + (" of a picture" if kernel.signature.startswith("void(float32[:, :, :, ::1]") else "")


def kernels(launches=None) -> dict[str, Launched]:
    """Every kernel that `launches(modules)` launches, by name; None: all launches there are."""
    found = {}
    modules = {name: import_module(f"mmref.kernels.cuda.{name}") for name in MODULES}

    class Launch:
        def __init__(self, grids):
            self.grids = grids

        def __getitem__(self, configuration):
            self.grids.append(configuration[0])
            return lambda *arguments: None

    def record(factory, *constants, threads, blocks=1, signature=None):
        kernel = compiler.Kernel(factory.__module__, factory.__name__, constants,
                                 signature or import_module(factory.__module__).SIGNATURE, threads, blocks)
        return Launch(found.setdefault(name_of(kernel), Launched(kernel, MAIN, [])).grids)

    with contextlib.ExitStack() as patches:
        for module in modules.values():
            patches.enter_context(patch.object(module, "build", record))
            for name in ("no_map", "no_vector", "no_table"):
                if hasattr(module, name):
                    patches.enter_context(patch.object(module, name, lambda: None))
        if launches:
            launches(modules)
        else:
            launch_forwards(batches=(1, 256))
            _alone(modules)
    seen = {}
    for _, launched in sorted(found.items()):
        factory = launched.kernel.factory
        seen[factory] = seen.get(factory, -1) + 1
        if factory == "scan_kernel" or seen[factory] % 3 == 0:
            launched.capabilities = CAPABILITIES
    return found


def _alone(modules):
    """Forms of the launchers that no variant's plan needs, and the operations."""
    one, x = Shape(1), Shape(64, 64)
    map_of = dict(images=1, height=8, width=8)
    modules["depthwise"].depthwise(x, one, one, x, filter_shape=(2, 5), stride=3, padding=4, **map_of)
    for side, more in ((5, {"residual": x, "relu": True}), (9, {"residual": x, "residual2": x})):
        modules["stem"].stem(x, x, None, x, c_in=64, filter_shape=(side, side), stride=2, padding=side // 2,
                             nchw=False, **map_of, **more)
    for columns in (64, 63):  # four at a time, and one
        y, vector = Shape(64, columns), Shape(columns)
        for relu in (False, True):
            for bias in (None, vector):
                for more in ({}, {"residual": y}, {"residual": y, "residual2": y}):
                    modules["epilogue"].epilogue(y, bias, relu=relu, **more)
                    if columns == 64 and (relu or bias is None):
                        modules["matmul"].matmul(y, y, bias, y, relu=relu, **more)
        modules["pool"].mean(y, y, images=1, length=64)
        modules["squeeze_excite"].gate(y, y, images=1, length=64)
        modules["join"].copy_relu(y, y)
        modules["norm_gate"].norm_gate(y, y, vector, vector, y)
    for kernel, side in ((7, 16), (5, 8), (3, 4)):
        modules["wavelet_branch"].wavelet_branch(x, one, x, images=1, height=side, width=side, kernel=kernel)
        modules["wavelet_branch"].wavelet_branch(x, one, x, images=1, height=40, width=40, kernel=kernel)
    modules["layout"].to_channels_first(x, x, images=1, pixels=64)
    modules["layout"].to_contiguous(Shape(1, 3, 8, 8), one)
    modules["rows"].repeat_rows(x, x)
    modules["rows"].compare_rows(x, x, one)
    _plain(modules["plain"], x, one)
    _tokens(modules["tokens"], x, one)
    sizes = dict(height=8, width=8, out_height=8, out_width=8)
    for nearest in (False, True):
        modules["maps"].resize(x, x, nearest=nearest, **sizes)
    modules["maps"].adaptive_mean(x, x, height=8, width=8, rows=2, columns=2)
    modules["maps"].maximum_pool(x, x, kernel=3, stride=2, padding=1, **sizes)
    for states in (0, 1, 4, 16, 17):
        u, few = Shape(1, 2, 64, 64), Shape(1, 2, states, 64)
        modules["selective_scan"].scan_states(u, u, Shape(2, 64, states), few, few, Shape(2, 64), u)


def _plain(plain, x, one):
    for add in (False, True):
        plain.move(x, x, one, sizes=(1, 8, 8, 64), add=add)
    for operation in ("copy", "relu", "relu6", "sigmoid", "silu", "softplus", "gelu", "add", "multiply"):
        plain.combine(x, x, x, operation=operation, length=1)
    plain.norm(x, one, one, one, x)
    plain.gather(x, Shape(4, 64), x, images=1)
    plain.project(x, one, x, length=64)
    for k in (2, 4, 6):
        plain.analysis(x, one, x, height=8, width=8, kernel=k)
        plain.synthesis(x, one, x, height=8, width=8, kernel=k)
    for states in (0, 1, 2, 5, 16, 17, 32):
        plain.path_scan(x, x, one, one, one, one, one, x, images=1, rank=4, states=states)
        plain.scan_rows(x, x, one, x, x, one, x, length=64, states=states)


def _tokens(tokens, x, one):
    weight, table = Shape(1, 5, 64), Shape(1, 64)
    for active in (False, True):
        for path in (table, None):
            tokens.path_conv(x, weight, path, x, length=64, images=1, active=active)
    for states in (0, 1, 2, 5, 16, 17, 32):
        for factor in (None, x):
            tokens.sequence_scan(x, x, one, one, one, one, table, factor, x, images=1, rank=4, states=states)
    tokens.rms_norm(x, one, one, x)
    tokens.row_stats(x, one, x)
    tokens.norm_mean(x, x, one, one, x, length=64)
    tokens.rotary(x, x, x, x)


def compile_kernel(kernel: compiler.Kernel, capability, ptxas: str) -> dict:
    """Registers, stack and spills in bytes, float64 instructions of one kernel for one compute capability."""
    compiler.without_a_device(capability)
    ptx = compiler.compile_ptx(kernel, capability)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        done = subprocess.run([ptxas, "-v", f"-arch=sm_{capability[0]}{capability[1]}", str(source), "-o",
                               str(source.with_suffix(".cubin"))], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    sizes = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    return {"registers": int(re.search(r"Used (\d+) registers", done.stderr)[1]), "stack": int(sizes[1]),
            "parameters": parameters_differ(kernel, ptx), "spills": int(sizes[2]) + int(sizes[3]),
            "float64": len(re.findall(r"\.f64\b", ptx))}


def parameters_differ(kernel: compiler.Kernel, ptx: str) -> int:
    """1 unless the kernel takes what launches pass: of 64 bits each, but for its integers, which say their own size."""
    taken = re.findall(r"\.param \.[usbf](\d+) ", ptx[ptx.index(".entry"):].partition(")")[0])
    integers = iter(re.findall(r"\bint(\d+)(?!\d|\[)", kernel.signature))
    passed = [size for rank in launch.parameter_types(kernel.signature)
              for size in (["64"] * (5 + 2 * rank) if rank else [next(integers)])]
    return int(taken != passed)


def measure(launched: Launched, ptxas: str) -> dict[str, dict]:
    """compile_kernel for its capabilities, by their names ("9.0")."""
    return {f"{major}.{minor}": compile_kernel(launched.kernel, (major, minor), ptxas)
            for major, minor in launched.capabilities}


def faults(name: str, measured: dict[str, dict], budget: dict[str, int] | None) -> list[str]:
    """What is wrong with a kernel, a line each."""
    lines = []
    for capability, found in measured.items():
        for what, words in (("float64", "float64 instructions in the PTX"), ("stack", "bytes of stack"),
                            ("spills", "bytes of spilled registers"),
                            ("parameters", "parameter list other than what launches pass")):
            if found[what]:
                lines.append(f"{name}, {capability}: {found[what]} {words}")
        most = (budget or {}).get(capability)
        if most is None:
            lines.append(f"{name}, {capability}: not in {BUDGET.name}; python tests/cuda/compile_kernels.py --write")
        elif found["registers"] > most:
            lines.append(f"{name}, {capability}: {found['registers']} registers, budget {most}")
    return lines


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the budget")
    parser.add_argument("--only", metavar="TEXT", help="only kernels whose name holds it, without the check that the "
                                                       "file has no others")
    options = parser.parse_args(arguments)
    write, ptxas = options.write, find_ptxas()
    wanted = {name: launched for name, launched in kernels().items() if (options.only or "") in name}
    with ProcessPoolExecutor() as pool:
        jobs = {name: pool.submit(measure, launched, ptxas) for name, launched in wanted.items()}
        measured = {name: job.result() for name, job in jobs.items()}
    budget = json.loads(BUDGET.read_text()) if options.only or not write else {}
    if write:
        budget |= {name: {capability: -(-found["registers"] // 8) * 8 for capability, found in sizes.items()}
                   for name, sizes in measured.items()}
        budget = dict(sorted(budget.items()))
        BUDGET.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(sizes)}"
                                             for name, sizes in budget.items()) + "\n}\n")
    lines = [line for name, sizes in measured.items() for line in faults(name, sizes, budget.get(name))]
    if not options.only:
        lines += [f"{name}: in {BUDGET.name}, but nothing launches it" for name in budget if name not in measured]
    print("\n".join(lines) or f"{len(measured)} kernels, {sum(map(len, measured.values()))} compilations: no fault")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
