"""The mean of a map over its pixels, before a squeeze-and-excitation and before the head.

Parallel   (image, vector of 16 channels). Loops: pixels, in order. Moves: the map once; memory is the limit.
"""

from __future__ import annotations

import numpy as np

from mmref.kernels.records import MEAN
from mmref.kernels.target import VECTOR_BYTES
from mmref.kernels.vector import broadcast, load, store, view, zeros


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
