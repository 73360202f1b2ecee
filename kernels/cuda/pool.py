"""The mean of a map over its pixels, before a squeeze-and-excitation and before the head.

Parallel   (picture, slab of 32 x 4 channels) a block; (4 channels, every 8th pixel) a thread; one channel in place of
           four where rows do not begin at multiples of 16 bytes.
Loops      a thread's pixels; then the 8 partial sums, in order: the same bits in every run.
Moves      the map once; memory is the limit.
"""

from __future__ import annotations

import numpy as np
from numba import float32

from mmref.kernels.cuda.device import ONE, ZERO, add4, device_function, load, load4, store
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build, width

LANES, ROWS = 32, 8
SIGNATURE = "void(float32[:, :], float32[:, :], int32)"


def mean_kernel(wide: int):
    """The kernel for `wide` channels a thread, 1 or 4."""
    lines = wide * ROWS

    @device_function
    def four(x, first, last, channel, sums):
        total = ZERO, ZERO, ZERO, ZERO
        for row in range(first, last, ROWS):
            total = add4(total, load4(x, row, channel))
        for k in range(4):
            store(sums, k * ROWS + cuda.threadIdx.y, cuda.threadIdx.x, total[k])

    @device_function
    def one(x, first, last, channel, sums):
        total = ZERO
        for row in range(first, last, ROWS):
            total += load(x, row, channel)
        store(sums, cuda.threadIdx.y, cuda.threadIdx.x, total)
    some = four if wide == 4 else one

    def kernel(x, out, length):
        sums = cuda.shared.array((lines, LANES), float32)
        lane, line = cuda.threadIdx.x, cuda.threadIdx.y
        slabs = (x.shape[1] // wide + LANES - 1) // LANES
        picture, channel = cuda.blockIdx.x // slabs, (cuda.blockIdx.x % slabs * LANES + lane) * wide
        if channel < x.shape[1]:
            some(x, picture * length + line, (picture + 1) * length, channel, sums)
        cuda.syncthreads()
        if line < wide and channel < x.shape[1]:  # one of the thread's column of channels each
            total = ZERO
            for i in range(ROWS):
                total += load(sums, line * ROWS + i, lane)
            store(out, picture, channel + line, total * (ONE / np.float32(np.int32(length))))

    return kernel


def mean(x, out, *, images, length, stream=0):
    """Launch: out (images, C) = means of x (images * length, C) over each picture's pixels; float32."""
    wide = width(x)
    kernel = build(mean_kernel, wide, threads=LANES * ROWS)
    kernel[-(-x.shape[1] // (LANES * wide)) * images, (LANES, ROWS), stream](x, out, length)
