"""The wavelet branch in one pass: Haar analysis, k x k on the four sub-bands, Haar synthesis.

Parallel   (image, vector of 16 channels).
Loops      squares of 2x2 pixels (analysis); then pairs of squares side by side, taps (convolution and synthesis
           together): eight sums, four sub-bands of two squares, hide the latency of the multiply-adds.
Moves      the map is read once and the result written once; the sub-bands, four maps of a quarter of the pixels, stay
           in the thread's scratch, in its cache.
Costs      2 * k*k operations a pixel, and 4 additions each way.

The filters' factors, 1/2 each way, and the sub-bands' learned scales are folded into the taps. An odd height or width
is continued by zeros; what the synthesis yields there is dropped.
"""

from __future__ import annotations

from numba import njit

from mmref.kernels.records import WAVELET, wavelet_line_bytes
from mmref.kernels.target import VECTOR_BYTES
from mmref.kernels.vector import fma, load, store, view, zeros

_line_bytes = njit(wavelet_line_bytes)


@njit(error_model="numpy")
def _analyse(x, pitch, height, width, bands, band, line, pad):
    """Sub-bands of one vector of channels, rows `line` bytes apart with `pad` columns of zeros before the first."""
    for i in range((height + 1) // 2):
        target = bands + i * line + pad * VECTOR_BYTES
        for j in range((width + 1) // 2):
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
            store(target, top + bottom)                                  # low-low
            store(target + band, top - bottom)                           # high along H
            store(target + 2 * band, top_step + bottom_step)             # high along W
            store(target + 3 * band, top_step - bottom_step)             # high-high
            target += VECTOR_BYTES


@njit(error_model="numpy")
def _synthesise(low, along_h, along_w, both, i, j, height, width, out, pitch):
    """The 2x2 pixels of one square, those inside the map."""
    target = out + (2 * i * width + 2 * j) * pitch
    even, odd, even_step, odd_step = low + along_h, low - along_h, along_w + both, along_w - both
    right, below = 2 * j + 1 < width, 2 * i + 1 < height
    store(target, even + even_step)
    if right:
        store(target + pitch, even - even_step)
    if below:
        store(target + width * pitch, odd + odd_step)
    if right and below:
        store(target + width * pitch + pitch, odd - odd_step)


def wavelet_branch(record, thread, threads):
    """Kernel of WAVELET."""
    op = view(record, WAVELET)
    height, width, k = op.height, op.width, op.kernel
    rows, columns, pad = (height + 1) // 2, (width + 1) // 2, k // 2
    line = _line_bytes(width, k)
    band, band_taps = rows * line, k * k * VECTOR_BYTES
    bands = op.scratch + thread * op.scratch_size
    for place in range(bands, bands + 4 * band, VECTOR_BYTES):
        store(place, zeros())
    items = op.images * op.vectors
    for item in range(items * thread // threads, items * (thread + 1) // threads):
        image, vector = item // op.vectors, item % op.vectors
        x = op.x + image * height * width * op.pitch + vector * VECTOR_BYTES
        out = op.out + image * height * width * op.out_pitch + vector * VECTOR_BYTES
        _analyse(x, op.pitch, height, width, bands, band, line, pad)
        for i in range(rows):
            first_row, last_row = max(0, pad - i), min(k, rows + pad - i)
            for j in range(0, columns, 2):
                low0, along_h0, along_w0, both0 = zeros(), zeros(), zeros(), zeros()
                low1, along_h1, along_w1, both1 = zeros(), zeros(), zeros(), zeros()
                for y in range(first_row, last_row):
                    value = bands + (i + y - pad) * line + j * VECTOR_BYTES
                    tap = op.weights + vector * 4 * band_taps + y * k * VECTOR_BYTES
                    for _x in range(k):
                        weight = load(tap)
                        low0 = fma(load(value), weight, low0)
                        low1 = fma(load(value + VECTOR_BYTES), weight, low1)
                        weight = load(tap + band_taps)
                        along_h0 = fma(load(value + band), weight, along_h0)
                        along_h1 = fma(load(value + band + VECTOR_BYTES), weight, along_h1)
                        weight = load(tap + 2 * band_taps)
                        along_w0 = fma(load(value + 2 * band), weight, along_w0)
                        along_w1 = fma(load(value + 2 * band + VECTOR_BYTES), weight, along_w1)
                        weight = load(tap + 3 * band_taps)
                        both0 = fma(load(value + 3 * band), weight, both0)
                        both1 = fma(load(value + 3 * band + VECTOR_BYTES), weight, both1)
                        value, tap = value + VECTOR_BYTES, tap + VECTOR_BYTES
                _synthesise(low0, along_h0, along_w0, both0, i, j, height, width, out, op.out_pitch)
                if j + 1 < columns:
                    _synthesise(low1, along_h1, along_w1, both1, i, j + 1, height, width, out, op.out_pitch)
