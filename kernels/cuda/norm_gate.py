"""Layer norm over a pixel's channels, times SiLU of the gate.

Parallel   pixels, 8 to a block, a warp each; in a warp every 32nd channel a thread.
Loops      a thread's channels, which stay in its registers between the sum, the squares and the result.
Moves      y and z in, the product out, once each: memory is the limit.
Why        Variance from squares of differences, not from a difference of squares, needs the mean first; with the
           values in registers that costs no second read. The 32 partial sums meet in shared memory, where each thread
           adds them up itself in the same order: one barrier a sum, and the same bits in all threads and every run.
"""

from __future__ import annotations

import math

import numpy as np
from numba import float32

from mmref.kernels.cuda.device import ONE, ZERO, device_function, load, silu, store
from mmref.kernels.cuda.driver import ALIGNMENT, cuda
from mmref.kernels.cuda.launch import build

LANES, ROWS = 32, 8
EPSILON = np.float32(1e-5)
SIGNATURE = "void(float32[:, :], float32[:, :], float32[::1], float32[::1], float32[:, :])"


def norm_gate_kernel(vectors: int, rows_of_block: int):
    """The kernel for up to 32 * vectors channels."""

    @device_function
    def add_up(partial, row):
        total = ZERO
        for i in range(LANES):
            total += load(partial, row, i)
        return total

    def kernel(y, z, weight, bias, out):
        sums = cuda.shared.array((rows_of_block, LANES), float32, ALIGNMENT)
        squares = cuda.shared.array((rows_of_block, LANES), float32, ALIGNMENT)
        values = cuda.local.array(vectors, float32)
        lane, line = cuda.threadIdx.x, cuda.threadIdx.y
        row = cuda.blockIdx.x * rows_of_block + line
        channels = np.int32(y.shape[1])
        inside = row < y.shape[0]
        share = ONE / np.float32(channels)

        total = ZERO
        for v in range(vectors):
            channel = v * LANES + lane
            values[v] = load(y, row, channel) if inside and channel < channels else ZERO
            total += values[v]
        store(sums, line, lane, total)
        cuda.syncthreads()
        mean = add_up(sums, line) * share
        total = ZERO
        for v in range(vectors):
            if v * LANES + lane < channels:
                centred = values[v] - mean
                total += centred * centred
        store(squares, line, lane, total)
        cuda.syncthreads()
        scale = ONE / np.float32(math.sqrt(add_up(squares, line) * share + EPSILON))
        for v in range(vectors):
            channel = v * LANES + lane
            if inside and channel < channels:
                normed = (values[v] - mean) * scale * weight[channel] + bias[channel]
                store(out, row, channel, normed * silu(load(z, row, channel)))

    return kernel


def norm_gate(y, z, weight, bias, out, *, stream=0):
    """Launch: out = layer_norm(y) * silu(z), over the columns. y, z, out (rows, C), weight, bias (C,); float32."""
    rows, channels = y.shape
    kernel = build(norm_gate_kernel, -(-channels // LANES), ROWS, threads=LANES * ROWS)
    kernel[-(-rows // ROWS), (LANES, ROWS), stream](y, z, weight, bias, out)
