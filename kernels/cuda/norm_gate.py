"""Layer norm over a pixel's channels, times SiLU of the gate.

Parallel   pixels, 8 to a block, a warp each; in a warp every 32nd group of 4 channels a thread, or every 32nd channel
           where rows do not begin at multiples of 16 bytes.
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

from mmref.kernels.cuda.device import ONE, ZERO, device_function, load, load4, load4_of, silu, store, store4
from mmref.kernels.cuda.driver import ALIGNMENT, cuda
from mmref.kernels.cuda.launch import build, width

LANES, ROWS = 32, 8
EPSILON = np.float32(1e-5)
SIGNATURE = "void(float32[:, :], float32[:, :], float32[::1], float32[::1], float32[:, :])"


def norm_gate_kernel(wide: int, vectors: int, rows_of_block: int):
    """The kernel for up to 32 * vectors groups of `wide` channels, 1 or 4."""
    held = vectors * wide

    @device_function
    def fetch(y, row, channel, v, values):
        if wide == 4:
            values[4 * v], values[4 * v + 1], values[4 * v + 2], values[4 * v + 3] = load4(y, row, channel)
        else:
            values[v] = load(y, row, channel)

    @device_function
    def finish(values, v, mean, scale, weight, bias, z, out, row, channel):
        """The thread's v-th group of channels: normalised, scaled and shifted, times the gate."""
        if wide == 4:
            a, b, gate = load4_of(weight, channel), load4_of(bias, channel), load4(z, row, channel)
            store4(out, row, channel, (
                ((values[4 * v] - mean) * scale * a[0] + b[0]) * silu(gate[0]),
                ((values[4 * v + 1] - mean) * scale * a[1] + b[1]) * silu(gate[1]),
                ((values[4 * v + 2] - mean) * scale * a[2] + b[2]) * silu(gate[2]),
                ((values[4 * v + 3] - mean) * scale * a[3] + b[3]) * silu(gate[3])))
        else:
            normed = (values[v] - mean) * scale * weight[channel] + bias[channel]
            store(out, row, channel, normed * silu(load(z, row, channel)))

    @device_function
    def add_up(partial, row):
        total = ZERO
        for i in range(LANES):
            total += load(partial, row, i)
        return total

    def kernel(y, z, weight, bias, out):
        sums = cuda.shared.array((rows_of_block, LANES), float32, ALIGNMENT)
        squares = cuda.shared.array((rows_of_block, LANES), float32, ALIGNMENT)
        values = cuda.local.array(held, float32)
        lane, line = cuda.threadIdx.x, cuda.threadIdx.y
        row = cuda.blockIdx.x * rows_of_block + line
        channels = np.int32(y.shape[1])
        inside = row < y.shape[0]
        share = ONE / np.float32(channels)

        total = ZERO
        for v in range(vectors):
            channel = (v * LANES + lane) * wide
            for k in range(wide):
                values[v * wide + k] = ZERO
            if inside and channel < channels:
                fetch(y, row, channel, v, values)
            for k in range(wide):
                total += values[v * wide + k]
        store(sums, line, lane, total)
        cuda.syncthreads()
        mean = add_up(sums, line) * share
        total = ZERO
        for v in range(vectors):
            if (v * LANES + lane) * wide < channels:
                for k in range(wide):
                    centred = values[v * wide + k] - mean
                    total += centred * centred
        store(squares, line, lane, total)
        cuda.syncthreads()
        scale = ONE / np.float32(math.sqrt(add_up(squares, line) * share + EPSILON))
        for v in range(vectors):
            channel = (v * LANES + lane) * wide
            if inside and channel < channels:
                finish(values, v, mean, scale, weight, bias, z, out, row, channel)

    return kernel


def is_able(channels: int) -> bool:
    """Whether a pixel's channels go into the registers of a warp."""
    return channels <= 64 * LANES


def norm_gate(y, z, weight, bias, out, *, stream=0):
    """Launch: out = layer_norm(y) * silu(z), over the columns. y, z, out (rows, C), weight, bias (C,); float32."""
    rows, channels = y.shape
    wide = width(y, z, weight, bias, out)
    kernel = build(norm_gate_kernel, wide, -(-channels // (LANES * wide)), ROWS, threads=LANES * ROWS)
    kernel[-(-rows // ROWS), (LANES, ROWS), stream](y, z, weight, bias, out)
