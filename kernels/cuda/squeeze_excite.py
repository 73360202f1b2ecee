"""The gate of a squeeze-and-excitation: every channel of a map times the logistic function of its own value.

Parallel   (picture, slab of 32 x 4 channels, 64 pixels) a block; (4 channels, every 8th of the pixels) a thread; one
           channel in place of four where rows do not begin at multiples of 16 bytes.
Loops      a thread's 8 pixels, all of one factor.
Moves      the map once in and out; memory is the limit.
The means before it are pool.py's, the two small matrix products between them matrix products like others.
"""

from __future__ import annotations

from mmref.kernels.cuda.device import device_function, load, load4, sigmoid, store, store4
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build, width

LANES, ROWS, PIXELS = 32, 8, 64
SIGNATURE = "void(float32[:, :], float32[:, :], int32)"


def gate_kernel(wide: int):
    """The kernel for `wide` channels a thread, 1 or 4."""

    @device_function
    def four(x, gates, picture, first, last, channel):
        a, b, c, d = load4(gates, picture, channel)
        a, b, c, d = sigmoid(a), sigmoid(b), sigmoid(c), sigmoid(d)
        for row in range(first, last, ROWS):
            values = load4(x, row, channel)
            store4(x, row, channel, (values[0] * a, values[1] * b, values[2] * c, values[3] * d))

    @device_function
    def one(x, gates, picture, first, last, channel):
        factor = sigmoid(load(gates, picture, channel))
        for row in range(first, last, ROWS):
            store(x, row, channel, load(x, row, channel) * factor)
    some = four if wide == 4 else one

    def kernel(x, gates, length):
        slabs, pieces = (x.shape[1] // wide + LANES - 1) // LANES, (length + PIXELS - 1) // PIXELS
        item, channel = cuda.blockIdx.x // slabs, (cuda.blockIdx.x % slabs * LANES + cuda.threadIdx.x) * wide
        if channel >= x.shape[1]:
            return
        picture, start = item // pieces, item % pieces * PIXELS
        first, last = picture * length + start, picture * length + min(start + PIXELS, length)
        some(x, gates, picture, first + cuda.threadIdx.y, last, channel)

    return kernel


def gate(x, gates, *, images, length, stream=0):
    """Launch: x (images * length, C) *= sigmoid(gates (images, C)) of its picture, in place; float32."""
    wide = width(x, gates)
    kernel = build(gate_kernel, wide, threads=LANES * ROWS)
    blocks = -(-x.shape[1] // (LANES * wide)) * images * -(-length // PIXELS)
    kernel[blocks, (LANES, ROWS), stream](x, gates, length)
