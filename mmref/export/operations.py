"""The operations of mmref.nn in ONNX, but for the scan's (scans.py): an emitter for each, as lowering.py says.

Letters: B batch, C channels, H x W pixels.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from mmref.export.lowering import PIXELS, STEPS, emits
from mmref.nn import functional as F
from mmref.nn import resize as R
from mmref.nn import transposed, wavelet

# ------------------------------------------------------------------------------------- convolutions, norms, means

@emits(F._conv2d)
def conv2d(g, x, weight, bias=None, *, stride, padding, groups, dilation):
    return _convolution(g, "Conv", (x, weight, bias), stride, [padding] * 4, groups, dilations=[dilation] * 2)


@emits(F.depthwise_conv2d)
def depthwise_conv2d(g, x, weight, bias=None, *, stride, padding):
    return _convolution(g, "Conv", (x, weight, bias), stride, [padding] * 4, weight.shape[0])


@emits(F.depthwise_conv_transpose2d)
def depthwise_conv_transpose2d(g, x, weight, *, groups, stride, padding):
    return _convolution(g, "ConvTranspose", (x, weight), stride, [padding] * 4, groups)


@emits(transposed.conv_transpose2d)
def conv_transpose2d(g, x, weight, bias=None, *, stride, padding):
    return _convolution(g, "ConvTranspose", (x, weight, bias), stride, [padding] * 4, 1)


def _convolution(g, op, operands, stride, pads, groups, **more):
    kernel = operands[1].shape[2:]
    return g.node(op, _given(g, operands), kernel_shape=kernel, strides=[stride] * 2, pads=pads, group=groups, **more)


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


# ------------------------------------------------------------------------------------------- pooling, resizing

@emits(R.resize)
def resize(g, x, height, width, mode):
    sizes = g.sizes(g.axis(x, 0), x.shape[1], height, width)
    return g.node("Resize", [g.take(x), "", "", sizes], **SOURCES[mode])


@emits(R.upsample)
def upsample(g, x, factor, mode):
    scales = g.constant(f"scales/{factor}", np.float32([1, 1, factor, factor]))
    return g.node("Resize", [g.take(x), "", scales], **SOURCES[mode])


SOURCES = {"bilinear": dict(mode="linear", coordinate_transformation_mode="half_pixel"),
           "nearest": dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")}


@emits(R.adaptive_average_pool)
def adaptive_average_pool(g, x, rows, columns):
    """ONNX knows no such thing for sizes that show only when the graph runs: a product with matrices of averages, one
    from the left for the rows and one from the right for the columns."""
    down, across = _averages(g, g.axis(x, 2), rows), _averages(g, g.axis(x, 3), columns)
    return g.node("MatMul", [g.node("MatMul", [down, g.take(x)]), g.transpose(across, 1, 0)])


def _averages(g, length, count):
    """(count, length): in row i, one over its length for the pixels of part i of `mmref.nn.resize.bins`."""
    if isinstance(length, int):
        matrix = np.zeros((count, length), np.float32)
        for i, (start, stop) in enumerate(R.bins(length, count)):
            matrix[i, start:stop] = 1 / (stop - start)
        return g.constant(f"averages/{count}_of_{length}", matrix)
    size, parts = g.sizes(length), g.integers(count)
    first = g.constant(f"parts/{count}", np.arange(count)[:, None])
    start = g.node("Div", [g.node("Mul", [first, size]), parts])
    stop = g.node("Mul", [g.constant(f"parts/{count}_next", np.arange(1, count + 1)[:, None]), size])
    stop = g.node("Div", [g.node("Add", [stop, g.integers(count - 1)]), parts])
    ones = g.node("ConstantOfShape", [size], value=helper.make_tensor("one", TensorProto.INT64, [1], [1]))
    pixel = g.node("CumSum", [ones, g.constant("axis/0", np.int64(0))], exclusive=1)  # 0, 1, ..., without a scalar size
    inside = g.node("And", [g.node("GreaterOrEqual", [pixel, start]), g.node("Less", [pixel, stop])])
    inside, number = (g.node("Cast", [value], to=TensorProto.FLOAT)
                      for value in (inside, g.node("Sub", [stop, start])))
    return g.node("Div", [inside, number])


@emits(R.max_pool2d)
def max_pool2d(g, x, kernel, stride, padding):
    return g.node("MaxPool", [g.take(x)], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4)


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


@emits(F.relu6)
def relu6(g, x):
    bounds = [g.constant(f"clip/{bound}", np.float32(bound)) for bound in (0, 6)]
    return g.each(lambda value: g.node("Clip", [value, *bounds]), g.form(x), x)


@emits(F.silu)
def silu(g, x):
    return g.each(lambda value: g.node("Mul", [value, g.node("Sigmoid", [value])]), g.form(x), x)


@emits(F.flatten)
def flatten(g, x):
    return g.node("Flatten", [g.take(x)])


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
