"""The stem: 3x3 convolutions of stride 2 as matrix products, without ever copying the 3x3 neighbourhoods.

Channels-last, three pixels side by side are one run of memory; the neighbourhood of an output pixel is three such runs
and neighbouring outputs start two pixels apart: a matrix product whose rows overlap. A border of zeros around every
map leaves no special cases at its edges. `picture` and `result` carry arrays in and out; `picture` also looks for
values that are not finite, while it has them in hand.

Parallel   rows of output pixels (rows of the picture, pixels of the result).
Loops      panels, rows, blocks of pixels; then, in the tile, taps and channels.
Moves      every input from the cache 9/4 times, every output once.
Costs      18 * c_in operations an output.
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
        target = op.out + (row + 1) * op.row + channels * 4
        first = 0
        if channels == 3:
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
                store_scalar(target + (column * channels + channel) * 4, value)
    if not lane_sum(nothing) + rest == 0:
        store_integer(op.alarm, 1)


def stem(record, thread, threads):
    """Kernel of STEM."""
    op = view(record, STEM)
    blocks = (op.width + op.tile_rows - 1) // op.tile_rows
    first, last = op.height * thread // threads, op.height * (thread + 1) // threads
    for p in range(op.panels):
        panel = view(op.panel_table + p * PANEL_BYTES, PANEL)
        steps = 3 * op.taps * op.depth
        for row in range(first, last):
            x, out = op.x + 2 * row * op.row, op.out + row * op.out_row + panel.column
            for block in range(blocks):
                i = op.width * block // blocks
                count = op.width * (block + 1) // blocks - i
                # what is written next comes on its way: a store to a line that is not in the cache waits for it
                ahead, ahead_count = out + i * op.out_pixel, 1
                if block + 1 < blocks:
                    ahead += count * op.out_pixel
                    ahead_count = op.width * (block + 2) // blocks - i - count
                elif row + 1 < last:
                    ahead, ahead_count = out + op.out_row, op.width // blocks
                call_tile(op.tiles, count, panel.vectors,
                          (x + 2 * i * op.pixel, 2 * op.pixel, op.depth, 3, op.row, op.taps, op.pixel, panel.weights,
                           out + i * op.out_pixel, op.out_pixel, op.bias + panel.column, 0, 0, op.relu, ahead,
                           (ahead_count - 1) * op.out_pixel // (steps - 1)))


def result(record, thread, threads):
    """Kernel of RESULT."""
    op = view(record, RESULT)
    out = load_integer(op.cell) + op.offset
    for row in range(op.rows * thread // threads, op.rows * (thread + 1) // threads):
        for channel in range(0, op.channels, LANES):
            lanes = min(LANES, op.channels - channel)
            store_part(out + (row * op.channels + channel) * 4, load_part(op.x + row * op.pitch + channel * 4, lanes),
                       lanes)
