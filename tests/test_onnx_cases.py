"""The node tests that the onnx package ships, on our operations: every case that one of them can express.

A case is a node with its attributes, inputs and the output that ONNX's authors state. `CASES` translates a node into
calls of mmref.nn; where it cannot, it says why. Expected values are held against our float64 result, within what
rounding the inputs to float32 does to it, and so are our own in float32.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from assertions import assert_close, rounding

from mmref.nn import functional as F
from mmref.nn.ss2d import project


class NotOurs(Exception):
    """Why no operation of ours expresses a case."""


def axis_of(attributes, ndim, default=0):
    return attributes.get("axis", default) % ndim


def equal(values, what):
    if len(set(values)) > 1:
        raise NotOurs(f"{what} {values}")
    return values[0]


def beside(x, pads):
    """x (B, C, H, W) in zeros: ONNX lists what goes before every axis, then what goes behind."""
    top, left, bottom, right = pads
    return F.channels_first(F.pad_pixels(F.channels_last(x), top, bottom, left, right))


def conv(attributes, x, weight, bias=None):
    stride = equal(attributes.get("strides", [1, 1]), "strides")
    equal([1, *attributes.get("dilations", [])], "dilations")
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        total = [max(0, (-(-size // stride) - 1) * stride + k - size)
                 for size, k in zip(x.shape[2:], weight.shape[2:], strict=True)]
        less, more = [n // 2 for n in total], [n - n // 2 for n in total]
        pads = more + less if attributes["auto_pad"] == b"SAME_LOWER" else less + more
    else:
        pads = attributes.get("pads", [0] * 4)
    if len(set(pads)) == 1:
        return F.conv2d(x, weight, bias, stride=stride, padding=pads[0], groups=attributes.get("group", 1))
    return F.conv2d(beside(x, pads), weight, bias, stride=stride, groups=attributes.get("group", 1))


def conv_transpose(attributes, x, weight, bias=None):
    """Ours adds up the channels of a group into one: so one call for each channel that a group of ONNX's gives."""
    if x.ndim == 3:  # a row of pixels
        return conv_transpose(attributes, x[:, :, None], weight[:, :, None], bias)[:, :, 0]
    if x.ndim != 4:
        raise NotOurs(f"{x.ndim - 2} dimensions")
    if "output_shape" in attributes or "output_padding" in attributes:
        raise NotOurs("another size of the output")
    stride, groups = equal(attributes.get("strides", [1, 1]), "strides"), attributes.get("group", 1)
    equal([1, *attributes.get("dilations", [])], "dilations")
    parts = [F.depthwise_conv_transpose2d(x, weight[:, m:m + 1], groups=groups, stride=stride)
             for m in range(weight.shape[1])]                               # each (B, groups, H', W')
    y = np.stack(parts, 2).reshape(len(x), -1, *parts[0].shape[2:])
    pads = attributes.get("pads", [0] * 4)
    if attributes.get("auto_pad") == b"SAME_UPPER":
        total = [n - size * stride for n, size in zip(y.shape[2:], x.shape[2:], strict=True)]
        pads = [n // 2 for n in total] + [n - n // 2 for n in total]
    y = y[:, :, pads[0]:y.shape[2] - pads[2], pads[1]:y.shape[3] - pads[3]]
    return y if bias is None else y + F.per_channel(bias)


def batch_norm(attributes, x, weight, bias, mean, variance):
    if attributes.get("training_mode"):
        raise NotOurs("training")
    return F.batch_norm(x, weight, bias, mean, variance, attributes.get("epsilon", 1e-5))


def layer_norm(attributes, x, weight, bias=None):
    """Ours normalises the channels of a pixel: the axes from `axis` on are the channels, those before it a batch."""
    axis = axis_of(attributes, x.ndim, -1)
    channels = int(np.prod(x.shape[axis:]))
    bias = np.zeros_like(weight) if bias is None else bias
    return F.layer_norm_channels(x.reshape(-1, channels, 1, 1), weight.ravel(), bias.ravel(),
                                 attributes.get("epsilon", 1e-5)).reshape(x.shape)


def gemm(attributes, a, b, c=None):
    a = a.T if attributes.get("transA") else a
    b = b if attributes.get("transB") else b.T
    a = a * attributes.get("alpha", 1.0)
    if c is None:
        return F.linear(a, b)
    c = c * attributes.get("beta", 1.0)
    if c.size in (1, len(b)):
        return F.linear(a, b, np.ascontiguousarray(np.broadcast_to(c.ravel(), (len(b),))))
    return F.add(F.linear(a, b), c)


def matmul(attributes, a, b):
    if a.ndim == b.ndim == 2:
        return F.linear(a, b.T)
    if a.ndim == b.ndim == 3 and len(a) == len(b):
        return project(a, b[None])[0]
    if a.ndim == b.ndim == 4 and len(a) == len(b) == 1 and a.shape[1] == b.shape[1]:
        return project(a[0], b)
    raise NotOurs(f"shapes {a.shape} and {b.shape}")


def elementwise(operation):
    def pair(attributes, x, y):
        floats(x)
        ndim = max(x.ndim, y.ndim)
        return operation(*(array.reshape((1,) * (ndim - array.ndim) + array.shape) for array in (x, y)))
    return pair


def floats(*arrays):
    for array in arrays:
        if array.dtype not in (np.float32, np.float64):
            raise NotOurs(f"{array.dtype}")


def swish(attributes, x):
    equal([1.0, attributes.get("alpha", 1.0)], "alpha")
    return F.silu(x)


def concat(attributes, *parts):
    return F.concatenate(*parts, axis=axis_of(attributes, parts[0].ndim))


def split(attributes, x, sizes=None):
    axis, outputs = axis_of(attributes, x.ndim), attributes["outputs"]
    if sizes is None:
        most = -(-x.shape[axis] // outputs)
        sizes = [min(most, x.shape[axis] - most * i) for i in range(outputs)]
    return F.split(x, np.asarray(sizes), axis)


def take_slice(attributes, x, starts, ends, axes=None, steps=None):
    axes = range(len(starts)) if axes is None else [axis % x.ndim for axis in axes]
    for axis, start, stop, step in zip(axes, starts, ends, [1] * len(starts) if steps is None else steps, strict=True):
        if step < 1:
            raise NotOurs("steps backwards")
        start, stop, step = slice(start, stop, step).indices(x.shape[axis])
        x = F.slice_axis(x, axis, start, max(start, stop), step)
    return x


def causal_conv(attributes, x, weight, bias=None, past=None):
    """A depthwise convolution over the steps of a sequence, after what came before: Mamba's."""
    past = np.zeros((*x.shape[:2], weight.shape[2] - 1), x.dtype) if past is None else past
    floats(x)
    y = F.depthwise_conv2d(np.concatenate([past, x], 2)[:, :, None], weight[:, :, None], bias)[:, :, 0]
    return F.silu(y) if attributes.get("activation", b"none") != b"none" else y


CASES = {
    "Conv": conv, "ConvTranspose": conv_transpose, "BatchNormalization": batch_norm, "LayerNormalization": layer_norm,
    "Gemm": gemm, "MatMul": matmul, "Relu": lambda attributes, x: F.relu(x),
    "Sigmoid": lambda attributes, x: F.sigmoid(x), "Softplus": lambda attributes, x: F.softplus(x),
    "Swish": swish, "Add": elementwise(F.add), "Mul": elementwise(F.multiply),
    "GlobalAveragePool": lambda attributes, x: F.global_average_pool(x, keep_axes=True),
    "Concat": concat, "Split": split, "Slice": take_slice, "CausalConvWithState": causal_conv,
}
NEWER = ("Swish", "CausalConvWithState")  # not in every version of onnx that we take


@pytest.fixture(scope="module")
def nodes():
    """{kind of node: cases of one such node} of the onnx package that is installed."""
    pytest.importorskip("onnx", reason="the node tests are those that the onnx package ships")
    from onnx.backend.test.case.node import collect_testcases
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package, about its own cases
        cases = collect_testcases(None)
    found = {}
    for case in cases:
        if len(case.model.graph.node) == 1 and case.model.graph.node[0].op_type in CASES:
            found.setdefault(case.model.graph.node[0].op_type, []).append(case)
    return found


def attributes_of(node):
    from onnx import helper
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


@pytest.mark.parametrize("kind", CASES)
def test_node_cases(nodes, kind):
    """Catches what our other tests share with our code: another meaning of padding, epsilon, groups or of an axis."""
    if kind in NEWER and kind not in nodes:
        pytest.skip(f"this version of onnx has no {kind}")
    mapped, others = [], {}
    for case in nodes[kind]:
        node = case.model.graph.node[0]
        attributes = {**attributes_of(node), "outputs": len(node.output)}
        for given, stated in case.data_sets:
            given = iter(given)
            inputs = [next(given) if name else None for name in node.input]

            def compute(move, inputs=inputs, attributes=attributes):
                moved = [move(array) if array is not None and array.dtype == np.float32 else array for array in inputs]
                result = CASES[kind](attributes, *moved)
                return result if isinstance(result, list) else [result]
            try:
                ours = compute(lambda array: array)
            except NotOurs as reason:
                others[case.name] = str(reason)
                continue
            assert len(ours) == (len(stated) if kind == "Split" else 1)  # norms state their statistics as well
            for i, got in enumerate(ours):
                truth, limit = rounding(lambda move, i=i: compute(move)[i])
                assert_close(got, truth, limit, dtype=np.float32)
                assert_close(np.asarray(stated[i]), truth, limit, dtype=np.float32)
            mapped.append(case.name)
    print(f"{kind}: {len(mapped)} of {len(nodes[kind])} cases; not ours: {others}")
    assert mapped, f"none of onnx's {len(nodes[kind])} cases of {kind} could be expressed: {others}"
