"""Compile every CUDA kernel without a GPU, down to machine code, and look at the result.

    python tests/cuda/compile_kernels.py            check against registers.json; exit status 1 and a line a fault
    python tests/cuda/compile_kernels.py --write    write registers.json anew

Which kernels: those that forwards of every variant launch (launched.py), and forms of the launchers that no variant
needs, found by launching without a device. All are compiled for 9.0; for the other capabilities all of the scan, which
uses the most registers, and of every other kernel's forms each third. What is looked at: no float64 instruction in the
PTX (an accumulator `s = 0.0`, `max(x, 0)` and `x / (i + 1)` each bring it in), no spilled register, no stack frame, and
no more registers than the budget. Registers are handed out in eights, so budgets are multiples of 8: what stays inside
one changes nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from launched import launch_forwards

CAPABILITIES = ((7, 5), (8, 0), (9, 0), (10, 0))
MAIN = ((9, 0),)
BUDGET = Path(__file__).parent / "registers.json"
MODULES = ("depthwise", "epilogue", "join", "layout", "matmul", "norm_gate", "pool", "scan", "selective_scan",
           "squeeze_excite", "stem", "wavelet_branch")


class Shape:
    """What a launcher asks of an array before it launches."""

    def __init__(self, *shape):
        self.shape, self.strides = shape, (4 * shape[-1], 4)[-len(shape):]

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


def kernels() -> dict[str, dict]:
    """name -> module, constants, threads, blocks, signature and compute capabilities of every kernel launched."""
    found = {}
    modules = {name: import_module(f"mmref.kernels.cuda.{name}") for name in MODULES}

    class Launch:
        def __getitem__(self, configuration):
            return lambda *arguments: None

    def record(factory, *constants, threads, blocks=1, signature=None):
        module = factory.__module__.rpartition(".")[2]
        name = f"{factory.__name__}{constants}" + (" of a picture" if signature and "::1" in signature[:40] else "")
        found[name] = dict(module=module, factory=factory.__name__, constants=constants, threads=threads,
                           blocks=blocks, signature=signature or modules[module].SIGNATURE)
        return Launch()

    for module in modules.values():
        module.build = record
        for name in ("no_map", "no_vector"):
            if hasattr(module, name):
                setattr(module, name, lambda: None)
    launch_forwards(batches=(1, 256))
    _alone(modules)
    seen = {}
    for _, kernel in sorted(found.items()):
        seen[kernel["factory"]] = seen.get(kernel["factory"], -1) + 1
        everywhere = kernel["factory"] == "scan_kernel" or seen[kernel["factory"]] % 3 == 0
        kernel["capabilities"] = CAPABILITIES if everywhere else MAIN
    return found


def _alone(modules):
    """Forms of the launchers that no variant's plan needs, and the operations."""
    one, x = Shape(1), Shape(64, 64)
    modules["depthwise"].depthwise(x, one, one, x, images=1, height=8, width=8, kernel=3, residual=x)
    modules["depthwise"].convolve(x, one, one, x, images=1, height=8, width=8, k_h=2, k_w=5, stride=3, padding=4)
    for relu in (False, True):
        for bias in (None, one):
            for more in ({}, {"residual": x}, {"residual": x, "residual2": x}):
                modules["epilogue"].epilogue(x, bias, relu=relu, **more)
                if relu or bias is None:
                    modules["matmul"].matmul(x, x, bias, x, relu=relu, **more)
    for kernel, side in ((7, 16), (5, 8), (3, 4)):
        modules["wavelet_branch"].wavelet_branch(x, one, x, images=1, height=side, width=side, kernel=kernel, add=x,
                                                 bias=one, relu=True)
        modules["wavelet_branch"].wavelet_branch(x, one, x, images=1, height=40, width=40, kernel=kernel)
    modules["pool"].mean(x, x, images=1, length=64)
    modules["squeeze_excite"].gate(x, x, images=1, length=64)
    modules["join"].copy_relu(x, x)
    modules["layout"].to_channels_first(x, x, images=1, pixels=64)
    for states in (1, 4, 16, 17):
        u, few = Shape(1, 2, 64, 64), Shape(1, 2, states, 64)
        modules["selective_scan"].scan_states(u, u, Shape(2, 64, states), few, few, Shape(2, 64), u)


def compile_kernel(function, signature: str, threads: int, blocks: int, capability, ptxas: str) -> dict:
    """Registers, stack and spills in bytes, float64 instructions of one kernel for one compute capability."""
    import numba.cuda.dispatcher
    from numba import cuda
    # a kernel that calls a device function asks for the device, of which only this is used
    numba.cuda.dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    ptx, _ = cuda.compile(function, signature, device=False, abi="numba", cc=capability,
                          launch_bounds=(threads, max(blocks, 1)))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        done = subprocess.run([ptxas, "-v", f"-arch=sm_{capability[0]}{capability[1]}", str(source), "-o",
                               str(source.with_suffix(".cubin"))], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    sizes = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    return {"registers": int(re.search(r"Used (\d+) registers", done.stderr)[1]), "stack": int(sizes[1]),
            "spills": int(sizes[2]) + int(sizes[3]), "float64": len(re.findall(r"\.f64\b", ptx))}


def measure(module, factory, constants, threads, blocks, signature, capabilities, ptxas) -> dict[str, dict]:
    """compile_kernel for its capabilities, by their names ("9.0")."""
    make = getattr(import_module(f"mmref.kernels.cuda.{module}"), factory)
    return {f"{major}.{minor}": compile_kernel(make(*constants), signature, threads, blocks, (major, minor), ptxas)
            for major, minor in capabilities}


def faults(name: str, measured: dict[str, dict], budget: dict[str, int] | None) -> list[str]:
    """What is wrong with a kernel, a line each."""
    lines = []
    for capability, found in measured.items():
        for what, words in (("float64", "float64 instructions in the PTX"), ("stack", "bytes of stack"),
                            ("spills", "bytes of spilled registers")):
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
    write = parser.parse_args(arguments).write
    ptxas, wanted = find_ptxas(), kernels()
    with ProcessPoolExecutor() as pool:
        jobs = {name: pool.submit(measure, **kernel, ptxas=ptxas) for name, kernel in wanted.items()}
        measured = {name: job.result() for name, job in jobs.items()}
    budget = {} if write else json.loads(BUDGET.read_text())
    if write:
        budget = {name: {capability: -(-found["registers"] // 8) * 8 for capability, found in sizes.items()}
                  for name, sizes in sorted(measured.items())}
        BUDGET.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(sizes)}"
                                             for name, sizes in budget.items()) + "\n}\n")
    lines = [line for name, sizes in measured.items() for line in faults(name, sizes, budget.get(name))]
    lines += [f"{name}: in {BUDGET.name}, but nothing launches it" for name in budget if name not in measured]
    print("\n".join(lines) or f"{len(measured)} kernels, {sum(map(len, measured.values()))} compilations: no fault")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
