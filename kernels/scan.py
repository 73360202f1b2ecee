"""SS2D's scan in both directions, one state a channel, with step-size projection, softplus and D inside.

Parallel   (image, vector of 16 channels): a channel's state is one lane of a register.
Loops      direction; then steps, eight in flight: their sizes and decays, the costly part (a rank-R product, a softplus
           and an exponential), do not depend on the state, so only one multiply-add a step waits for the one before.
Moves      u twice, the result twice (the second direction adds to what the first left), R + 2 floats a pixel and
           direction.
Costs      about 2 R + 60 operations a channel, pixel and direction.

`selective_scan.py` is the operation of the reference, for any number of states; this is what the network needs of it.
"""

from __future__ import annotations

from numba import njit

from mmref.kernels.records import SCAN
from mmref.kernels.target import VECTOR_BYTES
from mmref.kernels.vector import fma, fma_broadcast_each, load, load_broadcast, multiply_each, store, view, zeros
from mmref.kernels.vector_math import exp2, exp2_each, softplus, softplus_each


@njit(error_model="numpy")
def _step(h, delta, decay, u, coefficients, D):
    """(new state, output) of one step; B lies at `coefficients` and C behind it."""
    h = fma(decay, h, delta * u * load_broadcast(coefficients))
    return h, fma(h, load_broadcast(coefficients + 4), D * u)


@njit(error_model="numpy")
def _four_steps(h, delta, decay, u, step_u, coefficients, step_c, D, before, step_before, y, step_y):
    """The state after four steps. Outputs are added to what lies at `before`, and stored at y."""
    h, y0 = _step(h, delta[0], decay[0], load(u), coefficients, D)
    h, y1 = _step(h, delta[1], decay[1], load(u + step_u), coefficients + step_c, D)
    h, y2 = _step(h, delta[2], decay[2], load(u + 2 * step_u), coefficients + 2 * step_c, D)
    h, y3 = _step(h, delta[3], decay[3], load(u + 3 * step_u), coefficients + 3 * step_c, D)
    store(y, y0 + load(before))
    store(y + step_y, y1 + load(before + step_before))
    store(y + 2 * step_y, y2 + load(before + 2 * step_before))
    store(y + 3 * step_y, y3 + load(before + 3 * step_before))
    return h


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
            before, step_before = op.zero, 0
            if direction == 1:
                before, step_before = y, step_y
            h, left = zeros(), length
            while left >= 8:
                delta = bias, bias, bias, bias, bias, bias, bias, bias
                for r in range(rank):
                    delta = fma_broadcast_each(delta, c + 4 * r, step_c, load(weights + r * VECTOR_BYTES))
                delta = softplus_each(delta)
                decay = exp2_each(multiply_each(delta, A))
                at = c + 4 * rank
                h = _four_steps(h, delta[:4], decay[:4], u, step_u, at, step_c, D, before, step_before, y,
                                step_y)
                h = _four_steps(h, delta[4:], decay[4:], u + 4 * step_u, step_u, at + 4 * step_c, step_c, D,
                                before + 4 * step_before, step_before, y + 4 * step_y, step_y)
                u, c, y, left = u + 8 * step_u, c + 8 * step_c, y + 8 * step_y, left - 8
                before += 8 * step_before
            while left > 0:
                delta1 = bias
                for r in range(rank):
                    delta1 = fma(load_broadcast(c + 4 * r), load(weights + r * VECTOR_BYTES), delta1)
                delta1 = softplus(delta1)
                h, y0 = _step(h, delta1, exp2(delta1 * A), load(u), c + 4 * rank, D)
                store(y, y0 + load(before))
                u, c, y, left, before = u + step_u, c + step_c, y + step_y, left - 1, before + step_before
