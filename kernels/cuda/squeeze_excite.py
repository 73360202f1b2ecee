"""The gate of a squeeze-and-excitation: every channel of a map times the logistic function of its own value.

Parallel   (picture, slab of 32 channels, 64 pixels) a block; (channel, every 8th of them) a thread.
Loops      a thread's 8 pixels, all of one factor.
Moves      the map once in and out; memory is the limit.
The means before it are pool.py's, the two small matrix products between them matrix products like others.
"""

from __future__ import annotations

from mmref.kernels.cuda.device import load, sigmoid, store
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build

LANES, ROWS, PIXELS = 32, 8, 64
SIGNATURE = "void(float32[:, :], float32[:, :], int32)"


def gate_kernel():
    def kernel(x, gates, length):
        slabs, pieces = (x.shape[1] + LANES - 1) // LANES, (length + PIXELS - 1) // PIXELS
        item, channel = cuda.blockIdx.x // slabs, cuda.blockIdx.x % slabs * LANES + cuda.threadIdx.x
        picture = item // pieces
        if channel >= x.shape[1]:
            return
        factor = sigmoid(load(gates, picture, channel))
        start = item % pieces * PIXELS + cuda.threadIdx.y
        for i in range(0, PIXELS, ROWS):
            if start + i < length:
                row = picture * length + start + i
                store(x, row, channel, load(x, row, channel) * factor)

    return kernel


def gate(x, gates, *, images, length, stream=0):
    """Launch: x (images * length, C) *= sigmoid(gates (images, C)) of its picture, in place; float32."""
    kernel = build(gate_kernel, threads=LANES * ROWS)
    blocks = -(-x.shape[1] // LANES) * images * -(-length // PIXELS)
    kernel[blocks, (LANES, ROWS), stream](x, gates, length)
