"""SS2D's scan for every order and number of states: along paths given as tables of pixel numbers.

Parallel   (image, vector of 16 channels): channels never meet in the recurrence.
Loops      directions; steps of the path; states, which lie in a scratch of a thread.
Moves      u, the result (to which every direction adds) and R + 2 N floats, once a direction and step.
Costs      an exp2 and three multiply-adds a channel, step and state; R multiply-adds and a softplus a step size.

Step sizes, softplus, exp and D are inside, as in scan.py, which is faster and does one state, rows and back.
"""

from __future__ import annotations

from mmref.kernels.records import PATH_SCAN
from mmref.kernels.target import VECTOR_BYTES
from mmref.kernels.vector import fma, load, load_broadcast, load_integer, store, view, zeros
from mmref.kernels.vector_math import exp2, softplus


def path_scan(record, thread, threads):
    """Kernel of PATH_SCAN. Writes whole vectors."""
    op = view(record, PATH_SCAN)
    rank, states = op.rank, op.states
    h_at = op.scratch + thread * op.scratch_size
    items = op.images * op.vectors
    for item in range(items * thread // threads, items * (thread + 1) // threads):
        image, vector = item // op.vectors, item % op.vectors
        u = op.u + image * op.pixels * op.pitch + vector * VECTOR_BYTES
        out = op.out + image * op.pixels * op.out_pitch + vector * VECTOR_BYTES
        for pixel in range(op.pixels):
            store(out + pixel * op.out_pitch, zeros())
        for direction in range(op.directions):
            weights = op.parameters + (vector * op.directions + direction) * (rank + states + 2) * VECTOR_BYTES
            bias, D = load(weights + rank * VECTOR_BYTES), load(weights + (rank + 1) * VECTOR_BYTES)
            A = weights + (rank + 2) * VECTOR_BYTES
            for n in range(states):
                store(h_at + n * VECTOR_BYTES, zeros())
            for step in range(op.length):
                pixel = load_integer(op.table + (direction * op.length + step) * 8)
                if pixel < 0:  # a pixel of zeros: all its coefficients are 0, and only the state fades
                    delta = softplus(bias)
                    for n in range(states):
                        h = exp2(delta * load(A + n * VECTOR_BYTES)) * load(h_at + n * VECTOR_BYTES)
                        store(h_at + n * VECTOR_BYTES, h)
                    continue
                c = op.coefficients + (image * op.pixels + pixel) * op.coefficients_pitch
                c += direction * (rank + 2 * states) * 4
                delta, value = bias, load(u + pixel * op.pitch)
                for r in range(rank):
                    delta = fma(load_broadcast(c + 4 * r), load(weights + r * VECTOR_BYTES), delta)
                delta = softplus(delta)
                drive, y = delta * value, D * value
                for n in range(states):
                    h = fma(exp2(delta * load(A + n * VECTOR_BYTES)), load(h_at + n * VECTOR_BYTES),
                            drive * load_broadcast(c + 4 * (rank + n)))
                    store(h_at + n * VECTOR_BYTES, h)
                    y = fma(h, load_broadcast(c + 4 * (rank + states + n)), y)
                place = out + pixel * op.out_pitch
                store(place, load(place) + y)
