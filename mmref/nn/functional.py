"""Stateless standard operations on NCHW arrays, in plain NumPy.

Letters, here and everywhere in mmref: B batch, C channels, H x W pixels, k kernel side.

Shapes are *written* NCHW, as in the paper and in PyTorch, but *stored* channels-last: the value of one pixel's
channels lies in one run of memory, so a pointwise convolution is one matrix product and a depthwise tap is one
multiplication of contiguous rows. `channels_last` is the free change of view between the two; arrays stored
otherwise are copied once and then stay channels-last through the whole network.

Every function keeps the dtype of its input (float32 or float64) and never writes to its arguments.
"""

from __future__ import annotations

import numpy as np

from mmref.arguments import check_choice, check_integer, check_integers, check_rank
from mmref.errors import MissingBackend, ShapeError
from mmref.nn import shapes
from mmref.nn.operation import operation


def check_backend(backend: str, known: tuple[str, ...] = ("numpy", "numba", "cuda")) -> str:
    """`backend` itself, or an error that lists the known ones."""
    return check_choice("backend", backend, known, MissingBackend)


def channels_last(x: np.ndarray) -> np.ndarray:
    """(B, C, H, W) -> (B, H, W, C), contiguous; a view if `x` is stored channels-last already."""
    check_rank("x", x, "batch channels height width")
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def channels_first(x: np.ndarray) -> np.ndarray:
    """(B, H, W, C) -> (B, C, H, W), always a view."""
    check_rank("x", x, "batch height width channels")
    return x.transpose(0, 3, 1, 2)


def pad_pixels(x: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """(B, H, W, C) -> (B, top + H + bottom, left + W + right, C) with zeros around."""
    check_rank("x", x, "batch height width channels")
    top, bottom, left, right = check_integers("padding", (top, bottom, left, right), 4, 0)
    if not (top or bottom or left or right):
        return x
    batch, height, width, channels = x.shape
    out = np.zeros((batch, top + height + bottom, left + width + right, channels), x.dtype)
    out[:, top:top + height, left:left + width] = x
    return out


def conv2d(x, weight, bias=None, *, stride: int = 1, padding: int = 0, groups: int = 1, dilation: int = 1):
    """2-D cross-correlation, `torch.nn.functional.conv2d` with square stride, padding and dilation.

    x (B, C_in, H, W); weight (C_out, C_in / groups, k_h, k_w), its taps `dilation` pixels apart; bias (C_out,) or None.
    Returns (B, C_out, (H + 2*padding - dilation*(k_h - 1) - 1) // stride + 1, likewise for W), of x's dtype.
    Raises ShapeError where ranks, dtypes, channels or groups disagree or the kernel is larger than the padded picture,
    ValueProblem for a stride, padding, dilation or number of groups that is not an integer or too small.
    """
    check_rank("x", x, "batch channels height width")
    check_rank("weight", weight, "out_channels in_channels/groups k_h k_w")
    stride, padding = shapes.check_steps(stride, padding)
    groups, dilation = check_integer("groups", groups, 1), shapes.check_dilation(dilation)
    if groups == x.shape[1] == weight.shape[0] and weight.shape[1] == 1 and dilation == 1:
        return depthwise_conv2d(x, weight, bias, stride=stride, padding=padding)
    return _conv2d(x, weight, bias, stride=stride, padding=padding, groups=groups, dilation=dilation)


@operation(shapes.conv2d, name="conv2d")
def _conv2d(x, weight, bias=None, *, stride: int = 1, padding: int = 0, groups: int = 1, dilation: int = 1):
    """`conv2d` as one matrix product per group: the neighbourhoods are copied side by side."""
    (c_out, c_group, k_h, k_w) = weight.shape
    windows = _windows(x, k_h, k_w, stride, padding, dilation)              # (B, H', W', k_h, k_w, C_in)
    out_shape = windows.shape[:3]
    columns = windows.reshape(-1, k_h * k_w, groups, c_group).transpose(2, 0, 1, 3)
    columns = columns.reshape(groups, -1, k_h * k_w * c_group)              # (groups, B*H'*W', k_h*k_w*C_in/groups)
    matrix = weight.reshape(groups, c_out // groups, c_group, k_h * k_w).transpose(0, 3, 2, 1)
    y = columns @ matrix.reshape(groups, k_h * k_w * c_group, -1)           # (groups, B*H'*W', C_out/groups)
    y = y.transpose(1, 0, 2).reshape(*out_shape, c_out)
    if bias is not None:
        y += bias
    return channels_first(y)


def _windows(x, k_h, k_w, stride, padding, dilation):
    """View (B, H', W', k_h, k_w, C) of the k_h x k_w neighbourhoods that a convolution visits."""
    x = pad_pixels(channels_last(x), padding, padding, padding, padding)
    spans = dilation * (k_h - 1) + 1, dilation * (k_w - 1) + 1
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=(1, 2))[..., ::dilation, ::dilation]
    return windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


@operation(shapes.depthwise_conv2d)
def depthwise_conv2d(x, weight, bias=None, *, stride: int = 1, padding: int = 0, backend: str = "numpy"):
    """Every channel correlated with its own k_h x k_w filter (groups = channels).

    Parameters
    ----------
    x
        (B, C, H, W)
    weight
        (C, 1, k_h, k_w)
    bias
        (C,) or None
    stride, padding
        pixels, the same along both axes
    backend
        "numpy", or "numba" and "cuda" for the compiled kernels of mmref.kernels (float32 only)

    Returns
    -------
    y
        (B, C, H', W') of x's dtype

    Raises
    ------
    ShapeError
        where shapes or dtypes disagree
    ValueProblem
        for a stride or padding that is not an integer or too small
    MissingBackend
        where the backend is not installed

    Examples
    --------
    >>> import numpy as np
    >>> from mmref import depthwise_conv2d
    >>> x, box = np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 3, 3), np.float32)
    >>> depthwise_conv2d(x, box, padding=1)[0, 0].astype(int).tolist()
    [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    """
    if check_backend(backend) != "numpy":
        from mmref.kernels import load_op
        return load_op("depthwise_conv2d", backend)(x, weight, bias, stride=stride, padding=padding)
    k_h, k_w = weight.shape[2:]
    x = pad_pixels(channels_last(x), padding, padding, padding, padding)
    taps = np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))            # (k_h, k_w, C)
    height, width = ((size - k) // stride + 1 for size, k in zip(x.shape[1:3], (k_h, k_w), strict=True))
    y = np.empty((len(x), height, width, x.shape[3]), x.dtype)
    product = np.empty(y.shape[1:], x.dtype)
    for image, out in zip(x, y, strict=True):  # one image at a time: it and its sums stay in the cache
        out[...] = 0 if bias is None else bias
        for i in range(k_h):
            rows = slice(i, i + stride * (height - 1) + 1, stride)
            for j in range(k_w):
                columns = slice(j, j + stride * (width - 1) + 1, stride)
                np.multiply(image[rows, columns], taps[i, j], out=product)
                out += product
    return channels_first(y)


@operation(shapes.depthwise_conv_transpose2d)
def depthwise_conv_transpose2d(x, weight, *, groups: int, stride: int = 1, padding: int = 0):
    """Transposed depthwise convolution: every value spreads its filter over the result, which adds them up.

    x (B, M*groups, H, W), weight (M*groups, 1, k_h, k_w): channels M*g to M*g + M - 1 add up to channel g of the
    result, as in `torch.nn.functional.conv_transpose2d(x, weight, groups=groups)`; M = 4 for a wavelet synthesis.
    Returns (B, groups, (H-1)*stride - 2*padding + k_h, likewise for W), of x's dtype. Raises ShapeError where
    shapes or dtypes disagree or nothing would be left, ValueProblem for a stride, padding or number of groups that is
    not an integer or too small.
    """
    (k_h, k_w), per_group = weight.shape[2:], x.shape[1] // groups
    x = channels_last(x)
    batch, height, width, _ = x.shape
    full = np.zeros((batch, (height - 1) * stride + k_h, (width - 1) * stride + k_w, groups), x.dtype)
    for m in range(per_group):
        values, taps = np.ascontiguousarray(x[..., m::per_group]), weight[m::per_group, 0]
        for i in range(k_h):
            for j in range(k_w):
                rows = slice(i, i + stride * (height - 1) + 1, stride)
                columns = slice(j, j + stride * (width - 1) + 1, stride)
                full[:, rows, columns] += values * taps[:, i, j]
    return channels_first(full[:, padding:full.shape[1] - padding, padding:full.shape[2] - padding])


def per_channel(values: np.ndarray) -> np.ndarray:
    """(C,) -> (1, C, 1, 1), to be combined with an NCHW array."""
    check_rank("values", values, "channels")
    return values.reshape(1, -1, 1, 1)


@operation(shapes.batch_norm)
def batch_norm(x, weight, bias, running_mean, running_var, eps: float = 1e-5):
    """Inference batch norm: (x - mean) / sqrt(var + eps) * weight + bias, per channel.

    x (B, C, H, W) or (B, C); the four parameters (C,). Returns the shape and dtype of x. Raises ShapeError where shapes
    or dtypes disagree, ValueProblem for an eps that is not a number >= 0.
    """
    scale = weight / np.sqrt(running_var + float(eps))
    shift = bias - running_mean * scale
    if x.ndim == 4:
        scale, shift = per_channel(scale), per_channel(shift)
    y = x * scale
    y += shift
    return y


@operation(shapes.layer_norm_channels)
def layer_norm_channels(x, weight, bias, eps: float = 1e-5):
    """Layer norm over the channels of every pixel. x (B, C, H, W), C >= 1; weight, bias (C,). Returns the shape and
    dtype of x. Raises ShapeError where shapes or dtypes disagree, ValueProblem for an eps that is not a number >= 0."""
    pixels = channels_last(x)                                               # (B, H, W, C)
    centred = pixels - pixels.mean(-1, keepdims=True)
    variance = np.mean(centred * centred, -1, keepdims=True)
    centred /= np.sqrt(variance + float(eps))
    centred *= weight
    centred += bias
    return channels_first(centred)


@operation(shapes.linear)
def linear(x, weight, bias=None):
    """x (B, C_in) times weight (C_out, C_in) transposed, plus bias (C_out,). Returns (B, C_out) of x's dtype. Raises
    ShapeError where shapes or dtypes disagree."""
    y = x @ weight.T
    return y if bias is None else y + bias


@operation(shapes.elementwise)
def relu(x):
    """max(x, 0), elementwise. NaN stays NaN."""
    return np.maximum(x, 0)


@operation(shapes.elementwise)
def relu6(x):
    """min(max(x, 0), 6), elementwise. NaN stays NaN."""
    return np.clip(x, 0, 6)


@operation(shapes.elementwise)
def sigmoid(x):
    """1 / (1 + exp(-x)), elementwise; exp(-x) may overflow to infinity, whose reciprocal is the right 0."""
    with np.errstate(over="ignore"):
        y = np.exp(-x)
    y += 1
    return np.divide(1, y, out=y)


@operation(shapes.elementwise)
def silu(x):
    """x * sigmoid(x), elementwise (swish with beta 1)."""
    y = sigmoid(x)
    y *= x
    return y


@operation(shapes.elementwise)
def softplus(x):
    """log(1 + exp(x)), elementwise; x itself above 20, where the two agree to the last bit of float32."""
    y = np.minimum(x, 20)
    np.exp(y, out=y)
    np.log1p(y, out=y)
    np.copyto(y, x, where=x > 20)
    return y


@operation(shapes.broadcast)
def add(x, y):
    """x + y, elementwise; an axis of length 1 in one of them goes with any length in the other."""
    return x + y


@operation(shapes.broadcast)
def multiply(x, y):
    """x * y, elementwise; axes of length 1 as in `add`."""
    return x * y


@operation(shapes.global_average_pool)
def global_average_pool(x, keep_axes: bool = False):
    """Mean over the pixels: (B, C, H, W) -> (B, C), or (B, C, 1, 1) with `keep_axes`."""
    means = channels_last(x).mean((1, 2), dtype=x.dtype)
    return means[:, :, None, None] if keep_axes else means


@operation(shapes.flatten)
def flatten(x):
    """A map's values side by side: (B, C, H, W) -> (B, C*H*W), by channel, row, column."""
    return np.ascontiguousarray(x).reshape(len(x), shapes.flatten(x)[1])


@operation(shapes.slice_axis)
def slice_axis(x, axis: int, start: int, stop: int, step: int = 1):
    """Elements start, start + step, ... below stop of one axis; a view."""
    return x[(slice(None),) * axis + (slice(start, stop, step),)]


def split(x, sizes, axis: int = 1) -> list:
    """Cut an axis into parts of these sizes, which must add up to its length; views. Raises ShapeError and
    ValueProblem."""
    axis, sizes = check_integer("axis", axis, 0, x.ndim - 1), check_integers("sizes", sizes, low=0)
    if sum(sizes) != x.shape[axis]:
        raise ShapeError(f"sizes must add up to {x.shape[axis]}, the length of axis {axis} of {x.shape}, got {sizes}")
    stops = np.cumsum(sizes).tolist()
    return [slice_axis(x, axis, stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]


@operation(shapes.concatenate)
def concatenate(*parts, axis: int = 1):
    """Arrays end to end along an axis. Pixels' channels stay stored side by side (channels-last)."""
    if parts[0].ndim == 4 and axis == 1:
        return channels_first(np.concatenate([part.transpose(0, 2, 3, 1) for part in parts], axis=-1))
    return np.concatenate(parts, axis)
