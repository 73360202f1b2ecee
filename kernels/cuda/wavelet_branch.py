"""The wavelet branch of the token mixer in one pass: Haar analysis, k x k on the sub-bands, synthesis.

Parallel   (up to 8 pictures, tile of sub-band positions, slab of 16 channels) a block; in it (channel, row) a thread.
Loops      a thread's row of the tile; in the convolution sub-bands and taps.
Moves      x once and the result once. The sub-bands, which the reference writes, reads, writes and reads, live in
           shared memory between two stages of one thread's registers.
Why        A thread takes pixels two by two from two rows, turns them into sub-bands in registers and shares those. It
           then has a whole row of outputs of all four sub-bands in registers, so that a value taken from shared memory
           serves k of them, and the synthesis needs no second exchange: one barrier. Maps with up to 8 x 8 positions
           are one tile of exactly their size and taps that fall outside are left out when the kernel is compiled;
           larger ones are cut into tiles that overlap by k // 2. 16 channels divide every variant's global part.

Sub-bands are not scaled by 1/2: the factors of analysis and synthesis, 1/4, are in the weights.
"""

from __future__ import annotations

from functools import cache

from numba import float32

from mmref.kernels.cuda.device import ZERO, device_function, load, load3, store
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build

LANES = 16
LARGEST = 8           # side of a tile without overlap
SHARED_SIDE = 12      # and with it, overlap included: 40 kB
THREADS = 128
SIGNATURE = "void(float32[:, :], float32[:, :, ::1], float32[:, :], int32, int32, int32)"


def wavelet_branch_kernel(kernel: int, tile: int, overlap: int, pictures: int):
    """The kernel for k = `kernel` and blocks of (16, tile, pictures) threads; overlap 0 or k // 2."""
    pad = kernel // 2
    side = tile + 2 * overlap
    line = (side + 1 - side % 2) * LANES  # an odd number of 16: the two rows of a warp lie in different banks
    shared_rows = pictures * 4 * side

    @device_function
    def pixel(x, first, row, column, height, width, channel):
        """A pixel of the picture that begins at row `first` of x; 0 outside, which also pads odd sides."""
        if 0 <= row < height and 0 <= column < width:
            return load(x, first + row * width + column, channel)
        return ZERO

    @device_function
    def convolve(band, bands, weight, channel, total):
        """The thread's row of one sub-band."""
        values = cuda.local.array(side, float32)
        lane, i, z = cuda.threadIdx.x, cuda.threadIdx.y, cuda.threadIdx.z
        for j in range(tile):
            total[band, j] = ZERO
        for t in range(kernel):
            row = i + t - pad + overlap
            if 0 <= row < side:
                for j in range(side):
                    values[j] = load(bands, (z * 4 + band) * side + row, j * LANES + lane)
                for s in range(kernel):
                    w = load3(weight, band, t * kernel + s, channel)
                    for j in range(tile):
                        if 0 <= j + s - pad + overlap < side:
                            total[band, j] += w * values[j + s - pad + overlap]

    def kernel_function(x, weight, out, images, height, width):
        bands = cuda.shared.array((shared_rows, line), float32)
        total = cuda.local.array((4, tile), float32)
        slabs = (x.shape[1] + LANES - 1) // LANES
        lane, i, z = cuda.threadIdx.x, cuda.threadIdx.y, cuda.threadIdx.z
        channel = cuda.blockIdx.x % slabs * LANES + lane
        across, down = ((width + 1) // 2 + tile - 1) // tile, ((height + 1) // 2 + tile - 1) // tile
        block = cuda.blockIdx.x // slabs
        picture, place = block // (across * down) * pictures + z, block % (across * down)
        top, left = place // across * tile, place % across * tile
        inside = picture < images and channel < x.shape[1]
        first = picture * height * width

        if inside:
            for row in range(i, side, tile):
                y, start = 2 * (top + row - overlap), 2 * (left - overlap)
                whole = 0 <= y and y + 1 < height and 0 <= start and start + 2 * side <= width
                for j in range(side):
                    column = start + 2 * j
                    if whole:
                        at = first + y * width + column
                        p00, p01 = load(x, at, channel), load(x, at + 1, channel)
                        p10, p11 = load(x, at + width, channel), load(x, at + width + 1, channel)
                    else:
                        p00 = pixel(x, first, y, column, height, width, channel)
                        p01 = pixel(x, first, y, column + 1, height, width, channel)
                        p10 = pixel(x, first, y + 1, column, height, width, channel)
                        p11 = pixel(x, first, y + 1, column + 1, height, width, channel)
                    above, below, above_step, below_step = p00 + p01, p10 + p11, p00 - p01, p10 - p11
                    at = z * 4 * side + row
                    store(bands, at, j * LANES + lane, above + below)                       # low-low
                    store(bands, at + side, j * LANES + lane, above - below)                # high along H
                    store(bands, at + 2 * side, j * LANES + lane, above_step + below_step)  # high along W
                    store(bands, at + 3 * side, j * LANES + lane, above_step - below_step)  # high-high
        cuda.syncthreads()
        if not inside:
            return

        convolve(0, bands, weight, channel, total)
        convolve(1, bands, weight, channel, total)
        convolve(2, bands, weight, channel, total)
        convolve(3, bands, weight, channel, total)

        y = 2 * (top + i)
        for j in range(tile):
            column = 2 * (left + j)
            low, along_h, along_w, both = total[0, j], total[1, j], total[2, j], total[3, j]
            for part in range(4):  # pixels (0, 0), (0, 1), (1, 0), (1, 1)
                if part < 2:
                    value = (low + along_h) + (along_w + both if part == 0 else -(along_w + both))
                else:
                    value = (low - along_h) + (along_w - both if part == 2 else both - along_w)
                if y + part // 2 < height and column + part % 2 < width:
                    store(out, first + (y + part // 2) * width + column + part % 2, channel, value)

    return kernel_function


def is_able(height: int, width: int, kernel: int) -> bool:
    """Whether a tile and what k x k taps see around it go into shared memory."""
    return max(height, width) <= 2 * LARGEST or 2 * (kernel // 2) < SHARED_SIDE


@cache
def tiling(height: int, width: int, kernel: int) -> tuple[int, int, int, int]:
    """(tile, overlap, pictures of a block, tiles of a picture)."""
    rows, columns = (height + 1) // 2, (width + 1) // 2
    side = max(rows, columns)
    if side <= LARGEST:
        tile, overlap = side, 0
    else:
        overlap = kernel // 2
        pieces = -(-side // (SHARED_SIDE - 2 * overlap))
        tile = -(-side // pieces)
    pictures = 1 if overlap else max(THREADS // (LANES * tile), 1)
    return tile, overlap, pictures, -(-rows // tile) * -(-columns // tile)


def wavelet_branch(x, weight, out, *, images, height, width, kernel, stream=0):
    """Launch: out = wavelet(x).

    x, out (images * height * width, C), weight (4, k * k, C): the taps of every sub-band times its scale and 1/4, the
    product of the Haar filters' factors; float32. `out` must not be x."""
    tile, overlap, pictures, tiles = tiling(height, width, kernel)
    launch = build(wavelet_branch_kernel, kernel, tile, overlap, pictures, threads=LANES * tile * pictures)
    slabs = -(-x.shape[1] // LANES)
    launch[slabs * -(-images // pictures) * tiles, (LANES, tile, pictures), stream](
        x, weight, out, images, height, width)
