"""The gate of a squeeze-and-excitation: every channel of a map times the logistic function of its own value.

Parallel   (image, vector of 16 channels). Loops: pixels. Moves: the map once in and out; memory is the limit.
The means before it are pool.py's, the two small matrix products between them matmul.py's.
"""

from __future__ import annotations

from mmref.kernels.records import GATE
from mmref.kernels.target import VECTOR_BYTES
from mmref.kernels.vector import load, store, view
from mmref.kernels.vector_math import sigmoid


def gate(record, thread, threads):
    """Kernel of GATE."""
    op = view(record, GATE)
    length, pitch = op.length, op.pitch
    items = op.images * op.vectors
    for item in range(items * thread // threads, items * (thread + 1) // threads):
        image, vector = item // op.vectors, item % op.vectors
        factor = sigmoid(load(op.gate + image * op.gate_pitch + vector * VECTOR_BYTES))
        x = op.x + image * length * pitch + vector * VECTOR_BYTES
        for pixel in range(length):
            store(x + pixel * pitch, load(x + pixel * pitch) * factor)
