"""The identity channels on their way into the join of the three branches: a copy with the ReLU that follows the join.

Parallel   pixels. Loops: channels, 16 at a time. Moves: the channels once in, once out; memory is the limit.
"""

from __future__ import annotations

from mmref.kernels.records import COPY_RELU
from mmref.kernels.target import LANES
from mmref.kernels.vector import load_part, relu, store_part, view


def copy_relu(record, thread, threads):
    """Kernel of COPY_RELU; the channels begin and end inside vectors."""
    op = view(record, COPY_RELU)
    for row in range(op.rows * thread // threads, op.rows * (thread + 1) // threads):
        for channel in range(0, op.channels, LANES):
            lanes = min(LANES, op.channels - channel)
            store_part(op.out + row * op.out_pitch + 4 * channel,
                       relu(load_part(op.x + row * op.pitch + 4 * channel, lanes)), lanes)
