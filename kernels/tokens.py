"""What networks that scan rows of tokens do beside scanning: small kernels, all of them bound by memory or by SiLU.

path_conv   a map read off along paths and convolved along the steps, then SiLU: reading off costs no pass of its own
rms_norm    x over the root of its mean square, times a weight
rotary      pairs of channels turned by an angle
row_stats   mean and 1 / deviation of every row, for norm_mean
norm_mean   the mean over the pixels of a layer norm, which is never written

Parallel   rows; (image, vector of 16 channels) in norm_mean.
Loops      vectors of channels; taps or, in norm_mean, rows, in sums of 64 so that the error does not grow with them.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit

from mmref.kernels.records import NORM_MEAN, PATH_CONV, RMS_NORM, ROTARY, ROW_STATS
from mmref.kernels.target import LANES, VECTOR_BYTES
from mmref.kernels.vector import (
    INDEX_VECTOR,
    broadcast,
    fma,
    lane_sum,
    load,
    load_broadcast,
    load_integer,
    load_part,
    load_scalar,
    operation,
    store,
    store_part,
    store_scalar,
    vector,
    view,
    zeros,
)
from mmref.kernels.vector_math import silu, silu_each


@njit(error_model="numpy")
def _row(op, image, direction, step):
    """Address of the row that a step of a direction reads: zeros before the first, and on a pixel of zeros."""
    if step < 0:
        return op.nothing, 0
    row = (image * op.directions + direction) * op.length + step
    if op.by_path == 1:
        row = load_integer(op.table + (direction * op.length + step) * 8)
        if row < 0:
            return op.nothing, 0
        row += image * op.pixels
    return op.x + row * op.pitch, VECTOR_BYTES


def path_conv(record, thread, threads):
    """Kernel of PATH_CONV. Writes whole vectors."""
    op = view(record, PATH_CONV)
    rows, taps = op.images * op.directions * op.length, op.taps
    for row in range(rows * thread // threads, rows * (thread + 1) // threads):
        sequence, step = row // op.length, row % op.length
        image, direction = sequence // op.directions, sequence % op.directions
        out = op.out + row * op.out_pitch
        for tap in range(taps):
            x, advance = _row(op, image, direction, step - (taps - 1 - tap))
            weights = op.weights + (direction * (taps + 1) + tap) * op.vectors * VECTOR_BYTES
            for v in range(op.vectors):
                before = weights + (taps - tap) * op.vectors * VECTOR_BYTES + v * VECTOR_BYTES  # the bias, at first
                if tap > 0:
                    before = out + v * VECTOR_BYTES
                weight = load(weights + v * VECTOR_BYTES)
                store(out + v * VECTOR_BYTES, fma(load(x + v * advance), weight, load(before)))
        if op.silu == 1:
            for v in range(0, op.vectors - 1, 2):
                at = out + v * VECTOR_BYTES
                first, second = silu_each((load(at), load(at + VECTOR_BYTES)))
                store(at, first)
                store(at + VECTOR_BYTES, second)
            if op.vectors % 2 == 1:
                at = out + (op.vectors - 1) * VECTOR_BYTES
                store(at, silu(load(at)))


def rms_norm(record, thread, threads):
    """Kernel of RMS_NORM."""
    op = view(record, RMS_NORM)
    size, epsilon = np.float32(op.channels), load_scalar(op.epsilon)
    for row in range(op.rows * thread // threads, op.rows * (thread + 1) // threads):
        x, out, squares = op.x + row * op.pitch, op.out + row * op.out_pitch, zeros()
        for channel in range(0, op.channels, LANES):
            value = load_part(x + 4 * channel, min(LANES, op.channels - channel))
            squares = fma(value, value, squares)
        scale = broadcast(np.float32(1) / np.sqrt(lane_sum(squares) / size + epsilon))
        for channel in range(0, op.channels, LANES):
            lanes = min(LANES, op.channels - channel)
            value = load_part(x + 4 * channel, lanes) * scale * load_part(op.weight + 4 * channel, lanes)
            store_part(out + 4 * channel, value, lanes)


@operation(vector, vector)
def _exchanged(builder, x):
    """The lanes of each pair in the other order."""
    return builder.shuffle_vector(x, x, ir.Constant(INDEX_VECTOR, [lane ^ 1 for lane in range(LANES)]))


def rotary(record, thread, threads):
    """Kernel of ROTARY; the sign of a pair's first channel lies in `sin`."""
    op = view(record, ROTARY)
    rows = op.images * op.length
    for row in range(rows * thread // threads, rows * (thread + 1) // threads):
        x, out, angles = op.x + row * op.pitch, op.out + row * op.out_pitch, row % op.count * op.table_pitch
        for channel in range(0, op.channels, LANES):
            lanes = min(LANES, op.channels - channel)
            value = load_part(x + 4 * channel, lanes)
            turned = _exchanged(value) * load_part(op.sin + angles + 4 * channel, lanes)
            store_part(out + 4 * channel, fma(value, load_part(op.cos + angles + 4 * channel, lanes), turned), lanes)


def row_stats(record, thread, threads):
    """Kernel of ROW_STATS: for every row two floats, the mean of its channels and 1 / sqrt(variance + epsilon)."""
    op = view(record, ROW_STATS)
    size, epsilon = np.float32(op.channels), load_scalar(op.epsilon)
    for row in range(op.rows * thread // threads, op.rows * (thread + 1) // threads):
        x, total, squares = op.x + row * op.pitch, zeros(), zeros()
        for channel in range(0, op.channels, LANES):
            total = total + load_part(x + 4 * channel, min(LANES, op.channels - channel))
        mean = lane_sum(total) / size
        whole = op.channels // LANES * LANES
        for channel in range(0, whole, LANES):
            centred = load(x + 4 * channel) - broadcast(mean)
            squares = fma(centred, centred, squares)
        variance = lane_sum(squares)
        for channel in range(whole, op.channels):
            single = load_scalar(x + 4 * channel) - mean
            variance += single * single
        store_scalar(op.out + 8 * row, mean)
        store_scalar(op.out + 8 * row + 4, np.float32(1) / np.sqrt(variance / size + epsilon))


def norm_mean(record, thread, threads):
    """Kernel of NORM_MEAN. Writes whole vectors."""
    op = view(record, NORM_MEAN)
    share = broadcast(np.float32(1) / np.float32(op.length))
    items = op.images * op.vectors
    for item in range(items * thread // threads, items * (thread + 1) // threads):
        image, column, total = item // op.vectors, item % op.vectors * VECTOR_BYTES, zeros()
        for start in range(0, op.length, 64):
            part = zeros()
            for step in range(start, min(start + 64, op.length)):
                row = image * op.length + step
                centred = load(op.x + row * op.pitch + column) - load_broadcast(op.stats + 8 * row)
                part = fma(centred, load_broadcast(op.stats + 8 * row + 4), part)
            total = total + part
        store(op.out + image * op.out_pitch + column,
              fma(total * share, load(op.weight + column), load(op.bias + column)))
