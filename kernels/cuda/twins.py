"""The CUDA launchers in plain NumPy: same names, same arguments, the reference's functions on (rows, channels) maps.

They are what a kernel is compared with, and in a kernel's place they show whether the plan hands over the right things.
Arrays are NumPy's, or the simulator's.
"""

from __future__ import annotations

import numpy as np

from mmref.nn import functional as F
from mmref.nn import resize as maps_of
from mmref.nn import tokens, wavelet
from mmref.nn.recurrence import selective_scan
from mmref.nn.wavelet import HAAR


def host(array):
    return getattr(array, "_ary", array)


def pictures(x, images, height, width):
    """Rows -> (images, channels, height, width)."""
    return host(x).reshape(images, height, width, -1).transpose(0, 3, 1, 2)


def rows(x):
    """(images, channels, height, width) -> rows."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])


def depthwise(x, weight, bias, out, *, images, height, width, filter_shape, stride, padding, activation="none",
              after=None, stream=0):
    taps = host(weight).T.reshape(-1, 1, *filter_shape)
    y = rows(F.depthwise_conv2d(pictures(x, images, height, width), taps, host(bias), stride=stride, padding=padding))
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
    bank = np.tile(HAAR[:, None], (pixels.shape[1], 1, 1, 1)).astype(pixels.dtype)
    taps = 4 * weight.transpose(2, 0, 1).reshape(-1, 1, kernel, kernel)              # channel 4 * c + band
    bands = F.depthwise_conv2d(wavelet.analysis(pixels, bank), taps, padding=kernel // 2)
    host(out)[...] = rows(wavelet.synthesis(bands, bank, height, width))


def norm_gate(y, z, weight, bias, out, *, stream=0):
    normed = F.layer_norm_channels(host(y).T[None, :, :, None], host(weight), host(bias))[0, :, :, 0].T
    host(out)[...] = normed * F.silu(host(z))


def mean(x, out, *, images, length, stream=0):
    host(out)[...] = host(x).reshape(images, length, -1).mean(1, dtype=np.float32)


def gate(x, gates, *, images, length, stream=0):
    x = host(x)
    x[...] = (x.reshape(images, length, -1) * F.sigmoid(host(gates))[:, None]).reshape(x.shape)


def stem(x, weight, bias, out, *, images, height, width, c_in, filter_shape, stride, padding, nchw, dilation=1,
         residual=None, residual2=None, relu=False, stream=0):
    x = host(x).reshape(images, c_in, height, width) if nchw else pictures(x, images, height, width)
    taps = host(weight).reshape(*filter_shape, c_in, -1).transpose(3, 2, 0, 1)
    y = rows(F.conv2d(x, taps, stride=stride, padding=padding, dilation=dilation))
    epilogue(y, bias, residual=residual, residual2=residual2, relu=relu, out=out)


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


def move(x, out, box, *, sizes, add, stream=0):
    begin, *steps = host(box)
    row, column, to, along = np.moveaxis(begin + sum(
        step * index[..., None] for step, index in zip(steps, np.indices(sizes), strict=True)), -1, 0)
    value = host(x)[row, column]
    host(out)[to, along] = host(out)[to, along] + value if add else value


FUNCTIONS = {"gelu": tokens.gelu,
             **{name: getattr(F, name) for name in ("relu", "relu6", "sigmoid", "silu", "softplus")}}


def combine(x, y, out, *, operation, length, stream=0):
    x = host(x)
    if y is not None:
        y = host(y)[np.arange(len(x)) // length % len(y)]
    host(out)[...] = (x if operation == "copy" else FUNCTIONS[operation](x) if y is None
                      else getattr(F, operation)(x, y))


def norm(x, weight, bias, epsilon, out, *, stream=0):
    normed = F.layer_norm_channels(host(x).T[None, :, :, None], host(weight), host(bias), float(host(epsilon)[0]))
    host(out)[...] = normed[0, :, :, 0].T


def gather(x, table, out, *, images, stream=0):
    x, total = host(x).reshape(images, -1, x.shape[1]), 0
    for path in host(table):
        total = total + np.where(path[:, None] < 0, 0, x[:, path])
    host(out)[...] = total.reshape(out.shape)


def project(x, weight, out, *, length, stream=0):
    weight = host(weight)
    host(out)[...] = (host(x).reshape(-1, len(weight), length, x.shape[1]) @ weight).reshape(out.shape)


def _bank(bank, kernel):
    return host(bank).reshape(-1, 1, kernel, kernel)


def analysis(x, bank, out, *, height, width, kernel, stream=0):
    images = x.shape[0] // (height * width)
    host(out)[...] = rows(wavelet.analysis(pictures(x, images, height, width), _bank(bank, kernel)))


def synthesis(x, bank, out, *, height, width, kernel, stream=0):
    bands = pictures(x, out.shape[0] // (height * width), -(-height // 2), -(-width // 2))
    host(out)[...] = rows(wavelet.synthesis(bands, _bank(bank, kernel), height, width))


def path_scan(u, coefficients, dt_weight, dt_bias, A, D, table, out, *, images, rank, states, stream=0):
    table, A = host(table), host(A)[:, :states].swapaxes(1, 2)
    K, length = table.shape

    def along(x, k):
        """(images, channels, steps) of rows."""
        x = host(x).reshape(images, -1, x.shape[1])
        return np.where(table[k, :, None] < 0, 0, x[:, table[k]]).swapaxes(1, 2)
    sequences = np.stack([along(u, k) for k in range(K)], 1)
    own = np.stack([along(coefficients, k).reshape(images, K, rank + 2 * states, length)[:, k] for k in range(K)], 1)
    dt = np.einsum("krd,bkrl->bkdl", host(dt_weight), own[:, :, :rank]) + host(dt_bias)[:, :, None]
    y = selective_scan(sequences, F.softplus(dt), A, own[:, :, rank:rank + states], own[:, :, rank + states:], host(D))
    total = np.zeros((images, len(u) // images, u.shape[1]), y.dtype)
    for k in range(K):
        inside = table[k] >= 0
        total[:, table[k][inside]] += y[:, k].swapaxes(1, 2)[:, inside]
    host(out)[...] = total.reshape(out.shape)


def scan_rows(u, delta, A, B, C, D, out, *, length, states, stream=0):
    A = host(A)[:, :states].swapaxes(1, 2)

    def sequences(x):
        return host(x).reshape(x.shape[0] // (len(A) * length), len(A), length, x.shape[1]).swapaxes(2, 3)
    y = selective_scan(sequences(u), sequences(delta), A, sequences(B), sequences(C), host(D))
    host(out)[...] = y.swapaxes(2, 3).reshape(out.shape)


def path_conv(x, weight, table, out, *, length, images, active, stream=0):
    weight, x = host(weight), host(x)
    if table is not None:
        x = x.reshape(images, -1, x.shape[1])
        x = np.where(host(table)[..., None] < 0, 0, x[:, host(table)])
    sequences = x.reshape(images, len(weight), length, -1).swapaxes(2, 3)
    y = tokens.causal_conv(sequences, weight[:, :-1].swapaxes(1, 2), weight[:, -1])
    host(out)[...] = (F.silu(y) if active else y).swapaxes(2, 3).reshape(out.shape)


def sequence_scan(u, coefficients, dt_weight, dt_bias, A, D, table, factor, out, *, images, rank, states, stream=0):
    table, A = host(table), host(A)[:, :states].swapaxes(1, 2)
    K, length = table.shape
    u, own = (host(x).reshape(images, K, length, -1).swapaxes(2, 3) for x in (u, coefficients))
    dt = np.einsum("krd,bkrl->bkdl", host(dt_weight), own[:, :, :rank]) + host(dt_bias)[:, :, None]
    y = selective_scan(u, F.softplus(dt), A, own[:, :, rank:rank + states], own[:, :, rank + states:], host(D))
    total = np.zeros((images, out.shape[0] // images, out.shape[1]), y.dtype)
    for k in range(K):
        inside = table[k] >= 0
        total[:, table[k][inside]] += y[:, k].swapaxes(1, 2)[:, inside]
    host(out)[...] = total.reshape(out.shape) * (1 if factor is None else host(factor))


def rms_norm(x, weight, epsilon, out, *, stream=0):
    normed = tokens.rms_norm_channels(host(x).T[None, :, :, None], host(weight), float(host(epsilon)[0]))
    host(out)[...] = normed[0, :, :, 0].T


def row_stats(x, epsilon, out, *, stream=0):
    x = host(x)
    host(out)[...] = np.stack([x.mean(1), 1 / np.sqrt(x.var(1) + host(epsilon)[0])], 1)


def norm_mean(x, stats, weight, bias, out, *, length, stream=0):
    normed = (host(x) - host(stats)[:, :1]) * host(stats)[:, 1:]
    host(out)[...] = normed.reshape(-1, length, x.shape[1]).mean(1) * host(weight) + host(bias)


def rotary(x, cos, sin, out, *, stream=0):
    tables = (host(part).T[None, :, :, None] for part in (cos, sin))
    x = host(x).reshape(-1, cos.shape[0], cos.shape[1]).transpose(0, 2, 1)[..., None]
    host(out)[...] = tokens.rotary(x, *tables)[..., 0].transpose(0, 2, 1).reshape(out.shape)


def resize(x, out, *, height, width, out_height, out_width, nearest, stream=0):
    maps = pictures(x, x.shape[0] // (height * width), height, width)
    host(out)[...] = rows(maps_of.resize(maps, out_height, out_width, mode="nearest" if nearest else "bilinear"))


def adaptive_mean(x, out, *, height, width, rows, columns, stream=0):
    means = maps_of.adaptive_average_pool(pictures(x, x.shape[0] // (height * width), height, width), rows, columns)
    host(out)[...] = means.transpose(0, 2, 3, 1).reshape(out.shape)


def maximum_pool(x, out, *, height, width, out_height, out_width, kernel, stride, padding, stream=0):
    maps = pictures(x, x.shape[0] // (height * width), height, width)
    host(out)[...] = rows(maps_of.max_pool2d(maps, kernel, stride=stride, padding=padding))


LAUNCHERS = {launcher.__name__: launcher for launcher in (
    depthwise, scan, wavelet_branch, norm_gate, mean, gate, stem, copy_relu, epilogue, matmul, to_channels_first, move,
    combine, norm, gather, project, analysis, synthesis, path_scan, scan_rows, resize, adaptive_mean, maximum_pool,
    path_conv, sequence_scan, rms_norm, row_stats, norm_mean, rotary)}
