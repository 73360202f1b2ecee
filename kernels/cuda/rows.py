"""Test rows for a matrix product, and whether its results repeat as they do: for choosing products, not for forwards.

Parallel   (32 rows, slab of 32 columns) a block; (column, every 8th row) a thread.
Loops      a thread's 4 rows.
Moves      the map once, in or out; what is repeated stays in caches.
"""

from __future__ import annotations

from mmref.kernels.cuda.device import ONE, bits, load, store
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build

LANES, ROWS, EACH = 32, 8, 4
SIGNATURE = "void(float32[:, :], float32[:, :])"
COMPARE_SIGNATURE = "void(float32[:, :], float32[:, :], float32[::1])"


def repeat_rows_kernel():
    def kernel(x, out):
        slabs = (out.shape[1] + LANES - 1) // LANES
        column = cuda.blockIdx.x % slabs * LANES + cuda.threadIdx.x
        if column >= out.shape[1]:
            return
        start = cuda.blockIdx.x // slabs * (ROWS * EACH) + cuda.threadIdx.y
        for i in range(EACH):
            row = start + i * ROWS
            if row < out.shape[0]:
                store(out, row, column, load(x, row % x.shape[0], column))

    return kernel


def compare_rows_kernel():
    def kernel(x, expected, found):
        slabs = (x.shape[1] + LANES - 1) // LANES
        column = cuda.blockIdx.x % slabs * LANES + cuda.threadIdx.x
        if column >= x.shape[1]:
            return
        start = cuda.blockIdx.x // slabs * (ROWS * EACH) + cuda.threadIdx.y
        for i in range(EACH):
            row = start + i * ROWS
            if row < x.shape[0] and bits(load(x, row, column)) != bits(load(expected, row % expected.shape[0], column)):
                found[0] = ONE  # by many threads perhaps, all of which write this

    return kernel


def _grid(x) -> int:
    return -(-x.shape[0] // (ROWS * EACH)) * -(-x.shape[1] // LANES)


def repeat_rows(x, out, *, stream=0):
    """Launch: row r of out = row r % len(x) of x; (rows, C) each; float32."""
    build(repeat_rows_kernel, threads=LANES * ROWS)[_grid(out), (LANES, ROWS), stream](x, out)


def compare_rows(x, expected, found, *, stream=0):
    """Launch: found[0] = 1 unless row r of x has the bits of row r % len(expected) of expected, for all r; else left.

    x, expected (rows, C); found (1,); float32."""
    kernel = build(compare_rows_kernel, threads=LANES * ROWS, signature=COMPARE_SIGNATURE)
    kernel[_grid(x), (LANES, ROWS), stream](x, expected, found)
