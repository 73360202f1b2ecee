"""What follows a matrix product of cuBLAS: bias, shortcuts and ReLU, in one pass.

Parallel   (32 rows, slab of 32 channels) a block; (channel, every 8th row) a thread.
Loops      a thread's 4 rows.
Moves      the product and the shortcuts in, the result out, once each: memory is the limit, and the reason why a
           product that adds its own epilogue saves as much time as this takes (cuBLAS offers no shortcut but its own
           result).
The order of additions is matmul.py's: product, bias, first shortcut, second shortcut.
"""

from __future__ import annotations

from mmref.kernels.cuda.device import load, store
from mmref.kernels.cuda.device import relu as relu_of
from mmref.kernels.cuda.driver import build, cuda, no_map, no_vector

LANES, ROWS, EACH = 32, 8, 4
SIGNATURE = "void(float32[:, :], float32[::1], float32[:, :], float32[:, :], float32[:, :])"


def epilogue_kernel(bias: bool, shortcuts: int, relu: bool):
    def kernel(x, shift, first, second, out):
        channel = cuda.blockIdx.y * LANES + cuda.threadIdx.x
        if channel >= x.shape[1]:
            return
        start = cuda.blockIdx.x * (ROWS * EACH) + cuda.threadIdx.y
        for i in range(EACH):
            row = start + i * ROWS
            if row < x.shape[0]:
                value = load(x, row, channel)
                if bias:
                    value += shift[channel]
                if shortcuts > 0:
                    value += load(first, row, channel)
                if shortcuts > 1:
                    value += load(second, row, channel)
                store(out, row, channel, relu_of(value) if relu else value)

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
    grid = -(-x.shape[0] // (ROWS * EACH)), -(-x.shape[1] // LANES)
    kernel[grid, (LANES, ROWS), stream](
        x, no_vector() if bias is None else bias, first, second, x if out is None else out)


def bytes_moved(*, rows, channels, shortcuts=0) -> int:
    """Least bytes a launch moves: the product and the shortcuts in, the result out, the bias."""
    return 4 * channels * (rows * (2 + shortcuts) + 1)
