"""A channels-last map as its user wants it: channels first, contiguous.

Parallel   (picture, 32 pixels, 32 channels) a block; (pixel or channel, every 8th of the others) a thread.
Loops      4 of those.
Moves      the map once in, once out. Rows are read and columns written through a tile in shared memory, so that both
           are runs of 128 bytes; a line of it has 33 values, or its columns would lie in one bank.
"""

from __future__ import annotations

from numba import float32

from mmref.kernels.cuda.device import load, store, store3
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build

TILE, ROWS, LINE = 32, 8, 33
SIGNATURE = "void(float32[:, :], float32[:, :, ::1], int32)"


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
