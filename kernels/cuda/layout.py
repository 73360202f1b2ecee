"""Maps as others want them: ours channels first, contiguous, for the caller; a caller's pictures contiguous, for us.

to_channels_first
Parallel   (picture, 32 pixels, 32 channels) a block; (pixel or channel, every 8th of the others) a thread.
Loops      4 of those.
Moves      the map once in, once out. Rows are read and columns written through a tile in shared memory, so that both
           are runs of 128 bytes; a line of it has 33 values, or its columns would lie in one bank.

to_contiguous
Parallel   1024 values a block; every 256th of them a thread.
Moves      the pictures once in, once out. What is written is in order, what is read lies as it lies: for channels-last
           pictures 12 bytes apart, and the other channels' values come from caches.
"""

from __future__ import annotations

from numba import float32

from mmref.kernels.cuda.device import load, store, store3
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build

TILE, ROWS, LINE = 32, 8, 33
SIGNATURE = "void(float32[:, :], float32[:, :, ::1], int32)"
THREADS, EACH = 256, 4
PICTURES_SIGNATURE = "void(float32[:, :, :, :], float32[:, :, :, ::1])"


def to_channels_first_kernel():
    def kernel(x, out, pixels):
        tile = cuda.shared.array((TILE, LINE), float32)
        slabs, pieces = (x.shape[1] + TILE - 1) // TILE, (pixels + TILE - 1) // TILE
        item, first = cuda.blockIdx.x // slabs, cuda.blockIdx.x % slabs * TILE
        picture, start = item // pieces, item % pieces * TILE
        lane, line = cuda.threadIdx.x, cuda.threadIdx.y
        for i in range(line, TILE, ROWS):
            if start + i < pixels and first + lane < x.shape[1]:
                store(tile, i, lane, load(x, picture * pixels + start + i, first + lane))
        cuda.syncthreads()
        for i in range(line, TILE, ROWS):
            if start + lane < pixels and first + i < x.shape[1]:
                store3(out, picture, first + i, start + lane, load(tile, lane, i))

    return kernel


def to_channels_first(x, out, *, images, pixels, stream=0):
    """Launch: x (images * pixels, C) -> out (images, C, pixels), contiguous; float32."""
    kernel = build(to_channels_first_kernel, threads=TILE * ROWS)
    kernel[-(-x.shape[1] // TILE) * images * -(-pixels // TILE), (TILE, ROWS), stream](x, out, pixels)


def to_contiguous_kernel():
    def kernel(x, out):
        channels, height, width = x.shape[1], x.shape[2], x.shape[3]
        for i in range(EACH):
            item = (cuda.blockIdx.x * EACH + i) * THREADS + cuda.threadIdx.x
            column, above = item % width, item // width
            row, above = above % height, above // height
            channel, picture = above % channels, above // channels
            if picture < x.shape[0]:
                out[picture, channel, row, column] = x[picture, channel, row, column]

    return kernel


def to_contiguous(x, out, *, stream=0):
    """Launch: out = x, both (images, channels, height, width), x with any strides, out contiguous; float32."""
    kernel = build(to_contiguous_kernel, threads=THREADS, signature=PICTURES_SIGNATURE)
    kernel[-(-x.size // (THREADS * EACH)), THREADS, stream](x, out)
