"""SS2D: the two-dimensional selective scan, MobileMamba's token mixer (paper section 3.2; upstream `SS2D`).

Letters: B batch, C channels, D = ssm_ratio*C inner channels, H x W pixels, L = H*W, K scan directions,
N = d_state states per channel, R = ceil(C/16) the rank of the step-size projection.
"""

from __future__ import annotations

import math

import numpy as np

from mmref.nn import functional as F
from mmref.nn import shapes
from mmref.nn.layer import Conv2d, ConvBN, Layer, LayerNorm
from mmref.nn.operation import operation
from mmref.nn.paths import directions, paths
from mmref.nn.recurrence import selective_scan
from mmref.nn.scan_order import cross_merge, cross_scan


class SS2D(Layer):
    """(B, C, H, W) -> (B, C, H, W). A gated scan: half of in_proj is scanned, the other half gates the result."""

    def __init__(self, dim, d_state=1, ssm_ratio=2, order="bidirectional"):
        super().__init__()
        D, R, K = ssm_ratio * dim, math.ceil(dim / 16), len(directions(order))
        self.inner, self.d_state, self.rank, self.order = D, d_state, R, order
        self.declare(x_proj_weight=(K, R + 2 * d_state, D), Ds=(K * D,), A_logs=(K * D, d_state),
                     dt_projs_weight=(K, D, R), dt_projs_bias=(K, D))
        self.in_proj = ConvBN(dim, 2 * D)
        self.conv2d = Conv2d(D, D, 3, groups=D, bias=True)
        self.out_norm = LayerNorm(D)
        self.out_proj = ConvBN(D, dim)

    def forward(self, x):
        x, z = F.split(self.in_proj(x), (self.inner, self.inner))           # each (B, D, H, W)
        x = F.silu(self.conv2d(x))
        y = self.out_norm(self.scan(x))
        return self.out_proj(y * F.silu(z))

    def scan(self, x):
        """(B, D, H, W) -> (B, D, H, W): scanned in every direction with coefficients computed from x itself."""
        K, D, R, N = len(directions(self.order)), self.inner, self.rank, self.d_state
        u = cross_scan(x, self.order)                                       # (B, K, D, L)
        dt, B, C = F.split(project(self.x_proj_weight, u), (R, N, N), axis=2)  # (B, K, R or N, L)
        # A rank-R step size per pixel, lifted to one for each channel; softplus keeps every step positive.
        delta = F.softplus(project(self.dt_projs_weight, dt) + self.dt_projs_bias[None, :, :, None])  # (B, K, D, L)
        A = -np.exp(self.A_logs).reshape(K, D, N)                           # negative: old states fade
        y = selective_scan(u, delta, A, B, C, self.Ds.reshape(K, D))        # (B, K, D, L)
        merged = cross_merge(y, self.order, *x.shape[2:])                   # (B, D, H, W)
        for name, value in (("u", u), ("delta", delta), ("A", A), ("B", B), ("C", C), ("y", y), ("merged", merged)):
            self.record(value, name)
        return merged

    def initial(self, parameter, rng):
        shape = self.shapes[parameter]
        if parameter == "Ds":
            return np.ones(shape)
        if parameter == "A_logs":  # the n-th state of a channel starts with decay rate n
            return np.log(np.broadcast_to(np.arange(1, self.d_state + 1), shape))
        if parameter == "dt_projs_bias":  # steps log-uniform in 1e-3..1e-1, through the inverse of softplus
            dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), shape))
            return dt + np.log(-np.expm1(-dt))
        return rng.standard_normal(shape) * shape[-1] ** -0.5

    def macs(self, y):
        weights = self.shapes["x_proj_weight"], self.shapes["dt_projs_weight"]
        return sum(math.prod(shape) for shape in weights) * paths(self.order, *y.shape[2:]).shape[1]


@operation(shapes.project)
def project(weight, sequences):
    """Multiply every step by its direction's matrix: weight (K, M, D), sequences (B, K, D, L) -> (B, K, M, L).

    Written with the channels as the last axis of both factors, so that the result is stored channels-last."""
    return (sequences.swapaxes(2, 3) @ weight.swapaxes(1, 2)).swapaxes(2, 3)
