"""Operations that passes put in the place of several: what one kernel does at once.

Each is written out in the operations that it stands for, so a graph runs in NumPy before and after every pass
(`Graph.run`), and the tests compare the two.
"""

from __future__ import annotations

import numpy as np

from mmref.nn import functional as F
from mmref.nn import shapes
from mmref.nn.operation import operation
from mmref.nn.recurrence import selective_scan
from mmref.nn.scan_order import cross_merge, cross_scan
from mmref.nn.ss2d import project
from mmref.nn.tokens import causal_conv
from mmref.nn.wavelet import HAAR, analysis, synthesis

FUSED: dict[str, object] = {}
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "silu": F.silu}


def _like_the_first(*arrays, **named):
    return next(iter((*arrays, *named.values()))).shape


@operation(lambda x, weight, bias=None, shortcut=None, shortcut2=None, *, stride=1, padding=0, dilation=1,
           activation="none": shapes.conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation),
           registry=FUSED)
def convolution(x, weight, bias=None, shortcut=None, shortcut2=None, *, stride=1, padding=0, dilation=1,
                activation="none"):
    """activation(conv2d(x) + bias + shortcuts): channels mix, every output is one sum."""
    y = F.conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation)
    return _finish(y, shortcut, shortcut2, activation)


@operation(lambda x, weight, bias=None, shortcut=None, shortcut2=None, *, activation="none":
           shapes.linear(x, weight, bias), registry=FUSED)
def product(x, weight, bias=None, shortcut=None, shortcut2=None, *, activation="none"):
    """activation(linear(x) + bias + shortcuts), x (B, features)."""
    return _finish(F.linear(x, weight, bias), shortcut, shortcut2, activation)


def _finish(y, shortcut, shortcut2, activation):
    for other in (shortcut, shortcut2):
        if other is not None:
            y = y + other
    return ACTIVATIONS[activation](y)


@operation(lambda x, weight, bias=None, scale=None, shift=None, *, stride=1, padding=0, activation="none":
           shapes.depthwise_conv2d(x, weight, bias, stride=stride, padding=padding), registry=FUSED)
def depthwise(x, weight, bias=None, scale=None, shift=None, *, stride=1, padding=0, activation="none"):
    """activation(depthwise_conv2d(x) + bias); with `scale` and `shift` (C,) then relu(scale * that + shift)."""
    y = ACTIVATIONS[activation](F.depthwise_conv2d(x, weight, bias, stride=stride, padding=padding))
    return y if scale is None else F.relu(y * F.per_channel(scale) + F.per_channel(shift))


@operation(_like_the_first, registry=FUSED)
def wavelet_branch(x, weight):
    """synthesis(depthwise k x k of analysis(x)) with Haar's filters; weight (4*C, 1, k, k)."""
    bank = np.tile(HAAR[:, None], (x.shape[1], 1, 1, 1)).astype(x.dtype)
    bands = F.depthwise_conv2d(analysis(x, bank), weight, padding=weight.shape[-1] // 2)
    return synthesis(bands, bank, *x.shape[2:])


@operation(_like_the_first, registry=FUSED)
def path_scan(x, coefficients, dt_weight, dt_bias, A, D, *, order):
    """SS2D's scan of a map x (B, D, H, W): every direction of `order` read off, scanned, laid back and added up.

    coefficients (B, K*(R + 2*N), H, W): for each pixel and direction the low-rank step size, then B, then C;
    dt_weight (K, D, R), dt_bias (K, D), A (K, D, N), D (K, D)."""
    K, _, R = dt_weight.shape
    N = A.shape[2]
    u = cross_scan(x, order)
    own = cross_scan(coefficients, order)                                   # (B, K, K*(R + 2*N), L)
    own = np.stack([own[:, k, k * (R + 2 * N):(k + 1) * (R + 2 * N)] for k in range(K)], axis=1)
    dt, B, C = F.split(own, (R, N, N), axis=2)
    delta = F.softplus(project(dt_weight, dt) + dt_bias[:, :, None])
    return cross_merge(selective_scan(u, delta, A, B, C, D), order, *x.shape[2:])


@operation(_like_the_first, registry=FUSED)
def norm_gate(y, weight, bias, z, *, eps=1e-5):
    """layer norm of y over its channels, times SiLU(z)."""
    return F.layer_norm_channels(y, weight, bias, eps) * F.silu(z)


@operation(_like_the_first, registry=FUSED)
def gate(x, values):
    """x times sigmoid(values), values (B, C, 1, 1)."""
    return x * F.sigmoid(values)


@operation(lambda x, weight, bias, *, order, activation="none": shapes.cross_scan(x, order), registry=FUSED)
def path_conv(x, weight, bias, *, order, activation="none"):
    """activation(causal_conv of the map x (B, D, H, W) read off in that order); weight (K, D, k), bias (K, D)."""
    return ACTIVATIONS[activation](causal_conv(cross_scan(x, order), weight, bias))


@operation(lambda u, coefficients, dt_weight, dt_bias, A, D, factor=None, *, order, height, width:
           shapes.cross_merge(u, order, height, width), registry=FUSED)
def sequence_scan(u, coefficients, dt_weight, dt_bias, A, D, factor=None, *, order, height, width):
    """`path_scan` of sequences u (B, K, D, L) that are no pixels of a map, laid back on one and added up, times a
    factor (B, D, H, W); coefficients (B, K, R + 2*N, L), the others as there."""
    R, N = dt_weight.shape[2], A.shape[2]
    dt, B, C = F.split(coefficients, (R, N, N), axis=2)
    delta = F.softplus(project(dt_weight, dt) + dt_bias[:, :, None])
    y = cross_merge(selective_scan(u, delta, A, B, C, D), order, height, width)
    return y if factor is None else y * factor


@operation(lambda x, weight, bias, *, eps=1e-5, keep_axes=False: shapes.global_average_pool(x, keep_axes),
           registry=FUSED)
def norm_mean(x, weight, bias, *, eps=1e-5, keep_axes=False):
    """The mean over the pixels of layer norm of x over its channels."""
    return F.global_average_pool(F.layer_norm_channels(x, weight, bias, eps), keep_axes)
