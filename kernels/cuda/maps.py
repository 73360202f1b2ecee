"""Maps enlarged, shrunk and pooled: resize, adaptive mean, maxima over windows.

Maps are (rows, channels), of all pictures one behind the other; every kernel writes its own columns only.

Parallel   256 threads a block, a value of the result each: neighbouring threads are neighbouring channels.
Loops      the pixels of a part or window, in order: the same bits in every run.
Moves      what is read, once for each use, from caches where maps grow; the result once, which is then the limit.
"""

from __future__ import annotations

import numpy as np

from mmref.kernels.cuda.device import ONE, ZERO, load, store
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build

THREADS = 256
SIGNATURE = "void(float32[:, :], float32[:, :], int32, int32, int32, int32)"
WINDOW_SIGNATURE = "void(float32[:, :], float32[:, :], int32, int32, int32, int32, int32, int32, int32)"


def resize_kernel(nearest: bool):
    """The kernel that takes the nearest pixel, or blends four."""

    def kernel(x, out, height, width, out_height, out_width):
        item = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        at, channel = item // out.shape[1], item % out.shape[1]
        if at >= out.shape[0]:
            return
        picture, row, column = at // (out_height * out_width), at // out_width % out_height, at % out_width
        first = picture * height * width
        if nearest:
            store(out, at, channel, load(x, first + row * height // out_height * width + column * width // out_width,
                                         channel))
        else:
            down = max((2 * row + 1) * height - out_height, 0)              # the source, times 2 * out_height
            across = max((2 * column + 1) * width - out_width, 0)
            below = np.float32(np.int32(down % (2 * out_height))) / np.float32(np.int32(2 * out_height))
            right = np.float32(np.int32(across % (2 * out_width))) / np.float32(np.int32(2 * out_width))
            top, left = down // (2 * out_height), across // (2 * out_width)
            bottom, end = min(top + 1, height - 1), min(left + 1, width - 1)
            near = (load(x, first + top * width + left, channel) * (ONE - below)
                    + load(x, first + bottom * width + left, channel) * below)
            far = (load(x, first + top * width + end, channel) * (ONE - below)
                   + load(x, first + bottom * width + end, channel) * below)
            store(out, at, channel, near * (ONE - right) + far * right)

    return kernel


def resize(x, out, *, height, width, out_height, out_width, nearest, stream=0):
    """Launch: maps of height x width at another size, bilinear or nearest, with the reference's source rules.
    x (images * height * width, C), out (images * out_height * out_width, C), apart; float32."""
    kernel = build(resize_kernel, bool(nearest), threads=THREADS)
    kernel[_grid(out), THREADS, stream](x, out, height, width, out_height, out_width)


def _grid(out):
    return -(-out.shape[0] * out.shape[1] // THREADS)


def adaptive_mean_kernel():
    def kernel(x, out, height, width, rows, columns):
        item = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        at, channel = item // out.shape[1], item % out.shape[1]
        if at >= out.shape[0]:
            return
        picture, i, j = at // (rows * columns), at // columns % rows, at % columns
        top, bottom = i * height // rows, ((i + 1) * height + rows - 1) // rows
        left, right = j * width // columns, ((j + 1) * width + columns - 1) // columns
        total = ZERO
        for row in range(top, bottom):
            part = ZERO  # sums of rows are added up, so that the error does not grow with the map
            for column in range(left, right):
                part += load(x, (picture * height + row) * width + column, channel)
            total += part
        store(out, at, channel, total * (ONE / np.float32(np.int32((bottom - top) * (right - left)))))

    return kernel


def adaptive_mean(x, out, *, height, width, rows, columns, stream=0):
    """Launch: means over rows x columns parts of maps. x (images * height * width, C), out (images * rows * columns,
    C), apart; float32."""
    kernel = build(adaptive_mean_kernel, threads=THREADS)
    kernel[_grid(out), THREADS, stream](x, out, height, width, rows, columns)


def maximum_kernel():
    def kernel(x, out, height, width, out_height, out_width, size, stride, padding):
        item = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        at, channel = item // out.shape[1], item % out.shape[1]
        if at >= out.shape[0]:
            return
        picture = at // (out_height * out_width)
        top, left = at // out_width % out_height * stride - padding, at % out_width * stride - padding
        largest = load(x, (picture * height + max(top, 0)) * width + max(left, 0), channel)
        for row in range(max(top, 0), min(top + size, height)):
            for column in range(max(left, 0), min(left + size, width)):
                value = load(x, (picture * height + row) * width + column, channel)
                if value > largest or value != value:  # NaN stays
                    largest = value
        store(out, at, channel, largest)

    return kernel


def maximum_pool(x, out, *, height, width, out_height, out_width, kernel, stride, padding, stream=0):
    """Launch: the largest value of every window of kernel x kernel; each holds a pixel of the map.
    x (images * height * width, C), out (images * out_height * out_width, C), apart; float32."""
    launched = build(maximum_kernel, threads=THREADS, signature=WINDOW_SIGNATURE)
    launched[_grid(out), THREADS, stream](x, out, height, width, out_height, out_width, kernel, stride, padding)
