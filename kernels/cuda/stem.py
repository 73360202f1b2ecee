"""The stem: 3x3 convolutions of stride 2 as matrix products whose left factor is never written down.

Row (picture, y, x) of that factor is the 3 x 3 x c_in neighbourhood of an output pixel, column (tap, channel). A tile
of it is gathered straight from the picture as the product comes to it.

Parallel   as in matmul.py, whose tile this is: output pixels x output channels.
Loops      the 9 * c_in products of an output, 8 at a time.
Moves      the picture once from memory (9/4 times from caches), the result once; the weights stay in caches.
Why        Neighbourhoods written to memory would be 9/4 of the picture, out and in again: for the second convolution of
           B1 twice what it moves otherwise. Where a neighbourhood begins and which of its 9 taps lie inside the map is
           found once for every output pixel of the tile and kept in shared memory; a tap then costs one addition.
The first convolution reads the picture channels-first, as it comes: the same code with other strides.
"""

from __future__ import annotations

from numba import float32, int64

from mmref.kernels.cuda.device import ZERO, device_function, load, load_at, store
from mmref.kernels.cuda.device import relu as relu_of
from mmref.kernels.cuda.driver import ALIGNMENT, cuda
from mmref.kernels.cuda.launch import build
from mmref.kernels.cuda.matmul import ACROSS, DOWN, STEP, THREADS, tile_functions, tile_grid, tile_shape

MAPS = "void({}, float32[:, :], float32[::1], float32[:, :], int32, int32, int32, int64, int32, int32)"
SIGNATURE = MAPS.format("float32[:, :]")
PICTURE_SIGNATURE = MAPS.format("float32[:, :, :, ::1]")


def stem_kernel(down: int, across: int, c_in: int, relu: bool):
    """The kernel for c_in input channels."""
    rows, columns, fetched_b, row_of, clear, fetch_b, put_b, put_a, multiply = tile_functions(down, across)
    line, buffers, depth = rows + 4, 2 * STEP, 9 * c_in

    @device_function
    def locate(first_row, images, height, width, pixel_step, picture_step, places):
        """places[m]: offset of output pixel m's neighbourhood; places[rows + m]: bit t is set if tap t is inside."""
        m = cuda.threadIdx.y * ACROSS + cuda.threadIdx.x
        if m < rows:
            out_width = (width + 1) // 2
            pixels = (height + 1) // 2 * out_width
            at = first_row + m
            picture, pixel = at // pixels, at % pixels
            top, left = 2 * (pixel // out_width) - 1, 2 * (pixel % out_width) - 1
            inside = 0
            if picture < images:
                for t in range(9):
                    y, x = top + t // 3, left + t % 3
                    if 0 <= y < height and 0 <= x < width:
                        inside |= 1 << t
            store(places, 0, m, picture * picture_step + (top * width + left) * pixel_step)
            store(places, 1, m, inside)

    @device_function
    def fetch_a(x, k, width, pixel_step, channel_step, places, values):
        thread = cuda.threadIdx.y * ACROSS + cuda.threadIdx.x
        k += thread % STEP
        tap, channel = k // c_in, k % c_in
        offset = (tap // 3 * width + tap % 3) * pixel_step + channel * channel_step
        for e in range(down):
            m = e * DOWN + thread // STEP
            values[e] = ZERO
            if load(places, 1, m) >> tap & 1:  # no tap is inside beyond the depth
                values[e] = load_at(x, load(places, 0, m) + offset)

    def kernel(x, weight, bias, out, images, height, width, picture_step, pixel_step, channel_step):
        shared_a = cuda.shared.array((buffers, line), float32, ALIGNMENT)
        shared_b = cuda.shared.array((buffers, columns), float32, ALIGNMENT)
        places = cuda.shared.array((2, rows), int64)
        total = cuda.local.array((down, across), float32)
        next_a = cuda.local.array(down, float32)
        next_b = cuda.local.array(fetched_b, float32)
        first_row, first_column = (cuda.blockIdx.z * cuda.gridDim.y + cuda.blockIdx.y) * rows, cuda.blockIdx.x * columns
        locate(first_row, images, height, width, pixel_step, picture_step, places)
        clear(total)
        cuda.syncthreads()
        fetch_a(x, 0, width, pixel_step, channel_step, places, next_a)
        fetch_b(weight, depth, first_column, 0, next_b)
        buffer = 0
        for k in range(0, depth, STEP):
            put_a(next_a, buffer, shared_a)
            put_b(next_b, buffer, shared_b)
            cuda.syncthreads()
            fetch_a(x, k + STEP, width, pixel_step, channel_step, places, next_a)
            fetch_b(weight, depth, first_column, k + STEP, next_b)
            multiply(shared_a, shared_b, buffer, total)
            buffer = 1 - buffer
        for i in range(down):
            row = first_row + row_of(i)
            for j in range(across):
                column = first_column + cuda.threadIdx.x + j * ACROSS
                if row < out.shape[0] and column < out.shape[1]:
                    value = total[i, j] + bias[column]
                    store(out, row, column, relu_of(value) if relu else value)

    return kernel


def stem(x, weight, bias, out, *, images, height, width, c_in, relu, nchw, stream=0, shape=None):
    """Launch: out = conv(x) + bias, 3x3, stride 2, padding 1, ReLU behind it where asked for.

    x (images * height * width, c_in), or with `nchw` (images, c_in, height, width), contiguous; weight (9 * c_in, C),
    rows in the order (tap y, tap x, channel); bias (C,); out (images * oh * ow, C); float32. `shape` as for matmul."""
    rows, columns = out.shape
    down, across = shape or tile_shape(rows, columns)
    kernel = build(stem_kernel, down, across, c_in, bool(relu), threads=THREADS,
                   signature=PICTURE_SIGNATURE if nchw else SIGNATURE)
    if nchw:
        steps = c_in * height * width, 1, height * width
    else:
        pitch = x.strides[0] // 4
        steps = height * width * pitch, pitch, 1
    kernel[tile_grid(rows, columns, down, across), (ACROSS, DOWN), stream](
        x, weight, bias, out, images, height, width, *steps)
