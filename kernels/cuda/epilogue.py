"""What follows a matrix product of cuBLAS: bias, shortcuts and ReLU, in one pass.

Parallel   256 threads a block; (4 channels, every blockDim.y-th row) a thread, or (channel, the same) where rows do not
           begin at multiples of 16 bytes.
Loops      a thread's 4 rows.
Moves      the product and the shortcuts in, the result out, once each: memory is the limit, and the reason why a
           product that adds its own epilogue saves as much time as this takes.
The order of additions is matmul.py's: product, bias, first shortcut, second shortcut.
"""

from __future__ import annotations

from mmref.kernels.cuda.device import add4, device_function, load, load4, load4_of, relu4, store, store4
from mmref.kernels.cuda.device import relu as relu_of
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build, no_map, no_vector, spread, width

THREADS, EACH = 256, 4
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


def epilogue_kernel(wide: int, bias: bool, shortcuts: int, relu: bool):
    """The kernel for `wide` columns a thread, 1 or 4."""
    finished = finish(bias, shortcuts, relu)

    @device_function
    def one(x, row, column, shift, first, second, out):
        store(out, row, column, finished(load(x, row, column), row, column, shift, first, second))

    @device_function
    def four(x, row, column, shift, first, second, out):
        values = load4(x, row, column)
        if bias:
            values = add4(values, load4_of(shift, column))
        if shortcuts > 0:
            values = add4(values, load4(first, row, column))
        if shortcuts > 1:
            values = add4(values, load4(second, row, column))
        store4(out, row, column, relu4(values) if relu else values)
    some = four if wide == 4 else one

    def kernel(x, shift, first, second, out):
        lanes, rows = cuda.blockDim.x, cuda.blockDim.y
        slabs = (x.shape[1] // wide + lanes - 1) // lanes
        column = (cuda.blockIdx.x % slabs * lanes + cuda.threadIdx.x) * wide
        if column >= x.shape[1]:
            return
        start = cuda.blockIdx.x // slabs * (rows * EACH) + cuda.threadIdx.y
        for i in range(EACH):
            if start + i * rows < x.shape[0]:
                some(x, start + i * rows, column, shift, first, second, out)

    return kernel


def shortcuts_of(residual, residual2):
    """The shortcuts that are there, first things first."""
    return [shortcut for shortcut in (residual, residual2) if shortcut is not None]


def epilogue(x, bias, *, residual=None, residual2=None, relu=False, out=None, stream=0):
    """Launch: out = x + bias + residual + residual2, ReLU behind it where asked for; in place without `out`.

    x, the residuals and out (rows, C), bias (C,); bias and residuals may be None; float32."""
    shortcuts, out = shortcuts_of(residual, residual2), x if out is None else out
    wide = width(x, *shortcuts, out, *([] if bias is None else [bias]))
    kernel = build(epilogue_kernel, wide, bias is not None, len(shortcuts), bool(relu), threads=THREADS)
    first, second = [*shortcuts, no_map(), no_map()][:2]
    grid, block = spread(x.shape[0], x.shape[1] // wide, EACH)
    kernel[grid, block, stream](x, no_vector() if bias is None else bias, first, second, out)
