"""k x k convolutions as matrix products, the stem's above all, without ever copying the neighbourhoods.

Channels-last, k pixels side by side are one run of memory where no padding lies between them; the neighbourhood of an
output pixel is k such runs, and neighbouring outputs start `stride` pixels apart: a matrix product whose rows overlap.
A border of zeros around every map leaves no special cases at its edges. `picture` and `result` carry arrays in and out;
`picture` also looks for values that are not finite, while it has them in hand.

Parallel   rows of output pixels (rows of the picture, pixels of the result).
Loops      panels, rows, blocks of pixels; then, in the tile, taps and channels.
Moves      every input from the cache k*k / stride**2 times, every output once.
Costs      2 * k*k * c_in operations an output.
"""

from __future__ import annotations

import numpy as np

from mmref.kernels.matmul import PANEL_BYTES, call_tile
from mmref.kernels.records import PANEL, PICTURE, RESULT, STEM
from mmref.kernels.vector import (
    LANES,
    fma,
    lane_sum,
    load,
    load_integer,
    load_part,
    load_scalar,
    store_integer,
    store_interleaved,
    store_part,
    store_scalar,
    view,
    zeros,
)


def picture(record, thread, threads):
    """Kernel of PICTURE."""
    op = view(record, PICTURE)
    x = load_integer(op.cell) + op.offset
    plane, width, channels = op.height * op.width * 4, op.width, op.channels
    nothing, rest = zeros(), np.float32(0)  # sums of 0 * value: NaN where a value is not finite
    for row in range(op.height * thread // threads, op.height * (thread + 1) // threads):
        source = x + row * width * 4
        target = op.out + row * op.row
        first = 0
        if op.pixel == 12 and channels == 3:
            first = width // LANES * LANES
            for column in range(0, first, LANES):
                at = source + column * 4
                r, g, b = load(at), load(at + plane), load(at + 2 * plane)
                nothing = fma(r, zeros(), fma(g, zeros(), fma(b, zeros(), nothing)))
                store_interleaved(target + column * 12, r, g, b)
        for column in range(first, width):
            for channel in range(channels):
                value = load_scalar(source + column * 4 + channel * plane)
                rest += value * np.float32(0)
                store_scalar(target + column * op.pixel + channel * 4, value)
    if not lane_sum(nothing) + rest == 0:
        store_integer(op.alarm, 1)


def stem(record, thread, threads):
    """Kernel of STEM."""
    op = view(record, STEM)
    blocks = (op.width + op.tile_rows - 1) // op.tile_rows
    lines = op.images * op.height
    first, last = lines * thread // threads, lines * (thread + 1) // threads
    steps, step = op.kernel * op.taps * op.depth, op.stride * op.pixel
    for p in range(op.panels):
        panel = view(op.panel_table + p * PANEL_BYTES, PANEL)
        for line in range(first, last):
            image, row = line // op.height, line % op.height
            x = op.x + image * op.image + op.stride * row * op.row
            place = image * op.out_image + row * op.out_row + panel.column
            for block in range(blocks):
                i = op.width * block // blocks
                count = op.width * (block + 1) // blocks - i
                here = place + i * op.out_pixel
                residual = op.residual
                if residual != 0:
                    residual += here
                residual2 = op.residual2
                if residual2 != 0:
                    residual2 += here
                # what is written next comes on its way: a store to a line that is not in the cache waits for it
                ahead, ahead_count = op.out + here, 1
                if block + 1 < blocks:
                    ahead += count * op.out_pixel
                    ahead_count = op.width * (block + 2) // blocks - i - count
                elif line + 1 < last and row + 1 < op.height:
                    ahead, ahead_count = op.out + place + op.out_row, op.width // blocks
                call_tile(op.tiles, count, panel.vectors,
                          (x + i * step, step, op.depth, op.kernel, op.tap_row, op.taps, op.tap, panel.weights,
                           op.out + here, op.out_pixel, op.bias + panel.column, residual, residual2, op.relu, ahead,
                           (ahead_count - 1) * op.out_pixel // max(steps - 1, 1)))


def result(record, thread, threads):
    """Kernel of RESULT."""
    op = view(record, RESULT)
    out = load_integer(op.cell) + op.offset
    for row in range(op.rows * thread // threads, op.rows * (thread + 1) // threads):
        for channel in range(0, op.channels, LANES):
            lanes = min(LANES, op.channels - channel)
            store_part(out + (row * op.channels + channel) * 4, load_part(op.x + row * op.pitch + channel * 4, lanes),
                       lanes)
