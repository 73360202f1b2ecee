"""Kernels for operations that no faster kernel covers: one operation each, any sizes, any number of channels.

A network of mmref's layers runs on the compiled engine whatever its author has put together; what has a pattern that
one of the other kernels knows runs there, and the rest here. All of them write exactly the channels they are asked for,
unless said otherwise.

Parallel   rows, or (image, vector of 16 channels). Memory is the limit of the elementwise ones; analysis and synthesis
are plain loops of single values, a tenth as fast as the kernel for Haar.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mmref.kernels.records import ANALYSIS, COMBINE, GATHER, MOVE, NORM, SCATTER, SYNTHESIS
from mmref.kernels.target import LANES, VECTOR_BYTES
from mmref.kernels.vector import (
    broadcast,
    fma,
    lane_sum,
    load,
    load_integer,
    load_part,
    load_scalar,
    relu,
    relu6,
    store,
    store_part,
    store_scalar,
    view,
    zeros,
)
from mmref.kernels.vector_math import gelu, sigmoid, silu, softplus


def move(record, thread, threads):
    """Kernel of MOVE: a box of values in four dimensions, from strides to strides; added where `add` is 1."""
    op = view(record, MOVE)
    side_by_side = op.out_channel == 4 and (op.x_channel == 4 or op.x == 0)
    lines = op.images * op.rows
    for line in range(lines * thread // threads, lines * (thread + 1) // threads):
        image, row = line // op.rows, line % op.rows
        for column in range(op.columns):
            out = op.out + image * op.out_image + row * op.out_row + column * op.out_column
            x = op.x + image * op.x_image + row * op.x_row + column * op.x_column
            if side_by_side:
                for channel in range(0, op.channels, LANES):
                    lanes = min(LANES, op.channels - channel)
                    value = zeros()
                    if op.x != 0:
                        value = load_part(x + 4 * channel, lanes)
                    if op.add == 1:
                        value = load_part(out + 4 * channel, lanes) + value
                    store_part(out + 4 * channel, value, lanes)
            else:
                for channel in range(op.channels):
                    single = np.float32(0)
                    if op.x != 0:
                        single = load_scalar(x + channel * op.x_channel)
                    if op.add == 1:
                        single = load_scalar(out + channel * op.out_channel) + single
                    store_scalar(out + channel * op.out_channel, single)


@njit(error_model="numpy")
def _combined(operation, x, y):
    if operation == 1:
        return relu(x)
    if operation == 2:
        return sigmoid(x)
    if operation == 3:
        return silu(x)
    if operation == 4:
        return softplus(x)
    if operation == 5:
        return x + y
    if operation == 6:
        return x * y
    if operation == 7:
        return relu6(x)
    if operation == 8:
        return gelu(x)
    return x


def combine(record, thread, threads):
    """Kernel of COMBINE: out = f(x) or x with y; y's row of row r is (r // y_length) % y_count."""
    op = view(record, COMBINE)
    for row in range(op.rows * thread // threads, op.rows * (thread + 1) // threads):
        x, out, y = op.x + row * op.pitch, op.out + row * op.out_pitch, op.y
        if op.y != 0:
            y += row // op.y_length % op.y_count * op.y_pitch
        for channel in range(0, op.channels, LANES):
            lanes = min(LANES, op.channels - channel)
            second = zeros()
            if op.y != 0:
                second = load_part(y + 4 * channel, lanes)
            store_part(out + 4 * channel, _combined(op.operation, load_part(x + 4 * channel, lanes), second), lanes)


def norm(record, thread, threads):
    """Kernel of NORM: layer norm over the channels of every row."""
    op = view(record, NORM)
    size, epsilon = np.float32(op.channels), load_scalar(op.epsilon)
    whole = op.channels // LANES * LANES
    for row in range(op.rows * thread // threads, op.rows * (thread + 1) // threads):
        x, out = op.x + row * op.pitch, op.out + row * op.out_pitch
        total = zeros()
        for channel in range(0, op.channels, LANES):
            total = total + load_part(x + 4 * channel, min(LANES, op.channels - channel))
        mean = lane_sum(total) / size
        squares = np.float32(0)
        for channel in range(0, whole, LANES):
            centred = load(x + 4 * channel) - broadcast(mean)
            squares += lane_sum(centred * centred)
        for channel in range(whole, op.channels):  # in a vector, the lanes beyond the channels would hold -mean
            single = load_scalar(x + 4 * channel) - mean
            squares += single * single
        scale = broadcast(np.float32(1) / np.sqrt(squares / size + epsilon))
        for channel in range(0, op.channels, LANES):
            lanes = min(LANES, op.channels - channel)
            normed = (load_part(x + 4 * channel, lanes) - broadcast(mean)) * scale
            store_part(out + 4 * channel, fma(normed, load_part(op.weight + 4 * channel, lanes),
                                              load_part(op.bias + 4 * channel, lanes)), lanes)


def gather(record, thread, threads):
    """Kernel of GATHER: row i of every image's result is row table[i] of x, zeros for -1. Writes whole vectors."""
    op = view(record, GATHER)
    rows = op.images * op.count
    for row in range(rows * thread // threads, rows * (thread + 1) // threads):
        image, i = row // op.count, row % op.count
        source = load_integer(op.table + 8 * i)
        for v in range(op.vectors):
            value = zeros()
            if source >= 0:
                value = load(op.x + (image * op.x_rows + source) * op.pitch + v * VECTOR_BYTES)
            store(op.out + row * op.out_pitch + v * VECTOR_BYTES, value)


def scatter(record, thread, threads):
    """Kernel of SCATTER: row i of x is added to row table[i] of its image's result (-1: to none). Whole vectors."""
    op = view(record, SCATTER)
    items = op.images * op.vectors
    for item in range(items * thread // threads, items * (thread + 1) // threads):
        image, column = item // op.vectors, item % op.vectors * VECTOR_BYTES
        for row in range(op.out_rows):
            store(op.out + (image * op.out_rows + row) * op.out_pitch + column, zeros())
        for i in range(op.count):
            target = load_integer(op.table + 8 * i)
            if target >= 0:
                place = op.out + (image * op.out_rows + target) * op.out_pitch + column
                store(place, load(place) + load(op.x + (image * op.count + i) * op.pitch + column))


def analysis(record, thread, threads):
    """Kernel of ANALYSIS: four k x k filters a channel, stride 2; `bank` (4 * channels, k, k)."""
    op = view(record, ANALYSIS)
    k, margin = op.kernel, op.kernel // 2 - 1
    half_height, half_width = (op.height + 1) // 2, (op.width + 1) // 2
    lines = op.images * half_height
    for line in range(lines * thread // threads, lines * (thread + 1) // threads):
        image, i = line // half_height, line % half_height
        for j in range(half_width):
            out = op.out + (line * half_width + j) * op.out_pitch
            for band in range(4 * op.channels):
                x, taps, total = op.x + band // 4 * 4, op.bank + band * k * k * 4, np.float32(0)
                for a in range(max(0, margin - 2 * i), min(k, op.height + margin - 2 * i)):
                    row = (image * op.height + 2 * i - margin + a) * op.width
                    for b in range(max(0, margin - 2 * j), min(k, op.width + margin - 2 * j)):
                        value = load_scalar(x + (row + 2 * j - margin + b) * op.pitch)
                        total += value * load_scalar(taps + (a * k + b) * 4)
                store_scalar(out + 4 * band, total)


def synthesis(record, thread, threads):
    """Kernel of SYNTHESIS, the adjoint of ANALYSIS; `height` and `width` are those of the result."""
    op = view(record, SYNTHESIS)
    k, margin = op.kernel, op.kernel // 2 - 1
    half_height, half_width = (op.height + 1) // 2, (op.width + 1) // 2
    lines = op.images * op.height
    for line in range(lines * thread // threads, lines * (thread + 1) // threads):
        image, i = line // op.height, line % op.height
        for j in range(op.width):
            out = op.out + (line * op.width + j) * op.out_pitch
            for channel in range(op.channels):
                total = np.float32(0)
                for band in range(4 * channel, 4 * channel + 4):
                    for a in range((i + margin) % 2, k, 2):
                        row = (i + margin - a) // 2
                        if row < 0 or row >= half_height:
                            continue
                        for b in range((j + margin) % 2, k, 2):
                            column = (j + margin - b) // 2
                            if column < 0 or column >= half_width:
                                continue
                            place = (image * half_height + row) * half_width + column
                            total += (load_scalar(op.x + place * op.pitch + 4 * band)
                                      * load_scalar(op.bank + ((band * k + a) * k + b) * 4))
                store_scalar(out + 4 * channel, total)
