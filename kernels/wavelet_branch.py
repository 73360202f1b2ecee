"""The wavelet branch in one pass: Haar analysis, k x k on the four sub-bands, Haar synthesis.

Parallel   (image, vector of 16 channels).
Loops      squares of 2x2 pixels (analysis); then squares, taps (convolution and synthesis together).
Moves      the map is read once and the result written once; the sub-bands, four maps of a quarter of the pixels, stay
           in the thread's scratch, in its cache.
Costs      2 * k*k operations a pixel, and 4 additions each way.

The filters' factors, 1/2 each way, and the sub-bands' learned scales are folded into the taps. An odd height or width
is continued by zeros; what the synthesis yields there is dropped.
"""

from __future__ import annotations

from mmref.kernels.records import WAVELET, view
from mmref.kernels.target import VECTOR_BYTES
from mmref.kernels.vector import fma, load, store, zeros


def wavelet_branch(record, thread, threads):
    """Kernel of WAVELET."""
    op = view(record, WAVELET)
    height, width, pitch, out_pitch, k = op.height, op.width, op.pitch, op.out_pitch, op.kernel
    rows, columns, pad = (height + 1) // 2, (width + 1) // 2, k // 2
    band, band_taps = rows * columns * VECTOR_BYTES, k * k * VECTOR_BYTES
    bands = op.scratch + thread * op.scratch_size
    items = op.images * op.vectors
    for item in range(items * thread // threads, items * (thread + 1) // threads):
        image, vector = item // op.vectors, item % op.vectors
        x = op.x + image * height * width * pitch + vector * VECTOR_BYTES
        out = op.out + image * height * width * out_pitch + vector * VECTOR_BYTES
        weights = op.weights + vector * 4 * band_taps
        for i in range(rows):
            for j in range(columns):
                source = x + (2 * i * width + 2 * j) * pitch
                right, below = 2 * j + 1 < width, 2 * i + 1 < height
                p00, p01, p10, p11 = load(source), zeros(), zeros(), zeros()
                if right:
                    p01 = load(source + pitch)
                if below:
                    p10 = load(source + width * pitch)
                if right and below:
                    p11 = load(source + width * pitch + pitch)
                top, bottom, top_step, bottom_step = p00 + p01, p10 + p11, p00 - p01, p10 - p11
                target = bands + (i * columns + j) * VECTOR_BYTES
                store(target, top + bottom)                                  # low-low
                store(target + band, top - bottom)                           # high along H
                store(target + 2 * band, top_step + bottom_step)             # high along W
                store(target + 3 * band, top_step - bottom_step)             # high-high
        for i in range(rows):
            first_row, last_row = max(0, pad - i), min(k, rows + pad - i)
            for j in range(columns):
                first, last = max(0, pad - j), min(k, columns + pad - j)
                low, along_h, along_w, both = zeros(), zeros(), zeros(), zeros()
                for y in range(first_row, last_row):
                    source = bands + ((i + y - pad) * columns + j - pad) * VECTOR_BYTES
                    for t in range(first, last):
                        value, tap = source + t * VECTOR_BYTES, weights + (y * k + t) * VECTOR_BYTES
                        low = fma(load(value), load(tap), low)
                        along_h = fma(load(value + band), load(tap + band_taps), along_h)
                        along_w = fma(load(value + 2 * band), load(tap + 2 * band_taps), along_w)
                        both = fma(load(value + 3 * band), load(tap + 3 * band_taps), both)
                top, bottom, top_step, bottom_step = low + along_h, low - along_h, along_w + both, along_w - both
                target = out + (2 * i * width + 2 * j) * out_pitch
                right, below = 2 * j + 1 < width, 2 * i + 1 < height
                store(target, top + top_step)
                if right:
                    store(target + out_pitch, top - top_step)
                if below:
                    store(target + width * out_pitch, bottom + bottom_step)
                if right and below:
                    store(target + width * out_pitch + out_pitch, bottom - bottom_step)
