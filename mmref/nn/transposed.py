"""Transposed convolution: a map enlarged by learned filters.

Letters: B batch, C channels, H x W pixels, k kernel side.
"""

from __future__ import annotations

import numpy as np

from mmref.nn import shapes
from mmref.nn.functional import channels_first, channels_last
from mmref.nn.operation import operation


@operation(shapes.conv_transpose2d)
def conv_transpose2d(x, weight, bias=None, *, stride: int = 1, padding: int = 0):
    """Every pixel spreads its filters over the result, which adds them up; `torch.nn.functional.conv_transpose2d`.

    x (B, C_in, H, W); weight (C_in, C_out, k_h, k_w); bias (C_out,) or None. Returns (B, C_out,
    (H-1)*stride - 2*padding + k_h, likewise for W), of x's dtype. Where k = stride the filters do not overlap: a pixel
    becomes k x k of them. Raises ShapeError where shapes or dtypes disagree or nothing would be left, ValueProblem for
    a stride or padding that is not an integer or too small.
    """
    (c_out, k_h, k_w), pixels = weight.shape[1:], channels_last(x)          # (B, H, W, C_in)
    batch, height, width, _ = pixels.shape
    full = np.zeros((batch, (height - 1) * stride + k_h, (width - 1) * stride + k_w, c_out), x.dtype)
    for i in range(k_h):
        for j in range(k_w):
            rows = slice(i, i + stride * (height - 1) + 1, stride)
            columns = slice(j, j + stride * (width - 1) + 1, stride)
            full[:, rows, columns] += pixels @ weight[:, :, i, j]
    full = full[:, padding:full.shape[1] - padding, padding:full.shape[2] - padding]
    return channels_first(full if bias is None else full + bias)
