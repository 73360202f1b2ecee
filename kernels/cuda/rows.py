"""Test rows for a matrix product, and whether its results repeat as they do: for choosing products, not for forwards.

Parallel   256 threads a block; (column, every blockDim.y-th row) a thread.
Loops      a thread's 4 rows.
Moves      the map once, in or out; what is repeated stays in caches.
"""

from __future__ import annotations

from mmref.kernels.cuda.device import ONE, bits, load, store
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build, spread

THREADS, EACH = 256, 4
SIGNATURE = "void(float32[:, :], float32[:, :])"
COMPARE_SIGNATURE = "void(float32[:, :], float32[:, :], float32[::1])"


def repeat_rows_kernel():
    def kernel(x, out):
        lanes, rows = cuda.blockDim.x, cuda.blockDim.y
        slabs = (out.shape[1] + lanes - 1) // lanes
        column = cuda.blockIdx.x % slabs * lanes + cuda.threadIdx.x
        if column >= out.shape[1]:
            return
        start = cuda.blockIdx.x // slabs * (rows * EACH) + cuda.threadIdx.y
        for i in range(EACH):
            row = start + i * rows
            if row < out.shape[0]:
                store(out, row, column, load(x, row % x.shape[0], column))

    return kernel


def compare_rows_kernel():
    def kernel(x, expected, found):
        lanes, rows = cuda.blockDim.x, cuda.blockDim.y
        slabs = (x.shape[1] + lanes - 1) // lanes
        column = cuda.blockIdx.x % slabs * lanes + cuda.threadIdx.x
        if column >= x.shape[1]:
            return
        start = cuda.blockIdx.x // slabs * (rows * EACH) + cuda.threadIdx.y
        for i in range(EACH):
            row = start + i * rows
            if row < x.shape[0] and bits(load(x, row, column)) != bits(load(expected, row % expected.shape[0], column)):
                found[0] = ONE  # by many threads perhaps, all of which write this

    return kernel


def repeat_rows(x, out, *, stream=0):
    """Launch: row r of out = row r % len(x) of x; (rows, C) each; float32."""
    grid, block = spread(*out.shape, EACH)
    build(repeat_rows_kernel, threads=THREADS)[grid, block, stream](x, out)


def compare_rows(x, expected, found, *, stream=0):
    """Launch: found[0] = 1 unless row r of x has the bits of row r % len(expected) of expected, for all r; else left.

    x, expected (rows, C); found (1,); float32."""
    grid, block = spread(*x.shape, EACH)
    kernel = build(compare_rows_kernel, threads=THREADS, signature=COMPARE_SIGNATURE)
    kernel[grid, block, stream](x, expected, found)
