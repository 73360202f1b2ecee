"""Plain kernels for what no faster one covers, so that every network runs: simple loops.

Maps are (rows, channels), of all pictures one behind the other; every kernel writes its own columns only.

move        a box of values from strides to strides: slices of pixels, joins of rows, sub-bands, layouts
combine     an elementwise function of one map or two; rows of the second may repeat
norm        layer norm over a row's channels, any number of them and any epsilon
gather      rows by a table, or sums of several: a map read off along paths, and laid back
project     each direction's steps times its matrix
analysis    four k x k filters a channel, stride 2: any wavelet; and its adjoint, synthesis
path_scan   SS2D's scan for every order and number of states
scan_rows   the selective scan of sequences whose channels lie side by side

Parallel   256 threads a block, a value (move, analysis, synthesis, project) or a column of 4 rows (combine, gather)
           each; a warp a row (norm); (picture or sequence, channel) a thread in the scans.
Loops      taps, channels or steps; in the scans groups of up to 16 states, kept in registers.
Moves      what is read, once for each use; neighbouring threads are neighbouring channels. Caches do the rest: a tenth
           of what the memory could do is what to expect, less in scans of few pictures.
"""

from __future__ import annotations

import math

import numpy as np
from numba import float32

from mmref.kernels.cuda.device import (
    LOG2_E,
    ONE,
    ZERO,
    device_function,
    exp2,
    gelu,
    load,
    load3,
    relu,
    relu6,
    sigmoid,
    silu,
    softplus,
    store,
)
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.launch import build, no_map, spread

THREADS, EACH = 256, 4
LANES, ROWS = 32, 8   # of norm's blocks
GROUP = 16            # states that a thread of a scan keeps
MAPS = "float32[:, :], float32[:, :]"
MOVE_SIGNATURE = f"void({MAPS}, int64[:, ::1], int32, int32, int32, int32)"
COMBINE_SIGNATURE = f"void({MAPS}, float32[:, :], int32)"
NORM_SIGNATURE = f"void({MAPS}, float32[::1], float32[::1], float32[::1])"
GATHER_SIGNATURE = f"void({MAPS}, int32[:, ::1], int32, int32)"
PROJECT_SIGNATURE = f"void({MAPS}, float32[:, :, ::1], int32)"
WAVELET_SIGNATURE = f"void({MAPS}, float32[:, ::1], int32, int32)"
PATH_SIGNATURE = (f"void({MAPS}, float32[:, :, ::1], float32[:, ::1], float32[:, :, ::1], float32[:, ::1], "
                  f"int32[:, ::1], float32[:, :], int32, int32, int32)")
ROWS_SIGNATURE = f"void({MAPS}, float32[:, :, ::1], {MAPS}, float32[:, ::1], float32[:, :], int32, int32)"


# ------------------------------------------------------------------------------------------------- moving

def move_kernel(add: bool):
    """The kernel that adds to what is there, or replaces it."""

    @device_function
    def place(box, which, image, row, column, channel):
        return (load(box, 0, which) + image * load(box, 1, which) + row * load(box, 2, which)
                + column * load(box, 3, which) + channel * load(box, 4, which))

    def kernel(x, out, box, images, rows, columns, channels):
        item = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        channel, line = item % channels, item // channels
        column, line = line % columns, line // columns
        row, image = line % rows, line // rows
        if image < images:
            value = load(x, place(box, 0, image, row, column, channel), place(box, 1, image, row, column, channel))
            to, along = place(box, 2, image, row, column, channel), place(box, 3, image, row, column, channel)
            store(out, to, along, load(out, to, along) + value if add else value)

    return kernel


def move(x, out, box, *, sizes, add, stream=0):
    """Launch: a box of `sizes` (images, rows, columns, channels) from x to `out`; `add`: added to what is there.

    x and out (rows, C), different memory; float32. box (5, 4) int64: row and column of x, row and column of out where
    the box begins, and then how far each of the four is to the next image, row, column, channel."""
    kernel = build(move_kernel, bool(add), threads=THREADS, signature=MOVE_SIGNATURE)
    kernel[-(-math.prod(sizes) // THREADS), THREADS, stream](x, out, box, *sizes)


FUNCTIONS = {"relu": relu, "relu6": relu6, "sigmoid": sigmoid, "silu": silu, "softplus": softplus, "gelu": gelu}


def combine_kernel(operation: str):
    """The kernel for one of "copy", "relu", "relu6", "sigmoid", "silu", "softplus", "gelu", "add", "multiply"."""
    function = FUNCTIONS.get(operation, relu)

    @device_function
    def one(x, y, length, row, column):
        value = load(x, row, column)
        if operation == "copy":
            return value
        if operation == "add":
            return value + load(y, row // length % y.shape[0], column)
        if operation == "multiply":
            return value * load(y, row // length % y.shape[0], column)
        return function(value)

    def kernel(x, out, y, length):
        lanes, rows = cuda.blockDim.x, cuda.blockDim.y
        slabs = (out.shape[1] + lanes - 1) // lanes
        column = cuda.blockIdx.x % slabs * lanes + cuda.threadIdx.x
        if column >= out.shape[1]:
            return
        start = cuda.blockIdx.x // slabs * (rows * EACH) + cuda.threadIdx.y
        for i in range(EACH):
            row = start + i * rows
            if row < out.shape[0]:
                store(out, row, column, one(x, y, length, row, column))

    return kernel


def combine(x, y, out, *, operation, length, stream=0):
    """Launch: out = operation(x), or of x and y, whose row for row r is r // length % len(y).

    x, out (rows, C), which may be the same; y (count, C), or None for operations of one map; float32."""
    kernel = build(combine_kernel, operation, threads=THREADS, signature=COMBINE_SIGNATURE)
    grid, block = spread(*out.shape, EACH)
    kernel[grid, block, stream](x, out, no_map() if y is None else y, length)


def norm_kernel():
    def kernel(x, out, weight, bias, epsilon):
        sums = cuda.shared.array((ROWS, LANES), float32)
        squares = cuda.shared.array((ROWS, LANES), float32)
        lane, line = cuda.threadIdx.x, cuda.threadIdx.y
        row = cuda.blockIdx.x * ROWS + line
        inside, channels = row < x.shape[0], x.shape[1]
        share = ONE / np.float32(np.int32(channels))
        total = ZERO
        if inside:
            for channel in range(lane, channels, LANES):
                total += load(x, row, channel)
        store(sums, line, lane, total)
        cuda.syncthreads()
        mean = ZERO
        for i in range(LANES):
            mean += load(sums, line, i)
        mean *= share
        total = ZERO
        if inside:
            for channel in range(lane, channels, LANES):
                centred = load(x, row, channel) - mean
                total += centred * centred
        store(squares, line, lane, total)
        cuda.syncthreads()
        variance = ZERO
        for i in range(LANES):
            variance += load(squares, line, i)
        scale = ONE / np.float32(math.sqrt(variance * share + epsilon[0]))
        if inside:
            for channel in range(lane, channels, LANES):
                store(out, row, channel, (load(x, row, channel) - mean) * scale * weight[channel] + bias[channel])

    return kernel


def norm(x, weight, bias, epsilon, out, *, stream=0):
    """Launch: out = layer norm of x over its columns. x, out (rows, C), which may be the same; weight, bias (C,),
    epsilon (1,); float32."""
    kernel = build(norm_kernel, threads=LANES * ROWS, signature=NORM_SIGNATURE)
    kernel[-(-x.shape[0] // ROWS), (LANES, ROWS), stream](x, out, weight, bias, epsilon)


def gather_kernel():
    def kernel(x, out, table, count, x_count):
        lanes, rows = cuda.blockDim.x, cuda.blockDim.y
        slabs = (out.shape[1] + lanes - 1) // lanes
        column = cuda.blockIdx.x % slabs * lanes + cuda.threadIdx.x
        if column >= out.shape[1]:
            return
        start = cuda.blockIdx.x // slabs * (rows * EACH) + cuda.threadIdx.y
        for i in range(EACH):
            row = start + i * rows
            if row < out.shape[0]:
                first, total = row // count * x_count, ZERO
                for k in range(table.shape[0]):
                    source = load(table, k, row % count)
                    if source >= 0:
                        total += load(x, first + source, column)
                store(out, row, column, total)

    return kernel


def gather(x, table, out, *, images, stream=0):
    """Launch: row i of every picture's `out` is the sum over k of the rows table[k, i] of its x, -1 for none of them.

    x (images * any, C), table (K, count) int32, out (images * count, C); float32."""
    kernel = build(gather_kernel, threads=THREADS, signature=GATHER_SIGNATURE)
    grid, block = spread(*out.shape, EACH)
    kernel[grid, block, stream](x, out, table, table.shape[1], x.shape[0] // images)


def project_kernel():
    def kernel(x, out, weight, length):
        item = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        row, column = item // out.shape[1], item % out.shape[1]
        if row < out.shape[0]:
            direction, total = row // length % weight.shape[0], ZERO
            for channel in range(x.shape[1]):
                total += load(x, row, channel) * load3(weight, direction, channel, column)
            store(out, row, column, total)

    return kernel


def project(x, weight, out, *, length, stream=0):
    """Launch: every step times its direction's matrix. x (images * K * length, D), weight (K, D, M) contiguous,
    out (images * K * length, M); float32."""
    kernel = build(project_kernel, threads=THREADS, signature=PROJECT_SIGNATURE)
    kernel[-(-out.shape[0] * out.shape[1] // THREADS), THREADS, stream](x, out, weight, length)


# ----------------------------------------------------------------------------------------------- wavelets

def analysis_kernel(k: int):
    """The kernel for k x k filters."""
    margin = k // 2 - 1

    def kernel(x, out, bank, height, width):
        item = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        at, band = item // out.shape[1], item % out.shape[1]
        if at >= out.shape[0]:
            return
        down, across = (height + 1) // 2, (width + 1) // 2
        picture, top, left = at // (down * across), at // across % down * 2 - margin, at % across * 2 - margin
        total = ZERO
        for a in range(max(0, -top), min(k, height - top)):
            row = (picture * height + top + a) * width + left
            for b in range(max(0, -left), min(k, width - left)):
                total += load(x, row + b, band // 4) * load(bank, band, a * k + b)
        store(out, at, band, total)

    return kernel


def synthesis_kernel(k: int):
    """The kernel for k x k filters."""
    margin = k // 2 - 1

    def kernel(x, out, bank, height, width):
        item = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        at, channel = item // out.shape[1], item % out.shape[1]
        if at >= out.shape[0]:
            return
        down, across = (height + 1) // 2, (width + 1) // 2
        picture, i, j = at // (height * width), at // width % height + margin, at % width + margin
        total = ZERO
        for band in range(4 * channel, 4 * channel + 4):
            for a in range(i % 2, min(k, i + 1), 2):
                row = (i - a) // 2
                for b in range(j % 2, min(k, j + 1), 2):
                    column = (j - b) // 2
                    if row < down and column < across:
                        total += load(x, (picture * down + row) * across + column, band) * load(bank, band, a * k + b)
        store(out, at, channel, total)

    return kernel


def _wavelet(factory, x, bank, out, height, width, k, stream):
    kernel = build(factory, k, threads=THREADS, signature=WAVELET_SIGNATURE)
    kernel[-(-out.shape[0] * out.shape[1] // THREADS), THREADS, stream](x, out, bank, height, width)


def analysis(x, bank, out, *, height, width, kernel, stream=0):
    """Launch: one level of decomposition of maps of height x width. x (images * height * width, C), bank
    (4 * C, kernel * kernel), out (images * ceil(height / 2) * ceil(width / 2), 4 * C); float32."""
    _wavelet(analysis_kernel, x, bank, out, height, width, kernel, stream)


def synthesis(x, bank, out, *, height, width, kernel, stream=0):
    """Launch: the adjoint of `analysis`, x its sub-bands and out its map."""
    _wavelet(synthesis_kernel, x, bank, out, height, width, kernel, stream)


# -------------------------------------------------------------------------------------------------- scans

def scan_functions(group: int, whole: bool):
    """Device functions of a scan's states, a group of them in registers; `whole`: the last group is no smaller."""

    @device_function
    def begin(A, direction, base, states, channel, h, rate):
        for n in range(group):
            h[n], rate[n] = ZERO, ZERO
            if whole or base + n < states:
                rate[n] = load3(A, direction, base + n, channel)

    @device_function
    def advance(h, rate, left, delta, gain, B, b, C, c, row, total):
        """One step: the states of the group, and what they add to the total."""
        for n in range(group):
            if whole or n < left:
                h[n] = exp2(delta * rate[n] * LOG2_E) * h[n] + gain * load(B, row, b + n)
                total += load(C, row, c + n) * h[n]
        return total

    @device_function
    def fade(h, rate, left, delta):
        """A step of zeros."""
        for n in range(group):
            if whole or n < left:
                h[n] = exp2(delta * rate[n] * LOG2_E) * h[n]

    return begin, advance, fade


def path_scan_kernel(group: int, whole: bool):
    """The kernel for groups of `group` states."""
    begin, advance, fade = scan_functions(group, whole)

    def kernel(u, coefficients, dt_weight, dt_bias, A, D, table, out, pixels, rank, states):
        h = cuda.local.array(group, float32)
        rate = cuda.local.array(group, float32)
        slabs = (u.shape[1] + LANES - 1) // LANES
        first, channel = cuda.blockIdx.x // slabs * pixels, cuda.blockIdx.x % slabs * LANES + cuda.threadIdx.x
        if channel >= u.shape[1]:
            return
        for pixel in range(pixels):
            store(out, first + pixel, channel, ZERO)
        for direction in range(table.shape[0]):
            bias = load(dt_bias, direction, channel)
            for base in range(0, max(states, 1), group):
                begin(A, direction, base, states, channel, h, rate)
                c = direction * (rank + 2 * states) + rank
                for step in range(table.shape[1]):
                    pixel = load(table, direction, step)
                    if pixel < 0:  # its coefficients are zeros, too
                        fade(h, rate, states - base, softplus(bias))
                    else:
                        row, delta = first + pixel, bias
                        for r in range(rank):
                            delta += load(coefficients, row, c - rank + r) * load3(dt_weight, direction, r, channel)
                        delta, value, total = softplus(delta), load(u, row, channel), load(out, row, channel)
                        if base == 0:
                            total += load(D, direction, channel) * value
                        store(out, row, channel, advance(h, rate, states - base, delta, delta * value, coefficients,
                                                         c + base, coefficients, c + states + base, row, total))

    return kernel


def scan_rows_kernel(group: int, whole: bool):
    """The kernel for groups of `group` states."""
    begin, advance, _ = scan_functions(group, whole)

    def kernel(u, delta, A, B, C, D, out, length, states):
        h = cuda.local.array(group, float32)
        rate = cuda.local.array(group, float32)
        slabs = (u.shape[1] + LANES - 1) // LANES
        sequence, channel = cuda.blockIdx.x // slabs, cuda.blockIdx.x % slabs * LANES + cuda.threadIdx.x
        if channel >= u.shape[1]:
            return
        direction = sequence % A.shape[0]
        for base in range(0, max(states, 1), group):
            begin(A, direction, base, states, channel, h, rate)
            for row in range(sequence * length, (sequence + 1) * length):
                value, size = load(u, row, channel), load(delta, row, channel)
                total = load(D, direction, channel) * value if base == 0 else load(out, row, channel)
                store(out, row, channel, advance(h, rate, states - base, size, size * value, B, base, C, base, row,
                                                 total))

    return kernel


def _by_groups(factory, states, signature):
    group = max(min(states, GROUP), 1)
    return build(factory, group, states > 0 and states % group == 0, threads=LANES, signature=signature)


def path_scan(u, coefficients, dt_weight, dt_bias, A, D, table, out, *, images, rank, states, stream=0):
    """Launch: SS2D's scan along the paths of `table` (K, steps), int32 pixel numbers or -1 for a pixel of zeros.

    u, out (images * pixels, channels), apart; coefficients (images * pixels, K * (rank + 2 * states)), per direction
    rank for delta, then B, then C; dt_weight (K, rank, channels); A (K, max(states, 1), channels); dt_bias, D
    (K, channels), contiguous; float32."""
    kernel = _by_groups(path_scan_kernel, states, PATH_SIGNATURE)
    kernel[images * -(-u.shape[1] // LANES), LANES, stream](u, coefficients, dt_weight, dt_bias, A, D, table, out,
                                                            u.shape[0] // images, rank, states)


def scan_rows(u, delta, A, B, C, D, out, *, length, states, stream=0):
    """Launch: the selective scan of sequences of `length` rows, K directions of every picture in turn.

    u, delta, out (images * K * length, channels), out apart; B, C (images * K * length, states); A
    (K, max(states, 1), channels), D (K, channels) contiguous; float32."""
    kernel = _by_groups(scan_rows_kernel, states, ROWS_SIGNATURE)
    kernel[u.shape[0] // length * -(-u.shape[1] // LANES), LANES, stream](u, delta, A, B, C, D, out, length, states)
