"""SS2D's scan in both directions, one state a channel, with step-size projection, softplus and D inside.

Parallel   (image, vector of 16 channels): a channel's state is one lane of a register.
Loops      direction; then steps, four in flight: their sizes and decays, the costly part (a rank-R product, a softplus
           and an exponential), do not depend on the state, so only one multiply-add a step waits for the one before.
Moves      u twice, the result twice (the second direction adds to what the first left), R + 2 floats a pixel and
           direction.
Costs      about 2 R + 60 operations a channel, pixel and direction.

`selective_scan.py` is the operation of the reference, for any number of states; this is what the network needs of it.
"""

from __future__ import annotations

from numba import njit

from mmref.kernels.records import SCAN, view
from mmref.kernels.target import VECTOR_BYTES
from mmref.kernels.vector import fma, load, load_broadcast, store, zeros
from mmref.kernels.vector_math import exp, softplus


@njit(error_model="numpy")
def _step(h, delta, decay, u, coefficients, D):
    """(new state, output) of one step; B lies at `coefficients` and C behind it."""
    h = fma(decay, h, delta * u * load_broadcast(coefficients))
    return h, fma(h, load_broadcast(coefficients + 4), D * u)


def scan(record, thread, threads):
    """Kernel of SCAN."""
    op = view(record, SCAN)
    rank, length = op.rank, op.length
    items = op.images * op.vectors
    for item in range(items * thread // threads, items * (thread + 1) // threads):
        image, vector = item // op.vectors, item % op.vectors
        for direction in range(2):
            weights = op.parameters + (vector * 2 + direction) * (rank + 3) * VECTOR_BYTES
            bias = load(weights + rank * VECTOR_BYTES)
            A = load(weights + (rank + 1) * VECTOR_BYTES)
            D = load(weights + (rank + 2) * VECTOR_BYTES)
            first = image * length
            step_u, step_c, step_y = op.pitch, op.coefficients_pitch, op.out_pitch
            if direction == 1:
                first += length - 1
                step_u, step_c, step_y = -step_u, -step_c, -step_y
            u = op.u + first * op.pitch + vector * VECTOR_BYTES
            c = op.coefficients + first * op.coefficients_pitch + direction * (rank + 2) * 4
            y = op.out + first * op.out_pitch + vector * VECTOR_BYTES
            h, left = zeros(), length
            while left >= 4:
                d0, d1, d2, d3 = bias, bias, bias, bias
                for r in range(rank):
                    w, at = load(weights + r * VECTOR_BYTES), c + 4 * r
                    d0, d1 = fma(load_broadcast(at), w, d0), fma(load_broadcast(at + step_c), w, d1)
                    d2, d3 = fma(load_broadcast(at + 2 * step_c), w, d2), fma(load_broadcast(at + 3 * step_c), w, d3)
                d0, d1, d2, d3 = softplus(d0), softplus(d1), softplus(d2), softplus(d3)
                e0, e1, e2, e3 = exp(d0 * A), exp(d1 * A), exp(d2 * A), exp(d3 * A)
                at = c + 4 * rank
                h, y0 = _step(h, d0, e0, load(u), at, D)
                h, y1 = _step(h, d1, e1, load(u + step_u), at + step_c, D)
                h, y2 = _step(h, d2, e2, load(u + 2 * step_u), at + 2 * step_c, D)
                h, y3 = _step(h, d3, e3, load(u + 3 * step_u), at + 3 * step_c, D)
                if direction == 1:
                    y0, y1 = y0 + load(y), y1 + load(y + step_y)
                    y2, y3 = y2 + load(y + 2 * step_y), y3 + load(y + 3 * step_y)
                store(y, y0)
                store(y + step_y, y1)
                store(y + 2 * step_y, y2)
                store(y + 3 * step_y, y3)
                u, c, y, left = u + 4 * step_u, c + 4 * step_c, y + 4 * step_y, left - 4
            while left > 0:
                delta = bias
                for r in range(rank):
                    delta = fma(load_broadcast(c + 4 * r), load(weights + r * VECTOR_BYTES), delta)
                delta = softplus(delta)
                h, y0 = _step(h, delta, exp(delta * A), load(u), c + 4 * rank, D)
                if direction == 1:
                    y0 = y0 + load(y)
                store(y, y0)
                u, c, y, left = u + step_u, c + step_c, y + step_y, left - 1
