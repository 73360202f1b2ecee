"""What test_engine_threads.py runs in a process of its own: every prefetch is a read here, and beside every block of
the engine's memory lies a page that must not be read. Kernels that ask for memory that is not theirs crash it."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
from llvmlite import ir

from mmref.kernels import vector


def read(builder, address):
    """In place of `emit_prefetch`; an atomic read is not optimised away."""
    builder.load_atomic(builder.inttoptr(address, ir.IntType(8).as_pointer()), "monotonic", 1)


vector.emit_prefetch = read  # before anything imports it

from mmref.engine import CompiledModel, memory, plan  # noqa: E402
from mmref.kernels.calibrate import multiply_add_rate  # noqa: E402
from mmref.models.create import create_model  # noqa: E402
from mmref.models.variants import VARIANTS  # noqa: E402

mprotect = ctypes.CDLL(None).mprotect
mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
kept, before = [], False


def guarded_zeros(size):
    """In place of `aligned_zeros`: where the block ends, or where it begins if `before`, is the border of a page that
    nobody may touch."""
    size += -size % 64
    pages = size + -size % mmap.PAGESIZE
    whole = mmap.mmap(-1, mmap.PAGESIZE + pages)
    kept.append(whole)
    everything = np.frombuffer(whole, np.uint8)
    guard, start = (0, mmap.PAGESIZE) if before else (pages, pages - size)
    assert mprotect(everything.ctypes.data + guard, mmap.PAGESIZE, 0) == 0
    return everything[start:start + size]


def main():
    global before
    memory.aligned_zeros = plan.aligned_zeros = guarded_zeros
    memory.Slabs.SIZE = 64  # every array of weights is a block
    multiply_add_rate(2, 0.01)
    for name in VARIANTS:
        model = create_model(name, num_classes=10, seed=3)
        for threads, shape in ((1, (1, 3, 64, 64)), (2, (1, 3, 33, 47)), (3, (4, 3, 17, 130)), (2, (5, 3, 96, 16))):
            before = not before
            result = CompiledModel(model, threads=threads)(np.ones(shape, np.float32))
            assert np.isfinite(result).all(), (name, shape)


if __name__ == "__main__":
    main()
    sys.stdout.write("done")
