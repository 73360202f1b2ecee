"""The operations of mmref.nn in ONNX, but for the scan's (scans.py): an emitter for each, as lowering.py says.

Letters: B batch, C channels, H x W pixels.
"""

from __future__ import annotations

from mmref.export.lowering import PIXELS, STEPS, emits
from mmref.nn import functional as F
from mmref.nn import transposed, wavelet

# ------------------------------------------------------------------------------------- convolutions, norms, means

@emits(F._conv2d)
def conv2d(g, x, weight, bias=None, *, stride, padding, groups):
    return _convolution(g, "Conv", (x, weight, bias), stride, [padding] * 4, groups)


@emits(F.depthwise_conv2d)
def depthwise_conv2d(g, x, weight, bias=None, *, stride, padding):
    return _convolution(g, "Conv", (x, weight, bias), stride, [padding] * 4, weight.shape[0])


@emits(F.depthwise_conv_transpose2d)
def depthwise_conv_transpose2d(g, x, weight, *, groups, stride, padding):
    return _convolution(g, "ConvTranspose", (x, weight), stride, [padding] * 4, groups)


@emits(transposed.conv_transpose2d)
def conv_transpose2d(g, x, weight, bias=None, *, stride, padding):
    return _convolution(g, "ConvTranspose", (x, weight, bias), stride, [padding] * 4, 1)


def _convolution(g, op, operands, stride, pads, groups):
    kernel = operands[1].shape[2:]
    return g.node(op, _given(g, operands), kernel_shape=kernel, strides=[stride] * 2, pads=pads, group=groups)


def _given(g, operands):
    return [g.take(operand) for operand in operands if operand is not None]


@emits(F.linear)
def linear(g, x, weight, bias=None):
    return g.node("Gemm", _given(g, (x, weight, bias)), transB=1)


@emits(F.batch_norm)
def batch_norm(g, x, weight, bias, running_mean, running_var, eps):
    return g.node("BatchNormalization", _given(g, (x, weight, bias, running_mean, running_var)), epsilon=eps)


@emits(F.layer_norm_channels)
def layer_norm_channels(g, x, weight, bias, eps):
    values = [g.take(x, PIXELS), g.take(weight), g.take(bias)]
    return PIXELS, g.node("LayerNormalization", values, axis=-1, epsilon=eps)


@emits(F.global_average_pool)
def global_average_pool(g, x, keep_axes):
    means = g.node("GlobalAveragePool", [g.take(x)])
    return means if keep_axes else g.node("Flatten", [means])


# ------------------------------------------------------------------------------------- pointwise, taking apart

def elementwise(operation, op):
    @emits(operation)
    def emit(g, **operands):
        return g.each(lambda *values: g.node(op, values), g.form(*operands.values()), *operands.values())


elementwise(F.relu, "Relu")
elementwise(F.sigmoid, "Sigmoid")
elementwise(F.softplus, "Softplus")
elementwise(F.add, "Add")
elementwise(F.multiply, "Mul")


@emits(F.silu)
def silu(g, x):
    return g.each(lambda value: g.node("Mul", [value, g.node("Sigmoid", [value])]), g.form(x), x)


@emits(F.slice_axis)
def slice_axis(g, x, axis, start, stop, step):
    return g.sliced(x, axis, start, stop, step)


@emits(F.concatenate)
def concatenate(g, *parts, axis):
    form = g.form(*parts)
    if form == STEPS and axis == 1:
        return form, [value for part in parts for value in g.take(part, form)]
    position = g.position(axis, form)
    return g.each(lambda *values: g.concatenate(values, position), form, *parts)


# -------------------------------------------------------------------------------------------------- wavelets

@emits(wavelet.analysis)
def analysis(g, x, bank):
    """One row and column of padding more than an even map needs: the stride of 2 never reaches them there."""
    margin = bank.shape[-1] // 2 - 1
    pads = [margin, margin, margin + 1, margin + 1]
    return _convolution(g, "Conv", (x, bank), 2, pads, bank.shape[0] // 4)


@emits(wavelet.synthesis)
def synthesis(g, bands, bank, height, width):
    margin = bank.shape[-1] // 2 - 1
    full = _convolution(g, "ConvTranspose", (bands, bank), 2, [margin] * 4, bank.shape[0] // 4)
    return g.cropped(full, height, width)


@emits(wavelet.low_low)
def low_low(g, bands):
    return g.sliced(bands, 1, 0, bands.shape[1], 4)


@emits(wavelet.add_to_low_low)
def add_to_low_low(g, bands, low):
    channels, whole = low.shape[1], g.take(bands)
    apart = g.node("Reshape", [whole, g.integers(0, channels, 4, -1)])      # (B, C, 4, H*W)
    first, rest = g.split(apart, [1, 3], 2)
    first = g.node("Add", [first, g.node("Reshape", [g.take(low), g.integers(0, channels, 1, -1)])])
    return g.node("Reshape", [g.concatenate([first, rest], 2), g.sizes(*(g.axis(bands, i) for i in range(4)))])
