"""Convolutions over windows (the stem's, 3x3 of stride 2, and any other) as matrix products whose left factor is never
written down.

Row (picture, y, x) of that factor is the k_h x k_w x c_in neighbourhood of an output pixel, column (tap, channel). A
tile of it is gathered straight from the picture as the product comes to it.

Parallel   as in matmul.py, whose tile this is: output pixels x output channels.
Loops      the k_h * k_w * c_in products of an output, 8 at a time.
Moves      the picture once from memory (9/4 times from caches for the stem), the result and the shortcuts once; the
           weights stay in caches.
Why        Neighbourhoods written to memory would be 9/4 of the picture, out and in again: for the second convolution of
           B1 twice what it moves otherwise. Where a neighbourhood begins and which of its taps lie inside the map is
           found once for every output pixel of the tile and kept in shared memory; a tap then costs one addition. Of
           filters of more than 62 taps, which do not fit a word, the place of the neighbourhood is kept instead.
The picture itself is read channels-first, as it comes: the same code with other strides.
"""

from __future__ import annotations

from numba import float32, int64

from mmref.kernels.cuda.device import ZERO, device_function, load, load_at, store
from mmref.kernels.cuda.driver import ALIGNMENT, cuda
from mmref.kernels.cuda.epilogue import finish, shortcuts_of
from mmref.kernels.cuda.launch import build, no_map, no_vector
from mmref.kernels.cuda.matmul import ACROSS, DOWN, STEP, THREADS, tile_functions, tile_grid, tile_shape

MAPS = ("void({}, float32[:, :], float32[::1], float32[:, :], float32[:, :], float32[:, :], int32, int32, int32, "
        "int32, int32, int64, int32, int32)")
MOST_TAPS = 62  # that one word can tell of
SIGNATURE = MAPS.format("float32[:, :]")
PICTURE_SIGNATURE = MAPS.format("float32[:, :, :, ::1]")


def stem_kernel(down: int, across: int, c_in: int, filter_shape: tuple[int, int], stride: int, padding: int,
                dilation: int, bias: bool, shortcuts: int, relu: bool):
    """The kernel for c_in input channels and filters of `filter_shape`, (k_h, k_w), taps `dilation` pixels apart."""
    rows, columns, fetched_b, row_of, clear, fetch_b, put_b, put_a, multiply = tile_functions(down, across)
    finished = finish(bias, shortcuts, relu)
    k_h, k_w = filter_shape
    taps, line, buffers, depth = k_h * k_w, rows + 4, 2 * STEP, k_h * k_w * c_in
    few = taps <= MOST_TAPS
    facts = 2 if few else 3

    @device_function
    def locate(first_row, images, height, width, out_height, out_width, pixel_step, picture_step, places):
        """places[0, m]: offset of output pixel m's neighbourhood. Bit t of places[1, m] is set if tap t is inside; or
        places[1 and 2, m]: row and column of tap 0, the row outside of any map for pixels that are not there."""
        m = cuda.threadIdx.y * ACROSS + cuda.threadIdx.x
        if m < rows:
            pixels = out_height * out_width
            at = first_row + m
            picture, pixel = at // pixels, at % pixels
            top, left = stride * (pixel // out_width) - padding, stride * (pixel % out_width) - padding
            store(places, 0, m, picture * picture_step + (top * width + left) * pixel_step)
            if few:
                inside = 0
                if picture < images:
                    for t in range(taps):
                        y, x = top + t // k_w * dilation, left + t % k_w * dilation
                        if 0 <= y < height and 0 <= x < width:
                            inside |= 1 << t
                store(places, 1, m, inside)
            else:
                store(places, 1, m, top if picture < images else height)
                store(places, 2, m, left)

    @device_function
    def is_inside(places, m, tap, height, width):
        if few:
            return load(places, 1, m) >> tap & 1 == 1  # no tap is inside beyond the depth
        y, x = load(places, 1, m) + tap // k_w * dilation, load(places, 2, m) + tap % k_w * dilation
        return tap < taps and 0 <= y < height and 0 <= x < width

    @device_function
    def fetch_a(x, k, height, width, pixel_step, channel_step, places, values):
        thread = cuda.threadIdx.y * ACROSS + cuda.threadIdx.x
        k += thread % STEP
        tap, channel = k // c_in, k % c_in
        offset = (tap // k_w * width + tap % k_w) * dilation * pixel_step + channel * channel_step
        for e in range(down):
            m = e * DOWN + thread // STEP
            values[e] = ZERO
            if is_inside(places, m, tap, height, width):
                values[e] = load_at(x, load(places, 0, m) + offset)

    def kernel(x, weight, shift, first, second, out, images, height, width, out_height, out_width, picture_step,
               pixel_step, channel_step):
        shared_a = cuda.shared.array((buffers, line), float32, ALIGNMENT)
        shared_b = cuda.shared.array((buffers, columns), float32, ALIGNMENT)
        places = cuda.shared.array((facts, rows), int64)
        total = cuda.local.array((down, across), float32)
        next_a = cuda.local.array(down, float32)
        next_b = cuda.local.array(fetched_b, float32)
        first_row, first_column = (cuda.blockIdx.z * cuda.gridDim.y + cuda.blockIdx.y) * rows, cuda.blockIdx.x * columns
        locate(first_row, images, height, width, out_height, out_width, pixel_step, picture_step, places)
        clear(total)
        cuda.syncthreads()
        fetch_a(x, 0, height, width, pixel_step, channel_step, places, next_a)
        fetch_b(weight, depth, first_column, 0, next_b)
        buffer = 0
        for k in range(0, depth, STEP):
            put_a(next_a, buffer, shared_a)
            put_b(next_b, buffer, shared_b)
            cuda.syncthreads()
            fetch_a(x, k + STEP, height, width, pixel_step, channel_step, places, next_a)
            fetch_b(weight, depth, first_column, k + STEP, next_b)
            multiply(shared_a, shared_b, buffer, total)
            buffer = 1 - buffer
        for i in range(down):
            row = first_row + row_of(i)
            for j in range(across):
                column = first_column + cuda.threadIdx.x + j * ACROSS
                if row < out.shape[0] and column < out.shape[1]:
                    store(out, row, column, finished(total[i, j], row, column, shift, first, second))

    return kernel


def stem(x, weight, bias, out, *, images, height, width, c_in, filter_shape, stride, padding, nchw, dilation=1,
         residual=None, residual2=None, relu=False, stream=0, shape=None):
    """Launch: out = conv(x) + bias + residual + residual2, ReLU behind it where asked for.

    x (images * height * width, c_in), or with `nchw` (images, c_in, height, width), contiguous; weight
    (k_h * k_w * c_in, C), rows in the order (tap y, tap x, channel); bias (C,) or None; residuals and out
    (images * oh * ow, C), out may be a residual; float32. `filter_shape` (k_h, k_w). `shape` as for matmul."""
    rows, columns = out.shape
    down, across = shape or tile_shape(rows, columns)
    shortcuts = shortcuts_of(residual, residual2)
    kernel = build(stem_kernel, down, across, c_in, tuple(filter_shape), stride, padding, dilation, bias is not None,
                   len(shortcuts), bool(relu), threads=THREADS, signature=PICTURE_SIGNATURE if nchw else SIGNATURE)
    out_height, out_width = ((side + 2 * padding - dilation * (k - 1) - 1) // stride + 1
                             for side, k in zip((height, width), filter_shape, strict=True))
    if nchw:
        steps = c_in * height * width, 1, height * width
    else:
        pitch = x.strides[0] // 4
        steps = height * width * pitch, pitch, 1
    first, second = [*shortcuts, no_map(), no_map()][:2]
    kernel[tile_grid(rows, columns, down, across), (ACROSS, DOWN), stream](
        x, weight, no_vector() if bias is None else bias, first, second, out, images, height, width, out_height,
        out_width, *steps)
