"""Means and maxima: of a map over its pixels, before a squeeze-and-excitation and before the head; over parts that
cover it; over windows.

Parallel   (image, vector of 16 channels), or (image, row of the result). Loops: pixels, in order. Moves: the map once,
           and what parts or windows share as often as they do; memory is the limit.
"""

from __future__ import annotations

import numpy as np

from mmref.kernels.records import ADAPTIVE_MEAN, MAXIMUM, MEAN
from mmref.kernels.target import LANES, VECTOR_BYTES
from mmref.kernels.vector import broadcast, load, maximum, store, store_part, view, zeros


def mean(record, thread, threads):
    """Kernel of MEAN. Sums of 64 pixels are added up, so that the error does not grow with the map."""
    op = view(record, MEAN)
    length, pitch = op.length, op.pitch
    share = broadcast(np.float32(1) / np.float32(length))
    items = op.images * op.vectors
    for item in range(items * thread // threads, items * (thread + 1) // threads):
        image, vector = item // op.vectors, item % op.vectors
        x = op.x + image * length * pitch + vector * VECTOR_BYTES
        total = zeros()
        for start in range(0, length, 64):
            part = zeros()
            for pixel in range(start, min(start + 64, length)):
                part = part + load(x + pixel * pitch)
            total = total + part
        store(op.out + image * op.out_pitch + vector * VECTOR_BYTES, total * share)


def adaptive_mean(record, thread, threads):
    """Kernel of ADAPTIVE_MEAN: part i of n pixels of an axis is those from floor(i * size / n) to
    ceil((i + 1) * size / n) - 1. Sums of a part's rows are added up."""
    op = view(record, ADAPTIVE_MEAN)
    lines = op.images * op.rows
    for line in range(lines * thread // threads, lines * (thread + 1) // threads):
        image, i = line // op.rows, line % op.rows
        top, bottom = i * op.height // op.rows, ((i + 1) * op.height + op.rows - 1) // op.rows
        for j in range(op.columns):
            left, right = j * op.width // op.columns, ((j + 1) * op.width + op.columns - 1) // op.columns
            share = broadcast(np.float32(1) / np.float32((bottom - top) * (right - left)))
            out = op.out + (line * op.columns + j) * op.out_pitch
            for vector in range(op.vectors):
                x, total = op.x + image * op.height * op.width * op.pitch + vector * VECTOR_BYTES, zeros()
                for row in range(top, bottom):
                    part = zeros()
                    for column in range(left, right):
                        part = part + load(x + (row * op.width + column) * op.pitch)
                    total = total + part
                lanes = LANES
                if vector == op.vectors - 1:
                    lanes = op.lanes
                store_part(out + vector * VECTOR_BYTES, total * share, lanes)


def maximum_pool(record, thread, threads):
    """Kernel of MAXIMUM. Every window holds a pixel of the map."""
    op = view(record, MAXIMUM)
    lines = op.images * op.out_height
    for line in range(lines * thread // threads, lines * (thread + 1) // threads):
        image, i = line // op.out_height, line % op.out_height
        top, bottom = max(0, i * op.stride - op.padding), min(op.height, i * op.stride - op.padding + op.kernel)
        for j in range(op.out_width):
            left, right = max(0, j * op.stride - op.padding), min(op.width, j * op.stride - op.padding + op.kernel)
            out = op.out + (line * op.out_width + j) * op.out_pitch
            for vector in range(op.vectors):
                x = op.x + image * op.height * op.width * op.pitch + vector * VECTOR_BYTES
                largest = load(x + (top * op.width + left) * op.pitch)
                for row in range(top, bottom):
                    for column in range(left, right):
                        largest = maximum(largest, load(x + (row * op.width + column) * op.pitch))
                lanes = LANES
                if vector == op.vectors - 1:
                    lanes = op.lanes
                store_part(out + vector * VECTOR_BYTES, largest, lanes)
