"""What networks that scan rows of tokens need, as plain kernels: simple loops.

path_conv      a map read off along paths and convolved along the steps, then SiLU; or sequences as they lie
sequence_scan  the scan of sequences with step sizes inside, laid back on the map, times another map
rms_norm       x over the root of its mean square, times a weight
rotary         pairs of channels turned by an angle
row_stats      mean and 1 / deviation of every row, for norm_mean
norm_mean      the mean over the pixels of a layer norm, which is never written

Parallel   256 threads a block, a value (path_conv) or a pair of them (rotary) each; a warp a row (rms_norm, row_stats);
           (picture, channel) a thread in sequence_scan and norm_mean.
Loops      taps, channels, steps; a scan's groups of up to 16 states are kept in registers.
Moves      as in plain.py: what is read, once for each use, and caches do the rest.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numba import float32

from mmref.kernels.cuda.device import ONE, ZERO, device_function, load, load3, silu, softplus, store
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build, no_map
from mmref.kernels.cuda.plain import GROUP, LANES, MAPS, ROWS, THREADS, scan_functions

CONV_SIGNATURE = f"void({MAPS}, float32[:, :, ::1], int32[:, ::1], int32, int32)"
SCAN_SIGNATURE = (f"void({MAPS}, float32[:, :, ::1], float32[:, ::1], float32[:, :, ::1], float32[:, ::1], "
                  f"int32[:, ::1], {MAPS}, int32, int32, int32)")
RMS_SIGNATURE = f"void({MAPS}, float32[::1], float32[::1])"
ROTARY_SIGNATURE = f"void({MAPS}, {MAPS}, int32)"
STATS_SIGNATURE = f"void({MAPS}, float32[::1])"
MEAN_SIGNATURE = f"void({MAPS}, float32[:, :], float32[::1], float32[::1], int32)"


def path_conv_kernel(by_path: bool, active: bool):
    """The kernel that reads a map along a table's paths, or sequences as they lie; `active`: with SiLU."""
    def kernel(x, out, weight, table, length, pixels):
        item = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        row, channel = item // out.shape[1], item % out.shape[1]
        if row < out.shape[0]:
            taps, sequence, step = weight.shape[1] - 1, row // length, row % length
            direction, picture = sequence % weight.shape[0], sequence // weight.shape[0]
            total = load3(weight, direction, taps, channel)
            for tap in range(max(0, taps - 1 - step), taps):
                source = row - (taps - 1 - tap)
                if by_path:
                    source = load(table, direction, step - (taps - 1 - tap))
                    if source >= 0:
                        total += load3(weight, direction, tap, channel) * load(x, picture * pixels + source, channel)
                else:
                    total += load3(weight, direction, tap, channel) * load(x, source, channel)
            store(out, row, channel, silu(total) if active else total)

    return kernel


def path_conv(x, weight, table, out, *, length, images, active, stream=0):
    """Launch: a convolution along the steps of K sequences a picture. x (images * pixels, D), read along `table`
    (K, length) int32, -1 for a pixel of zeros, or with None (images * K * length, D) itself; weight (K, taps + 1, D)
    contiguous, the bias last; out (images * K * length, D); float32."""
    kernel = build(path_conv_kernel, table is not None, bool(active), threads=THREADS, signature=CONV_SIGNATURE)
    kernel[-(-out.shape[0] * out.shape[1] // THREADS), THREADS, stream](
        x, out, weight, no_table() if table is None else table, length, x.shape[0] // images)


@lru_cache(maxsize=1)
def no_table():
    """Stands for a table that a kernel was built not to read."""
    return cuda.to_device(np.zeros((1, 1), np.int32))


def sequence_scan_kernel(group: int, whole: bool, gated: bool):
    """The kernel for groups of `group` states; `gated`: times a map."""
    begin, advance, _ = scan_functions(group, whole)

    @device_function
    def one_step(u, coefficients, dt_weight, direction, row, channel, rank, bias):
        delta = bias
        for r in range(rank):
            delta += load(coefficients, row, r) * load3(dt_weight, direction, r, channel)
        return softplus(delta), load(u, row, channel)

    def kernel(u, coefficients, dt_weight, dt_bias, A, D, table, out, factor, pixels, rank, states):
        h = cuda.local.array(group, float32)
        rate = cuda.local.array(group, float32)
        slabs = (u.shape[1] + LANES - 1) // LANES
        picture, channel = cuda.blockIdx.x // slabs, cuda.blockIdx.x % slabs * LANES + cuda.threadIdx.x
        if channel >= u.shape[1]:
            return
        first = picture * pixels
        for pixel in range(pixels):
            store(out, first + pixel, channel, ZERO)
        for direction in range(table.shape[0]):
            bias = load(dt_bias, direction, channel)
            for base in range(0, max(states, 1), group):
                begin(A, direction, base, states, channel, h, rate)
                for step in range(table.shape[1]):
                    row = (picture * table.shape[0] + direction) * table.shape[1] + step
                    delta, value = one_step(u, coefficients, dt_weight, direction, row, channel, rank, bias)
                    total = load(D, direction, channel) * value if base == 0 else ZERO
                    total = advance(h, rate, states - base, delta, delta * value, coefficients, rank + base,
                                    coefficients, rank + states + base, row, total)
                    pixel = load(table, direction, step)
                    if pixel >= 0:
                        store(out, first + pixel, channel, load(out, first + pixel, channel) + total)
        if gated:
            for pixel in range(pixels):
                store(out, first + pixel, channel,
                      load(out, first + pixel, channel) * load(factor, first + pixel, channel))

    return kernel


def sequence_scan(u, coefficients, dt_weight, dt_bias, A, D, table, factor, out, *, images, rank, states, stream=0):
    """Launch: the scan of K sequences a picture, laid back along `table` (K, length), int32 pixel numbers or -1, added
    up, and times `factor` where it is not None.

    u (images * K * length, D), coefficients (images * K * length, rank + 2 * states): rank for delta, then B, then C;
    the parameters as of `plain.path_scan`; factor, out (images * pixels, D), apart; float32."""
    group = max(min(states, GROUP), 1)
    kernel = build(sequence_scan_kernel, group, states > 0 and states % group == 0, factor is not None, threads=LANES,
                   signature=SCAN_SIGNATURE)
    kernel[images * -(-u.shape[1] // LANES), LANES, stream](
        u, coefficients, dt_weight, dt_bias, A, D, table, out, no_map() if factor is None else factor,
        out.shape[0] // images, rank, states)


# ---------------------------------------------------------------------------------------------------- rows

@device_function
def row_sum(sums, line, lane, value):
    """The sum of a warp's values, in one order, for all of them. All threads of the block must call it."""
    cuda.syncthreads()
    store(sums, line, lane, value)
    cuda.syncthreads()
    total = ZERO
    for i in range(LANES):
        total += load(sums, line, i)
    return total


def rms_norm_kernel():
    def kernel(x, out, weight, epsilon):
        sums = cuda.shared.array((ROWS, LANES), float32)
        lane, line = cuda.threadIdx.x, cuda.threadIdx.y
        row, channels, total = cuda.blockIdx.x * ROWS + line, x.shape[1], ZERO
        if row < x.shape[0]:
            for channel in range(lane, channels, LANES):
                total += load(x, row, channel) * load(x, row, channel)
        square = row_sum(sums, line, lane, total) / np.float32(np.int32(channels))
        scale = ONE / np.float32(math.sqrt(square + epsilon[0]))
        if row < x.shape[0]:
            for channel in range(lane, channels, LANES):
                store(out, row, channel, load(x, row, channel) * scale * weight[channel])

    return kernel


def rms_norm(x, weight, epsilon, out, *, stream=0):
    """Launch: out = x over the root of its columns' mean square plus epsilon (1,), times weight (C,). x, out (rows, C),
    which may be the same; float32."""
    kernel = build(rms_norm_kernel, threads=LANES * ROWS, signature=RMS_SIGNATURE)
    kernel[-(-x.shape[0] // ROWS), (LANES, ROWS), stream](x, out, weight, epsilon)


def row_stats_kernel():
    def kernel(x, out, epsilon):
        sums = cuda.shared.array((ROWS, LANES), float32)
        lane, line = cuda.threadIdx.x, cuda.threadIdx.y
        row, channels, total = cuda.blockIdx.x * ROWS + line, x.shape[1], ZERO
        size = np.float32(np.int32(channels))
        if row < x.shape[0]:
            for channel in range(lane, channels, LANES):
                total += load(x, row, channel)
        mean, total = row_sum(sums, line, lane, total) / size, ZERO
        if row < x.shape[0]:
            for channel in range(lane, channels, LANES):
                centred = load(x, row, channel) - mean
                total += centred * centred
        variance = row_sum(sums, line, lane, total) / size
        if row < x.shape[0] and lane == 0:
            store(out, row, 0, mean)
            store(out, row, 1, ONE / np.float32(math.sqrt(variance + epsilon[0])))

    return kernel


def row_stats(x, epsilon, out, *, stream=0):
    """Launch: out (rows, 2) = the mean of x's (rows, C) columns and 1 / sqrt(variance + epsilon (1,)); float32."""
    kernel = build(row_stats_kernel, threads=LANES * ROWS, signature=STATS_SIGNATURE)
    kernel[-(-x.shape[0] // ROWS), (LANES, ROWS), stream](x, out, epsilon)


def norm_mean_kernel():
    def kernel(x, out, stats, weight, bias, length):
        slabs = (x.shape[1] + LANES - 1) // LANES
        picture, channel = cuda.blockIdx.x // slabs, cuda.blockIdx.x % slabs * LANES + cuda.threadIdx.x
        if channel >= x.shape[1]:
            return
        total = ZERO
        for start in range(0, length, 64):  # so that the error does not grow with the rows
            part = ZERO
            for row in range(picture * length + start, picture * length + min(start + 64, length)):
                part += (load(x, row, channel) - load(stats, row, 0)) * load(stats, row, 1)
            total += part
        store(out, picture, channel, total / np.float32(np.int32(length)) * weight[channel] + bias[channel])

    return kernel


def norm_mean(x, stats, weight, bias, out, *, length, stream=0):
    """Launch: out (images, C) = the mean over `length` rows of (x - stats[:, 0]) stats[:, 1], times weight plus bias
    (C,). x (images * length, C), stats (images * length, 2); float32."""
    kernel = build(norm_mean_kernel, threads=LANES, signature=MEAN_SIGNATURE)
    kernel[out.shape[0] * -(-x.shape[1] // LANES), LANES, stream](x, out, stats, weight, bias, length)


def rotary_kernel():
    def kernel(x, out, cos, sin, count):
        item = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        pairs = x.shape[1] // 2
        row, channel = item // pairs, item % pairs * 2
        if row < x.shape[0]:
            angle, first, second = row % count, load(x, row, channel), load(x, row, channel + 1)
            store(out, row, channel, first * load(cos, angle, channel) - second * load(sin, angle, channel))
            turned = first * load(sin, angle, channel + 1)
            store(out, row, channel + 1, second * load(cos, angle, channel + 1) + turned)

    return kernel


def rotary(x, cos, sin, out, *, stream=0):
    """Launch: pairs of x's columns turned by the angles of row r % len(cos). x, out (rows, C), which may be the same;
    cos, sin (count, C); float32."""
    kernel = build(rotary_kernel, threads=THREADS, signature=ROTARY_SIGNATURE)
    kernel[-(-x.shape[0] * x.shape[1] // 2 // THREADS), THREADS, stream](x, out, cos, sin, cos.shape[0])
