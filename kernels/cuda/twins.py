"""The CUDA launchers in plain NumPy: same names, same arguments, the reference's functions on (rows, channels) maps.

They are what a kernel is compared with, and in a kernel's place they show whether the plan hands over the right things.
Arrays are NumPy's, or the simulator's.
"""

from __future__ import annotations

import numpy as np

from mmref.nn import functional as F
from mmref.nn.recurrence import selective_scan
from mmref.nn.wavelet import analysis, synthesis

HAAR = np.array([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]], np.float32) / 2


def host(array):
    return getattr(array, "_ary", array)


def pictures(x, images, height, width):
    """Rows -> (images, channels, height, width)."""
    return host(x).reshape(images, height, width, -1).transpose(0, 3, 1, 2)


def rows(x):
    """(images, channels, height, width) -> rows."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])


def depthwise(x, weight, bias, out, *, images, height, width, kernel, stride=1, activation="none", after=None,
              stream=0):
    taps = host(weight).T.reshape(-1, 1, kernel, kernel)
    y = rows(F.depthwise_conv2d(pictures(x, images, height, width), taps, host(bias), stride=stride,
                                padding=kernel // 2))
    if activation == "local":
        scale, shift = host(after)
        y = F.relu(F.relu(y) * scale + shift)
    elif activation != "none":
        y = {"relu": F.relu, "silu": F.silu}[activation](y)
    host(out)[...] = y


def scan(u, coefficients, dt_weight, dt_bias, A, D, out, *, images, length, rank, stream=0):
    both = host(u).reshape(images, length, -1).swapaxes(1, 2)                        # (images, D, L)
    sequences = np.stack([both, both[:, :, ::-1]], 1)
    c = host(coefficients).reshape(images, length, 2, rank + 2).transpose(0, 2, 3, 1)  # (images, 2, rank + 2, L)
    c = np.stack([c[:, 0], c[:, 1, :, ::-1]], 1)
    dt = np.einsum("krd,bkrl->bkdl", host(dt_weight), c[:, :, :rank]) + host(dt_bias)[:, :, None]
    y = selective_scan(sequences, F.softplus(dt), host(A)[:, :, None], c[:, :, rank:rank + 1], c[:, :, rank + 1:],
                       host(D))
    host(out)[...] = (y[:, 0] + y[:, 1, :, ::-1]).swapaxes(1, 2).reshape(images * length, -1)


def wavelet_branch(x, weight, out, *, images, height, width, kernel, stream=0):
    pixels, weight = pictures(x, images, height, width), host(weight)
    bank = np.tile(HAAR[:, None], (pixels.shape[1], 1, 1, 1))
    taps = 4 * weight.transpose(2, 0, 1).reshape(-1, 1, kernel, kernel)              # channel 4 * c + band
    bands = F.depthwise_conv2d(analysis(pixels, bank), taps, padding=kernel // 2)
    host(out)[...] = rows(synthesis(bands, bank, height, width))


def norm_gate(y, z, weight, bias, out, *, stream=0):
    normed = F.layer_norm_channels(host(y).T[None, :, :, None], host(weight), host(bias))[0, :, :, 0].T
    host(out)[...] = normed * F.silu(host(z))


def mean(x, out, *, images, length, stream=0):
    host(out)[...] = host(x).reshape(images, length, -1).mean(1, dtype=np.float32)


def gate(x, gates, *, images, length, stream=0):
    x = host(x)
    x[...] = (x.reshape(images, length, -1) * F.sigmoid(host(gates))[:, None]).reshape(x.shape)


def stem(x, weight, bias, out, *, images, height, width, c_in, relu, nchw, stream=0):
    x = host(x).reshape(images, c_in, height, width) if nchw else pictures(x, images, height, width)
    taps = host(weight).reshape(3, 3, c_in, -1).transpose(3, 2, 0, 1)
    y = F.conv2d(x, taps, host(bias), stride=2, padding=1)
    host(out)[...] = rows(F.relu(y) if relu else y)


def copy_relu(x, out, *, stream=0):
    host(out)[...] = F.relu(host(x))


def epilogue(x, bias, *, residual=None, residual2=None, relu=False, out=None, stream=0):
    y = host(x) if bias is None else host(x) + host(bias)
    for more in (residual, residual2):
        if more is not None:
            y = y + host(more)
    host(x if out is None else out)[...] = F.relu(y) if relu else y


def matmul(a, weight, bias, out, *, residual=None, residual2=None, relu=False, stream=0):
    epilogue(host(a) @ host(weight), bias, residual=residual, residual2=residual2, relu=relu, out=out)


def to_channels_first(x, out, *, images, pixels, stream=0):
    host(out)[...] = host(x).reshape(images, pixels, -1).swapaxes(1, 2)


def to_contiguous(x, out, *, stream=0):
    host(out)[...] = host(x)


LAUNCHERS = {"depthwise": depthwise, "scan": scan, "wavelet_branch": wavelet_branch, "norm_gate": norm_gate,
             "mean": mean, "gate": gate, "stem": stem, "copy_relu": copy_relu, "epilogue": epilogue, "matmul": matmul,
             "to_channels_first": to_channels_first}
