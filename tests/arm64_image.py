"""What test_arm64.py runs on an emulated ARM64 processor: `python arm64_image.py FOLDER` on any machine writes there

    kernels.o    the kernels, compiled for ARM64 with the tile of target.py's NEON; kernels.s, the same as text
    image.bin    a header (see arm64_driver.c) and a copy of all memory that one forward needs: plan, weights, picture.
                 It must lie at the same address again, because a plan is full of addresses.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

from mmref.kernels import target

NEON = target.describe("aarch64-unknown-linux-gnu", "+neon")
target.TARGET, target.TRIPLE, target.CPU_NAME, target.CPU_FEATURES = (NEON, "aarch64-unknown-linux-gnu", "cortex-a72",
                                                                      "+neon")  # before anything reads them

import strategies  # noqa: E402
import test_engine_threads  # noqa: E402

from mmref.engine import memory, plan, weights  # noqa: E402
from mmref.graph.passes import fused  # noqa: E402
from mmref.graph.trace import trace  # noqa: E402
from mmref.kernels import records  # noqa: E402

BASE, SIZE, SHARES = 0x2000_0000_0000, 1 << 26, 2
KERNELS = ("picture", "stem", "matmul", "depthwise", "wavelet_branch", "scan", "norm_gate", "copy_relu", "mean", "gate",
           "result")  # the order in arm64_driver.c


def translate_nothing_for_this_machine():
    """Numba translates what it compiles for the machine it runs on, too; ARM64's own instructions cannot be."""
    from numba.core import codegen, cpu
    codegen.JITCodeLibrary._finalize_specific = lambda library: None
    cpu.CPUContext.get_executable = lambda *arguments: [].append  # nobody calls it, but each must be another


def compile_kernels(folder):
    from mmref.kernels import compile
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    translate_nothing_for_this_machine()
    whole = None
    for function, arguments in compile.FUNCTIONS.items():
        part = compile._compile(function, arguments)
        if whole is None:
            whole = part
        else:
            whole.link_in(part)
    machine = llvm.Target.from_triple(target.TRIPLE).create_target_machine(
        target.CPU_NAME, target.CPU_FEATURES, opt=3, reloc="pic", codemodel="default")
    whole.triple, whole.data_layout = target.TRIPLE, str(machine.target_data)
    (folder / "kernels.o").write_bytes(machine.emit_object(whole))
    (folder / "kernels.s").write_text(machine.emit_assembly(whole))


class Region:
    """Memory at a fixed address, handed out piece by piece."""

    def __init__(self):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3,
                                                                  ctypes.c_long]
        fixed = 0x100000
        assert libc.mmap(BASE, SIZE, 3, 0x22 | fixed, -1, 0) == BASE
        self.bytes, self.used = np.frombuffer((ctypes.c_char * SIZE).from_address(BASE), np.uint8), 0

    def zeros(self, size):
        start, self.used = self.used, self.used + size + -size % 4096 + 4096
        return self.bytes[start:start + size]

    def array(self, like):
        copy = self.zeros(like.nbytes).view(like.dtype).reshape(like.shape)
        copy[...] = like
        return copy


def write_image(folder):
    region = Region()
    memory.aligned_zeros = plan.aligned_zeros = region.zeros
    memory.Slabs.SIZE = 1 << 22
    model = strategies.lively()
    x = region.array(test_engine_threads.picture(3))
    tiles, team = region.zeros(8 * 4 * (NEON.tile_rows + 1)), region.zeros(records.TEAM.itemsize)
    graph = fused(trace(model.forward, model, (1, *x.shape[1:])))
    built = plan.make_plan(graph, plan.cpu_schedule(graph), len(x), weights.Weights(SHARES), SHARES,
                           {name: index for index, name in enumerate(KERNELS)}, tiles.ctypes.data)
    steps, cells = region.array(built.steps), region.array(built.cells)
    for step in steps:  # the plan's cells lie elsewhere: point to the copies
        kind = plan.RECORDS[KERNELS[step["function"]]]
        if "cell" in kind.names:
            record = region.bytes[step["record"] - BASE:][:kind.itemsize].view(kind)
            for name in {"cell", "alarm"} & set(kind.names):
                record[name] += cells.ctypes.data - built.cells.ctypes.data
    logits = region.array(np.zeros((len(x), model.config.num_classes), np.float32))
    cells[:] = x.ctypes.data, logits.ctypes.data, 0
    used = region.used + -region.used % 4096
    header = np.array([BASE, used, steps.ctypes.data, len(steps), SHARES, tiles.ctypes.data, team.ctypes.data,
                       logits.ctypes.data, logits.nbytes], np.int64)
    (folder / "image.bin").write_bytes(header.tobytes() + region.bytes[:used].tobytes())


if __name__ == "__main__":
    compile_kernels(Path(sys.argv[1]))
    write_image(Path(sys.argv[1]))
