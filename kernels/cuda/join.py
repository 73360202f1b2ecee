"""The identity channels on their way into the join of the three branches: a copy with the ReLU that follows the join.

Parallel   (32 rows, slab of 32 channels) a block; (channel, every 8th row) a thread.
Loops      a thread's 4 rows.
Moves      the channels once in, once out; memory is the limit.
"""

from __future__ import annotations

from mmref.kernels.cuda.device import load, relu, store
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build

LANES, ROWS, EACH = 32, 8, 4
SIGNATURE = "void(float32[:, :], float32[:, :])"


def copy_relu_kernel():
    def kernel(x, out):
        slabs = (x.shape[1] + LANES - 1) // LANES
        channel = cuda.blockIdx.x % slabs * LANES + cuda.threadIdx.x
        if channel >= x.shape[1]:
            return
        start = cuda.blockIdx.x // slabs * (ROWS * EACH) + cuda.threadIdx.y
        for i in range(EACH):
            row = start + i * ROWS
            if row < x.shape[0]:
                store(out, row, channel, relu(load(x, row, channel)))

    return kernel


def copy_relu(x, out, *, stream=0):
    """Launch: out = relu(x), (rows, C) each; float32."""
    kernel = build(copy_relu_kernel, threads=LANES * ROWS)
    grid = -(-x.shape[0] // (ROWS * EACH)) * -(-x.shape[1] // LANES)
    kernel[grid, (LANES, ROWS), stream](x, out)
