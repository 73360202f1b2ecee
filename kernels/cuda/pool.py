"""The mean of a map over its pixels, before a squeeze-and-excitation and before the head.

Parallel   (picture, slab of 32 channels) a block; (channel, every 8th pixel) a thread.
Loops      a thread's pixels; then the 8 partial sums, in order: the same bits in every run.
Moves      the map once; memory is the limit.
"""

from __future__ import annotations

import numpy as np
from numba import float32

from mmref.kernels.cuda.device import ONE, ZERO, load, store
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build

LANES, ROWS = 32, 8
SIGNATURE = "void(float32[:, :], float32[:, :], int32)"


def mean_kernel():
    def kernel(x, out, length):
        sums = cuda.shared.array((ROWS, LANES), float32)
        lane, line = cuda.threadIdx.x, cuda.threadIdx.y
        slabs = (x.shape[1] + LANES - 1) // LANES
        picture = cuda.blockIdx.x // slabs
        channel = cuda.blockIdx.x % slabs * LANES + lane
        total = ZERO
        if channel < x.shape[1]:
            for pixel in range(line, length, ROWS):
                total += load(x, picture * length + pixel, channel)
        store(sums, line, lane, total)
        cuda.syncthreads()
        if line == 0 and channel < x.shape[1]:
            total = ZERO
            for i in range(ROWS):
                total += load(sums, i, lane)
            store(out, picture, channel, total * (ONE / np.float32(np.int32(length))))

    return kernel


def mean(x, out, *, images, length, stream=0):
    """Launch: out (images, C) = means of x (images * length, C) over each picture's pixels; float32."""
    kernel = build(mean_kernel, threads=LANES * ROWS)
    kernel[-(-x.shape[1] // LANES) * images, (LANES, ROWS), stream](x, out, length)
