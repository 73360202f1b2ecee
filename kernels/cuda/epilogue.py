"""What follows a matrix product of cuBLAS: bias, shortcuts and ReLU, in one pass.

Parallel   (32 rows, slab of 32 channels) a block; (channel, every 8th row) a thread.
Loops      a thread's 4 rows.
Moves      the product and the shortcuts in, the result out, once each: memory is the limit, and the reason why a
           product that adds its own epilogue saves as much time as this takes (cuBLAS offers no shortcut but its own
           result).
The order of additions is matmul.py's: product, bias, first shortcut, second shortcut.
"""

from __future__ import annotations

from mmref.kernels.cuda.device import device_function, load, store
from mmref.kernels.cuda.device import relu as relu_of
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build, no_map, no_vector

LANES, ROWS, EACH = 32, 8, 4
SIGNATURE = "void(float32[:, :], float32[::1], float32[:, :], float32[:, :], float32[:, :])"


def finish(bias: bool, shortcuts: int, relu: bool):
    """Device function: a product's element, with what follows it. matmul.py has it inside, so the order is the same."""

    @device_function
    def finished(value, row, column, shift, first, second):
        if bias:
            value += shift[column]
        if shortcuts > 0:
            value += load(first, row, column)
        if shortcuts > 1:
            value += load(second, row, column)
        return relu_of(value) if relu else value

    return finished


def epilogue_kernel(bias: bool, shortcuts: int, relu: bool):
    finished = finish(bias, shortcuts, relu)

    def kernel(x, shift, first, second, out):
        slabs = (x.shape[1] + LANES - 1) // LANES
        channel = cuda.blockIdx.x % slabs * LANES + cuda.threadIdx.x
        if channel >= x.shape[1]:
            return
        start = cuda.blockIdx.x // slabs * (ROWS * EACH) + cuda.threadIdx.y
        for i in range(EACH):
            row = start + i * ROWS
            if row < x.shape[0]:
                store(out, row, channel, finished(load(x, row, channel), row, channel, shift, first, second))

    return kernel


def shortcuts_of(residual, residual2):
    """The shortcuts that are there, first things first."""
    return [shortcut for shortcut in (residual, residual2) if shortcut is not None]


def epilogue(x, bias, *, residual=None, residual2=None, relu=False, out=None, stream=0):
    """Launch: out = x + bias + residual + residual2, ReLU behind it where asked for; in place without `out`.

    x, the residuals and out (rows, C), bias (C,); bias and residuals may be None; float32."""
    shortcuts = shortcuts_of(residual, residual2)
    kernel = build(epilogue_kernel, bias is not None, len(shortcuts), bool(relu), threads=LANES * ROWS)
    first, second = [*shortcuts, no_map(), no_map()][:2]
    grid = -(-x.shape[0] // (ROWS * EACH)) * -(-x.shape[1] // LANES)
    kernel[grid, (LANES, ROWS), stream](
        x, no_vector() if bias is None else bias, first, second, x if out is None else out)
