"""RoIAlign: boxes of a channels-last map as small maps of fixed size.

Parallel   nothing yet: it runs on one thread.
Loops      regions; for each the weights of rows and columns, then vectors of 16 channels,
           rows of bins: the map's rows are mixed into one, then its columns into bins.
Moves      each pixel of a region once for every row of bins that it counts in, once or twice; results once.
Costs      a multiply-add for each of those.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mmref.errors import ShapeError
from mmref.kernels.records import ROI_ALIGN
from mmref.kernels.target import LANES, VECTOR_BYTES
from mmref.kernels.vector import (
    broadcast,
    fma,
    load,
    load_double,
    load_integer,
    load_part,
    store,
    store_double,
    store_integer,
    store_part,
    view,
    zeros,
)


@njit(error_model="numpy")
def _bins(weights, ranges, start, extent, size, length):
    """`mmref.detection.roi_align.bin_weights` as a table (size, length) of doubles, and for every bin the first pixel
    that counts in it and the one behind the last."""
    bin = extent / size
    count = np.int64(np.ceil(bin)) if bin > 0 else 0
    for i in range(size):
        row, first, last = weights + 8 * i * length, length, 0
        for pixel in range(length):
            store_double(row + 8 * pixel, 0.0)
        for sample in range(count):
            at = start + i * bin + (sample + 0.5) * bin / count
            if at < -1 or at > length:
                continue
            at = min(max(at, 0.0), length - 1.0)
            low = np.int64(at)
            high, fraction = min(low + 1, length - 1), at - low
            store_double(row + 8 * low, load_double(row + 8 * low) + (1 - fraction) / count)
            store_double(row + 8 * high, load_double(row + 8 * high) + fraction / count)
            first, last = min(first, low), max(last, high + 1)
        store_integer(ranges + 16 * i, first)
        store_integer(ranges + 16 * i + 8, last)


def align(record, thread, threads):
    """Kernel of ROI_ALIGN."""
    op = view(record, ROI_ALIGN)
    size, height, width, pixel = op.size, op.height, op.width, 4 * op.channels
    scale = load_double(op.scale)
    for n in range(op.count):
        roi = op.rois + 40 * n
        x1, y1 = load_double(roi + 8) * scale - 0.5, load_double(roi + 16) * scale - 0.5
        x2, y2 = load_double(roi + 24) * scale - 0.5, load_double(roi + 32) * scale - 0.5
        image = op.x + np.int64(load_double(roi)) * height * width * pixel
        _bins(op.rows, op.row_ranges, y1, y2 - y1, size, height)
        _bins(op.columns, op.column_ranges, x1, x2 - x1, size, width)
        left, right = width, 0                                              # columns in use
        for j in range(size):
            left = min(left, load_integer(op.column_ranges + 16 * j))
            right = max(right, load_integer(op.column_ranges + 16 * j + 8))
        for channel in range(0, op.channels, LANES):
            lanes = min(LANES, op.channels - channel)
            for i in range(size):
                top, bottom = load_integer(op.row_ranges + 16 * i), load_integer(op.row_ranges + 16 * i + 8)
                for column in range(left, right):
                    total, at = zeros(), image + column * pixel + 4 * channel
                    for row in range(top, bottom):
                        weight = broadcast(np.float32(load_double(op.rows + 8 * (i * height + row))))
                        value = at + row * width * pixel
                        total = fma(weight, load(value) if lanes == LANES else load_part(value, lanes), total)
                    store(op.mixed + column * VECTOR_BYTES, total)
                for j in range(size):
                    total = zeros()
                    first = load_integer(op.column_ranges + 16 * j)
                    for column in range(first, load_integer(op.column_ranges + 16 * j + 8)):
                        weight = broadcast(np.float32(load_double(op.columns + 8 * (j * width + column))))
                        total = fma(weight, load(op.mixed + column * VECTOR_BYTES), total)
                    store_part(op.out + ((n * size + i) * size + j) * pixel + 4 * channel, total, lanes)


def roi_align(pixels, rois, size, scale):
    """(n, size, size, C) of `mmref.detection.roi_align.roi_align`, which has checked everything but the dtype: pixels
    (B, H, W, C) float32, rois (n, 5) float64. ShapeError for another dtype."""
    from mmref.kernels.program import run_alone
    if pixels.dtype != np.float32:
        raise ShapeError(f"features must be float32 for the compiled kernel, got {pixels.dtype}")
    _, height, width, channels = pixels.shape
    out = np.zeros((len(rois), size, size, channels), np.float32)
    if not out.size or not pixels.size:
        return out
    run_alone("align", ROI_ALIGN, dict(
        x=pixels, rois=np.ascontiguousarray(rois), count=len(rois), channels=channels, height=height, width=width,
        size=size, scale=np.float64([scale]), rows=np.zeros((size, height)), row_ranges=np.zeros((size, 2), np.int64),
        columns=np.zeros((size, width)), column_ranges=np.zeros((size, 2), np.int64),
        mixed=np.zeros((width, LANES), np.float32), out=out))
    return out
