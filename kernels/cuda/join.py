"""The identity channels on their way into the join of the three branches: a copy with the ReLU that follows the join.

Parallel   256 threads a block; (4 channels, every blockDim.y-th row) a thread, or (channel, the same) where rows do not
           begin at multiples of 16 bytes.
Loops      a thread's 4 rows.
Moves      the channels once in, once out; memory is the limit.
"""

from __future__ import annotations

from mmref.kernels.cuda.device import load, load4, relu, relu4, store, store4
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build, spread, width

THREADS, EACH = 256, 4
SIGNATURE = "void(float32[:, :], float32[:, :])"


def copy_relu_kernel(wide: int):
    """The kernel for `wide` columns a thread, 1 or 4."""

    def kernel(x, out):
        lanes, rows = cuda.blockDim.x, cuda.blockDim.y
        slabs = (x.shape[1] // wide + lanes - 1) // lanes
        column = (cuda.blockIdx.x % slabs * lanes + cuda.threadIdx.x) * wide
        if column >= x.shape[1]:
            return
        start = cuda.blockIdx.x // slabs * (rows * EACH) + cuda.threadIdx.y
        for i in range(EACH):
            row = start + i * rows
            if row < x.shape[0]:
                if wide == 4:
                    store4(out, row, column, relu4(load4(x, row, column)))
                else:
                    store(out, row, column, relu(load(x, row, column)))

    return kernel


def copy_relu(x, out, *, stream=0):
    """Launch: out = relu(x), (rows, C) each; float32."""
    wide = width(x, out)
    grid, block = spread(x.shape[0], x.shape[1] // wide, EACH)
    build(copy_relu_kernel, wide, threads=THREADS)[grid, block, stream](x, out)
