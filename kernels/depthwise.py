"""Depthwise convolution on channels-last maps: 3x3, 5x5, 7x7, stride 1 and 2, with the activation that follows it; and
the reference's operation, with any filter, stride and padding.

Parallel   (image, vector of 16 channels, band of rows).
Loops      output rows, output pixels, taps.
Moves      an input vector is read k*k times, from the first-level cache; three times for 3x3 of stride 1, whose window
           slides along the row in registers, with the nine taps beside it.
Costs      2 * k*k operations an output: too few for the multiply-add limit, loads are the bottleneck.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from mmref.errors import ShapeError
from mmref.kernels.packing import pack_channels
from mmref.kernels.records import (
    ACTIVATION_LOCAL,
    ACTIVATION_NONE,
    ACTIVATION_RELU,
    ACTIVATION_SILU,
    DEPTHWISE,
    DEPTHWISE_ANY,
)
from mmref.kernels.target import LANES, VECTOR_BYTES, round_up
from mmref.kernels.vector import fma, load, relu, store, store_part, view, zeros
from mmref.kernels.vector_math import silu, silu_each


@njit(error_model="numpy")
def _finish(total, activation, after, shift):
    """The activation of DEPTHWISE."""
    if activation == ACTIVATION_RELU:
        total = relu(total)
    elif activation == ACTIVATION_SILU:
        total = silu(total)
    elif activation == ACTIVATION_LOCAL:  # ReLU, the 1x1 depthwise convolution, and the ReLU that follows the join
        total = relu(fma(relu(total), load(after), load(shift)))
    return total


@njit(error_model="numpy")
def _write(target, total, lanes):
    if lanes == LANES:
        store(target, total)
    else:
        store_part(target, total, lanes)


@njit(error_model="numpy")
def _taps_3x3(weights):
    """Nine vectors, to stay in registers."""
    return (load(weights), load(weights + VECTOR_BYTES), load(weights + 2 * VECTOR_BYTES),
            load(weights + 3 * VECTOR_BYTES), load(weights + 4 * VECTOR_BYTES), load(weights + 5 * VECTOR_BYTES),
            load(weights + 6 * VECTOR_BYTES), load(weights + 7 * VECTOR_BYTES), load(weights + 8 * VECTOR_BYTES))


@njit(error_model="numpy")
def _window_3x3(left, centre, right, taps, bias):
    """The convolution at one pixel, from three columns of three; in two sums, which halves the latency."""
    total, other = fma(left[0], taps[0], bias), centre[0] * taps[1]
    total, other = fma(right[0], taps[2], total), fma(left[1], taps[3], other)
    total, other = fma(centre[1], taps[4], total), fma(right[1], taps[5], other)
    total, other = fma(left[2], taps[6], total), fma(centre[2], taps[7], other)
    return fma(right[2], taps[8], total) + other


@njit(error_model="numpy")
def _above_and_below(row, height, x, line, pitch, zero):
    """(address, distance of pixels) of the rows above and below a row of the map. One outside the map is the vector of
    zeros, again and again."""
    above, above_step, below, below_step = x + (row - 1) * line, pitch, x + (row + 1) * line, pitch
    if row == 0:
        above, above_step = zero, 0
    if row + 1 == height:
        below, below_step = zero, 0
    return above, above_step, below, below_step


@njit(error_model="numpy")
def _rows_3x3(x, first, last, height, width, pitch, weights, bias, out, out_pitch, activation, after, shift, lanes,
              zero):
    """Rows first .. last - 1 of a 3x3 convolution of stride 1."""
    taps = _taps_3x3(weights)
    line = width * pitch
    for row in range(first, last):
        at1 = x + row * line
        at0, step0, at2, step2 = _above_and_below(row, height, x, line, pitch, zero)
        left = zeros(), zeros(), zeros()
        centre = load(at0), load(at1), load(at2)
        for column in range(0, width - 1, 2):  # two at a time
            at0, at1, at2 = at0 + step0, at1 + pitch, at2 + step2
            right = load(at0), load(at1), load(at2)
            beyond = zeros(), zeros(), zeros()
            if column + 2 < width:
                at0, at1, at2 = at0 + step0, at1 + pitch, at2 + step2
                beyond = load(at0), load(at1), load(at2)
            total0 = _window_3x3(left, centre, right, taps, bias)
            total1 = _window_3x3(centre, right, beyond, taps, bias)
            if activation == ACTIVATION_SILU:
                total0, total1 = silu_each((total0, total1))
            else:
                total0 = _finish(total0, activation, after, shift)
                total1 = _finish(total1, activation, after, shift)
            _write(out, total0, lanes)
            _write(out + out_pitch, total1, lanes)
            out += 2 * out_pitch
            left, centre = right, beyond
        if width % 2 == 1:
            total0 = _window_3x3(left, centre, (zeros(), zeros(), zeros()), taps, bias)
            _write(out, _finish(total0, activation, after, shift), lanes)
            out += out_pitch


@njit(error_model="numpy")
def _rows_3x3_stride_2(x, first, last, height, width, pitch, weights, bias, out, out_width, out_pitch, activation,
                       after, shift, lanes, zero):
    """Rows first .. last - 1 of the result of a 3x3 convolution of stride 2."""
    taps = _taps_3x3(weights)
    line = width * pitch
    for row in range(first, last):
        at1 = x + 2 * row * line
        at0, step0, at2, step2 = _above_and_below(2 * row, height, x, line, pitch, zero)
        left = zeros(), zeros(), zeros()
        for column in range(out_width):
            right = zeros(), zeros(), zeros()
            if 2 * column + 1 < width:
                right = load(at0 + step0), load(at1 + pitch), load(at2 + step2)
            total = _window_3x3(left, (load(at0), load(at1), load(at2)), right, taps, bias)
            _write(out, _finish(total, activation, after, shift), lanes)
            out += out_pitch
            left = right
            at0, at1, at2 = at0 + 2 * step0, at1 + 2 * pitch, at2 + 2 * step2


@njit(error_model="numpy")
def _row(x, row, height, width, pitch, k_h, k_w, pad, stride, weights, bias, out, out_width, out_pitch, activation,
         after, shift, lanes):
    """One output row of any filter, padding and stride; taps outside the map are left out."""
    top, bottom = max(0, pad - row * stride), min(k_h, height + pad - row * stride)
    for column in range(out_width):
        left, right = max(0, pad - column * stride), min(k_w, width + pad - column * stride)
        total = bias
        for i in range(top, bottom):
            source = x + ((row * stride + i - pad) * width + column * stride - pad) * pitch
            taps = weights + i * k_w * VECTOR_BYTES
            for j in range(left, right):
                total = fma(load(source + j * pitch), load(taps + j * VECTOR_BYTES), total)
        _write(out + column * out_pitch, _finish(total, activation, after, shift), lanes)


def depthwise(record, thread, threads):
    """Kernel of DEPTHWISE."""
    op = view(record, DEPTHWISE)
    k, stride = op.kernel, op.stride
    items = op.images * op.vectors * op.bands
    for item in range(items * thread // threads, items * (thread + 1) // threads):
        vector, rest = item % op.vectors, item // op.vectors
        image, band = rest % op.images, rest // op.images
        column = vector * VECTOR_BYTES
        x = op.x + image * op.height * op.width * op.pitch + column
        out = op.out + image * op.out_height * op.out_width * op.out_pitch + column
        weights, bias = op.weights + k * k * column, load(op.bias + column)
        after = op.after + column
        shift = after + op.vectors * VECTOR_BYTES
        lanes = LANES
        if vector == op.vectors - 1:
            lanes = op.lanes
        first, last = op.out_height * band // op.bands, op.out_height * (band + 1) // op.bands
        target = out + first * op.out_width * op.out_pitch
        if k == 3 and stride == 1:
            _rows_3x3(x, first, last, op.height, op.width, op.pitch, weights, bias, target, op.out_pitch, op.activation,
                      after, shift, lanes, op.zero)
            continue
        if k == 3 and stride == 2:
            _rows_3x3_stride_2(x, first, last, op.height, op.width, op.pitch, weights, bias, target, op.out_width,
                               op.out_pitch, op.activation, after, shift, lanes, op.zero)
            continue
        for row in range(first, last):
            _row(x, row, op.height, op.width, op.pitch, k, k, k // 2, stride, weights, bias, target, op.out_width,
                 op.out_pitch, op.activation, after, shift, lanes)
            target += op.out_width * op.out_pitch


def depthwise_any(record, thread, threads):
    """Kernel of DEPTHWISE_ANY. Every tap is read at every place, padding or not, as the reference does."""
    op = view(record, DEPTHWISE_ANY)
    items = op.images * op.vectors
    for item in range(items * thread // threads, items * (thread + 1) // threads):
        image, vector = item // op.vectors, item % op.vectors
        column = vector * VECTOR_BYTES
        x = op.x + image * op.height * op.width * op.pitch + column
        weights, bias = op.weights + op.kernel_h * op.kernel_w * column, load(op.bias + column)
        target = op.out + image * op.out_height * op.out_width * op.out_pitch + column
        for row in range(op.out_height):
            _row(x, row, op.height, op.width, op.pitch, op.kernel_h, op.kernel_w, 0, op.stride, weights, bias, target,
                 op.out_width, op.out_pitch, ACTIVATION_NONE, 0, 0, LANES)
            target += op.out_width * op.out_pitch


def depthwise_conv2d(x, weight, bias=None, *, stride: int = 1, padding: int = 0):
    """`mmref.depthwise_conv2d` on these kernels: x (B, C, H, W), weight (C, 1, k_h, k_w), bias (C,) or None.

    Returns (B, C, H', W'), stored channels-last. Values that are not finite spread as in the reference: to every place
    whose filter covers them, and nowhere else. Runs on one thread. The reference has checked the arguments; ShapeError
    for another dtype than float32 and for a filter larger than the padded picture.
    """
    from mmref.kernels.program import run_alone
    if x.dtype != np.float32:
        raise ShapeError(f"x must be float32 for the compiled kernel, got {x.dtype}")
    batch, channels, height, width = x.shape
    k_h, k_w = weight.shape[2:]
    if height + 2 * padding < k_h or width + 2 * padding < k_w:
        raise ShapeError(f"kernel {k_h}x{k_w} is larger than the padded picture {height + 2 * padding}x"
                         f"{width + 2 * padding}")
    out_height, out_width = ((size + 2 * padding - k) // stride + 1 for size, k in ((height, k_h), (width, k_w)))
    taps, lanes = weight.reshape(channels, k_h * k_w), round_up(channels)
    shift = np.zeros((channels, 1), np.float32) if bias is None else bias.reshape(channels, 1)
    out = np.zeros((batch, out_height, out_width, lanes), np.float32)
    fast = k_h == k_w == 3 and padding == 1 and stride in (1, 2)  # makes the zeros around the map itself
    border = 0 if fast else padding
    source = np.zeros((batch, height + 2 * border, width + 2 * border, lanes), np.float32)
    source[:, border:border + height, border:border + width, :channels] = x.transpose(0, 2, 3, 1)
    fields = dict(x=source, pitch=4 * lanes, height=source.shape[1], width=source.shape[2], stride=stride,
                  out_height=out_height, out_width=out_width, weights=pack_channels(taps), bias=pack_channels(shift),
                  out=out, out_pitch=4 * lanes, vectors=lanes // LANES, images=batch)
    if fast:
        kernel, record = "depthwise", DEPTHWISE
        fields |= dict(kernel=3, activation=ACTIVATION_NONE, lanes=LANES, bands=1, zero=np.zeros(LANES, np.float32))
    else:
        kernel, record = "depthwise_any", DEPTHWISE_ANY
        fields |= dict(kernel_h=k_h, kernel_w=k_w)
    if out.size:
        run_alone(kernel, record, fields)
    return out[..., :channels].transpose(0, 3, 1, 2)
