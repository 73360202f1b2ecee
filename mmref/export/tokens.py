"""The operations of networks that scan rows of tokens (mmref/nn/tokens.py) in ONNX: an emitter for each.

Letters: B batch, C channels, H x W pixels, L steps.
"""

from __future__ import annotations

import numpy as np

from mmref.export.lowering import PIXELS, STEPS, emits
from mmref.export.scans import padded_to
from mmref.nn import tokens


@emits(tokens.gelu)
def gelu(g, x):
    """0.5 x (1 + erf(x / sqrt(2))): opset 17 has no operation for it, and newer runtimes fuse this one."""
    half, root = (g.constant(f"float/{name}", np.float32(value)) for name, value in (("half", 0.5), ("root", 0.5**0.5)))
    one = g.constant("float/one", np.float32(1))

    def of(value):
        share = g.node("Add", [g.node("Erf", [g.node("Mul", [value, root])]), one])
        return g.node("Mul", [g.node("Mul", [value, half]), share])
    return g.each(of, g.form(x), x)


@emits(tokens.rms_norm_channels)
def rms_norm_channels(g, x, weight, eps):
    value = g.take(x, PIXELS)
    squares = g.node("ReduceSum", [g.node("Mul", [value, value]), g.integers(-1)], keepdims=1)
    share = g.constant(f"float/one_{x.shape[1]}th", np.float32(1 / x.shape[1]))
    added = g.node("Add", [g.node("Mul", [squares, share]), g.constant(f"float/eps_{eps}", np.float32(eps))])
    return PIXELS, g.node("Mul", [g.node("Div", [value, g.node("Sqrt", [added])]), g.take(weight)])


@emits(tokens.causal_conv)
def causal_conv(g, sequences, weight, bias):
    """A convolution of (B, C, L) for each direction, with padding before the first step only."""
    K, channels, taps = weight.shape
    results = []
    for k, value in zip(range(K), g.take(sequences, STEPS), strict=True):
        filters = g.known(weight, f"[{k}]", lambda array, k=k: array[k][:, None])
        shift = g.known(bias, f"[{k}]", lambda array, k=k: array[k])
        y = g.node("Conv", [g.transpose(value, 1, 2, 0), filters, shift], kernel_shape=[taps], strides=[1],
                   pads=[taps - 1, 0], group=channels)
        results.append(g.transpose(y, 2, 0, 1))
    return STEPS, results


@emits(tokens.rotary)
def rotary(g, x, cos, sin):
    """The channels of each pair exchanged by a table; the sign of the first lies in sin."""
    C = x.shape[1]
    exchanged = g.node("Gather", [g.take(x, PIXELS), g.constant(f"ints/pairs_{C}", np.arange(C) ^ 1)], axis=3)
    sign = np.where(np.arange(C) % 2, 1, -1)
    signed = g.known(sin, "signed", lambda array: (array.transpose(2, 3, 0, 1) * sign).astype(array.dtype))
    return PIXELS, g.node("Add", [g.node("Mul", [g.take(x, PIXELS), g.take(cos, PIXELS)]),
                                  g.node("Mul", [exchanged, signed])])


@emits(tokens.pad_to_multiple)
def pad_to_multiple(g, x, side):
    return padded_to(g, x, side)
