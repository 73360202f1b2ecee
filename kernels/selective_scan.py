"""The selective scan on its own: the reference's recurrence, any number of states and directions.

    h[n] = exp(delta * A[n]) * h[n] + delta * B[n] * u,    y = D * u + sum over n of C[n] * h[n]

from h[n] = 0, in this order. The first step multiplies that zero by its decay, as the reference does: a decay that is
not finite makes the state NaN. Denormals count as zeros (float_mode.py).

Parallel   (sequence, vector of 16 channels): channels never meet in the recurrence.
Loops      steps, then states, which lie in a scratch of a thread.
Moves      u, delta and y once; B and C a few floats a step, read again for every vector.
Costs      an exp and three multiply-adds for every element and state: exp is the limit.

The network itself runs scan.py, which has one state and computes delta on the way.
"""

from __future__ import annotations

import numpy as np

from mmref.errors import ShapeError
from mmref.kernels.packing import pack_channels
from mmref.kernels.records import STATES
from mmref.kernels.target import LANES, VECTOR_BYTES, round_up
from mmref.kernels.vector import fma, load, load_broadcast, store, view, zeros
from mmref.kernels.vector_math import exp


def scan_states(record, share, shares):
    """Kernel of STATES."""
    op = view(record, STATES)
    states, length, vectors = op.states, op.length, op.channel_vectors
    items = op.sequences * vectors
    h_at = op.scratch + share * op.scratch_size
    for item in range(items * share // shares, items * (share + 1) // shares):
        sequence, v = item // vectors, item % vectors
        direction = sequence % op.directions
        A = op.A + (direction * vectors + v) * states * VECTOR_BYTES
        D = load(op.D + (direction * vectors + v) * VECTOR_BYTES)
        for n in range(states):
            store(h_at + n * VECTOR_BYTES, zeros())
        for step in range(length):
            pixel = (sequence * length + step) * vectors * VECTOR_BYTES + v * VECTOR_BYTES
            u, delta = load(op.u + pixel), load(op.delta + pixel)
            y = D * u
            coefficients = (sequence * length + step) * states * 4
            for n in range(states):
                at = h_at + n * VECTOR_BYTES
                h = fma(exp(delta * load(A + n * VECTOR_BYTES)), load(at),
                        delta * u * load_broadcast(op.B + coefficients + 4 * n))
                store(at, h)
                y = fma(h, load_broadcast(op.C + coefficients + 4 * n), y)
            store(op.out + pixel, y)


def selective_scan(u, delta, A, B, C, D):
    """`mmref.nn.recurrence.selective_scan` on the compiled kernel.

    u, delta (batch, K, D, L); A (K, D, N); B, C (batch, K, N, L); D (K, D), any sizes; returns y (batch, K, D, L).
    Runs on one thread. The reference has checked shapes; ShapeError for another dtype than float32.
    """
    from mmref.kernels.program import run_alone
    if u.dtype != np.float32:
        raise ShapeError(f"u must be float32 for the compiled kernel, got {u.dtype}")
    batch, K, dim, length = u.shape
    N = A.shape[-1]
    lanes = round_up(dim)

    def by_step(array):                                                     # (batch, K, M, L) -> (batch, K, L, M)
        return np.ascontiguousarray(array.swapaxes(2, 3))

    def padded(array):
        out = np.zeros((batch, K, length, lanes), np.float32)
        out[..., :dim] = array.swapaxes(2, 3)
        return out

    y = np.zeros((batch, K, length, lanes), np.float32)
    scratch = np.zeros((max(N, 1), LANES), np.float32)
    run_alone("scan_states", STATES, dict(
        u=padded(u), delta=padded(delta), A=pack_channels(A), B=by_step(B), C=by_step(C),
        D=pack_channels(D[..., None]), out=y, states=N, directions=K, sequences=batch * K, length=length,
        channel_vectors=lanes // LANES, scratch=scratch, scratch_size=scratch.nbytes))
    return y[..., :dim].swapaxes(2, 3)
