"""Layer norm over a pixel's channels, times SiLU of the gate.

Parallel   pixels.
Loops      pixels; the channels three times (sum, squares, result), from the cache.
Moves      y and z in, the product out, once each.
Costs      about 40 operations a value, most of them the SiLU's exponential.
"""

from __future__ import annotations

import numpy as np

from mmref.kernels.records import NORM_GATE
from mmref.kernels.target import LANES, VECTOR_BYTES
from mmref.kernels.vector import broadcast, fma, lane_sum, load, store, view, zeros
from mmref.kernels.vector_math import silu, silu_each

EPSILON = np.float32(1e-5)


def norm_gate(record, thread, threads):
    """Kernel of NORM_GATE. The channels fill their vectors: the split rounds them to 16 and the scan doubles them."""
    op = view(record, NORM_GATE)
    vectors = op.vectors
    size = np.float32(vectors * LANES)
    weight, bias = op.parameters, op.parameters + vectors * VECTOR_BYTES
    for row in range(op.rows * thread // threads, op.rows * (thread + 1) // threads):
        y, z, out = op.y + row * op.pitch, op.z + row * op.z_pitch, op.out + row * op.out_pitch
        total = zeros()
        for v in range(vectors):
            total = total + load(y + v * VECTOR_BYTES)
        mean = broadcast(lane_sum(total) / size)
        squares = zeros()
        for v in range(vectors):
            centred = load(y + v * VECTOR_BYTES) - mean
            squares = fma(centred, centred, squares)
        scale = broadcast(np.float32(1) / np.sqrt(lane_sum(squares) / size + EPSILON))
        for v in range(0, vectors - 1, 2):
            at, next = v * VECTOR_BYTES, (v + 1) * VECTOR_BYTES
            gate0, gate1 = silu_each((load(z + at), load(z + next)))
            store(out + at, fma((load(y + at) - mean) * scale, load(weight + at), load(bias + at)) * gate0)
            store(out + next, fma((load(y + next) - mean) * scale, load(weight + next), load(bias + next)) * gate1)
        if vectors % 2 == 1:
            at = (vectors - 1) * VECTOR_BYTES
            normed = fma((load(y + at) - mean) * scale, load(weight + at), load(bias + at))
            store(out + at, normed * silu(load(z + at)))
