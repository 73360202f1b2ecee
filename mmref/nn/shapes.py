"""What every operation takes, and the shape of its result: one function per operation, of the same arguments.

They look at ranks, shapes and dtypes only, so they answer for symbols as well as for arrays (operation.py). Every one
raises ShapeError or ValueProblem (arguments.py), which names the argument, what was expected and what was received.

Letters: B batch, C channels, H x W pixels, L steps of a sequence, K directions, N states, k kernel side.
"""

from __future__ import annotations

from mmref.arguments import (
    check_array,
    check_choice,
    check_flag,
    check_integer,
    check_ndarray,
    check_number,
    check_rank,
    check_vector,
)
from mmref.errors import ShapeError, ValueProblem
from mmref.nn.paths import paths

MOST_PADDING = 65_535  # pixels on each side
MOST_SIDE = 1_000_000  # of a map after resizing: kernels compute with twice the product of two sides in 64 bits

# ------------------------------------------------------------------------------------------------ convolutions

def conv2d(x, weight, bias=None, *, stride=1, padding=0, groups=1, dilation=1):
    check_array("x", x, "batch channels height width")
    check_array("weight", weight, "out_channels in_channels/groups k_h k_w", x.dtype)
    check_steps(stride, padding)
    check_integer("groups", groups, 1)
    c_in, (c_out, c_group, *kernel) = x.shape[1], weight.shape
    if c_in != c_group * groups or c_out % groups or 0 in weight.shape[1:]:
        raise ShapeError(f"weight must be (out_channels, {c_in} // {groups}, k_h, k_w), the last three >= 1 and "
                         f"out_channels a multiple of groups={groups}, got shape {weight.shape}")
    if bias is not None:
        check_vector("bias", bias, c_out, x.dtype)
    check_dilation(dilation)
    return x.shape[0], c_out, *_correlated(x.shape[2:], kernel, stride, padding, dilation)


def check_dilation(dilation) -> int:
    return check_integer("dilation", dilation, 1, MOST_PADDING)


def check_steps(stride, padding) -> tuple[int, int]:
    return check_integer("stride", stride, 1), check_integer("padding", padding, 0, MOST_PADDING)


def _correlated(size, kernel, stride, padding, dilation=1):
    padded = [side + 2 * padding for side in size]
    spans = [dilation * (k - 1) + 1 for k in kernel]
    if padded[0] < spans[0] or padded[1] < spans[1]:
        dilated = "" if dilation == 1 else f" with dilation {dilation}"
        raise ShapeError(f"kernel {kernel[0]}x{kernel[1]}{dilated} is larger than the padded picture "
                         f"{padded[0]}x{padded[1]}")
    return [(side - span) // stride + 1 for side, span in zip(padded, spans, strict=True)]


def depthwise_conv2d(x, weight, bias=None, *, stride=1, padding=0, backend="numpy"):
    check_array("x", x, "batch channels height width")
    _check_depthwise_weight(weight, x)
    check_steps(stride, padding)
    if bias is not None:
        check_vector("bias", bias, x.shape[1], x.dtype)
    return *x.shape[:2], *_correlated(x.shape[2:], weight.shape[2:], stride, padding)


def _check_depthwise_weight(weight, x):
    check_ndarray("weight", weight)
    if weight.ndim != 4 or weight.shape[:2] != (x.shape[1], 1) or 0 in weight.shape[2:]:
        raise ShapeError(f"weight must be ({x.shape[1]}, 1, k_h, k_w), a filter of at least 1x1 for every channel of "
                         f"x {x.shape}, got shape {weight.shape}")
    check_array("weight", weight, dtype=x.dtype)


def depthwise_conv_transpose2d(x, weight, *, groups, stride=1, padding=0):
    check_array("x", x, "batch channels height width")
    _check_depthwise_weight(weight, x)
    check_integer("groups", groups, 1)
    check_steps(stride, padding)
    if x.shape[1] % groups:
        raise ShapeError(f"x must have a multiple of groups={groups} channels, got shape {x.shape}")
    (height, width), (k_h, k_w) = x.shape[2:], weight.shape[2:]
    sides = (height - 1) * stride + k_h - 2 * padding, (width - 1) * stride + k_w - 2 * padding
    if not height or not width or min(sides) <= 0:
        raise ShapeError(f"x {height}x{width} with a kernel {k_h}x{k_w} and stride {stride} leaves no pixel within "
                         f"padding {padding}")
    return x.shape[0], groups, *sides


def conv_transpose2d(x, weight, bias=None, *, stride=1, padding=0):
    check_array("x", x, "batch channels height width")
    check_array("weight", weight, "in_channels out_channels k_h k_w", x.dtype)
    check_steps(stride, padding)
    c_in, c_out, *kernel = weight.shape
    if c_in != x.shape[1] or 0 in weight.shape:
        raise ShapeError(f"weight must be ({x.shape[1]}, out_channels, k_h, k_w), each >= 1, to go with x {x.shape}, "
                         f"got shape {weight.shape}")
    if bias is not None:
        check_vector("bias", bias, c_out, x.dtype)
    sides = [(side - 1) * stride + k - 2 * padding for side, k in zip(x.shape[2:], kernel, strict=True)]
    if 0 in x.shape[2:] or min(sides) <= 0:
        raise ShapeError(f"x {x.shape[2]}x{x.shape[3]} with a kernel {kernel[0]}x{kernel[1]} and stride {stride} "
                         f"leaves no pixel within padding {padding}")
    return x.shape[0], c_out, *sides


def linear(x, weight, bias=None):
    check_array("x", x, "batch in_features")
    check_array("weight", weight, "out_features in_features", x.dtype)
    if weight.shape[1] != x.shape[1]:
        raise ShapeError(f"weight must be (out_features, {x.shape[1]}) to go with x {x.shape}, got {weight.shape}")
    if bias is not None:
        check_vector("bias", bias, weight.shape[0], x.dtype)
    return x.shape[0], weight.shape[0]


# -------------------------------------------------------------------------------------------- norms, pointwise

def batch_norm(x, weight, bias, running_mean, running_var, eps=1e-5):
    check_array("x", x)
    if x.ndim not in (2, 4):
        raise ShapeError(f"x must be (batch, channels) or (batch, channels, height, width), got shape {x.shape}")
    for name, values in (("weight", weight), ("bias", bias), ("running_mean", running_mean),
                         ("running_var", running_var)):
        check_vector(name, values, x.shape[1], x.dtype)
    check_number("eps", eps, 0)
    return x.shape


def layer_norm_channels(x, weight, bias, eps=1e-5):
    check_array("x", x, "batch channels height width")
    if not x.shape[1]:
        raise ShapeError(f"x must have at least one channel, got shape {x.shape}")
    check_vector("weight", weight, x.shape[1], x.dtype)
    check_vector("bias", bias, x.shape[1], x.dtype)
    check_number("eps", eps, 0)
    return x.shape


def elementwise(x):
    check_array("x", x)
    return x.shape


def broadcast(x, y):
    """Of two arrays of one rank: each axis equal, or 1 in one of them."""
    check_array("x", x)
    check_array("y", y, dtype=x.dtype)
    if x.ndim != y.ndim or any(a != b and 1 not in (a, b) for a, b in zip(x.shape, y.shape, strict=True)):
        raise ShapeError(f"x and y must have equal shapes except for axes of length 1, got {x.shape} and {y.shape}")
    return tuple(b if a == 1 else a for a, b in zip(x.shape, y.shape, strict=True))


def global_average_pool(x, keep_axes=False):
    check_flag("keep_axes", keep_axes)
    _check_pixels(x)
    return (*x.shape[:2], 1, 1) if keep_axes else x.shape[:2]


# ------------------------------------------------------------------------------------------ pooling, resizing

def adaptive_average_pool(x, rows, columns):
    _check_pixels(x)
    return *x.shape[:2], check_integer("rows", rows, 1, MOST_SIDE), check_integer("columns", columns, 1, MOST_SIDE)


def max_pool2d(x, kernel, *, stride=1, padding=0):
    _check_pixels(x)
    check_integer("kernel", kernel, 1, MOST_PADDING)
    check_steps(stride, padding)
    if padding > kernel // 2:
        raise ValueProblem(f"padding must be at most half the kernel of {kernel}, so that every window holds a pixel, "
                           f"got {padding}")
    return *x.shape[:2], *_correlated(x.shape[2:], (kernel, kernel), stride, padding)


def resize(x, height, width, *, mode="bilinear"):
    _check_pixels(x)
    check_choice("mode", mode, ("bilinear", "nearest"))
    return *x.shape[:2], check_integer("height", height, 1, MOST_SIDE), check_integer("width", width, 1, MOST_SIDE)


def upsample(x, factor, *, mode="bilinear"):
    check_rank("x", x, "batch channels height width")
    factor = check_integer("factor", factor, 1, MOST_SIDE)
    return resize(x, factor * x.shape[2], factor * x.shape[3], mode=mode)


def _check_pixels(x):
    check_array("x", x, "batch channels height width")
    if 0 in x.shape[2:]:
        raise ShapeError(f"x must have at least one pixel, got shape {x.shape}")


# -------------------------------------------------------------------------------------- taking apart, joining

def flatten(x):
    check_array("x", x, "batch channels height width")
    return x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]


def slice_axis(x, axis, start, stop, step=1):
    check_array("x", x)
    size = x.shape[check_integer("axis", axis, 0, x.ndim - 1)]
    check_integer("stop", stop, check_integer("start", start, 0, size), size)
    check_integer("step", step, 1)
    return *x.shape[:axis], -(-(stop - start) // step), *x.shape[axis + 1:]


def concatenate(*parts, axis=1):
    if not parts:
        raise ShapeError("parts must be at least one array, got none")
    first = parts[0]
    check_array("parts[0]", first)
    check_integer("axis", axis, 0, first.ndim - 1)
    for i, part in enumerate(parts):
        check_array(f"parts[{i}]", part, dtype=first.dtype)
        if part.ndim != first.ndim or any(a != b for k, (a, b) in enumerate(zip(part.shape, first.shape, strict=True))
                                          if k != axis):
            raise ShapeError(f"parts must agree in every axis but {axis}, got shapes {first.shape} and {part.shape}")
    return *first.shape[:axis], sum(part.shape[axis] for part in parts), *first.shape[axis + 1:]


# ------------------------------------------------------------------------------------------------ wavelets

def analysis(x, bank):
    _check_pixels(x)
    _check_bank(bank, 4 * x.shape[1], x.dtype)
    return x.shape[0], 4 * x.shape[1], *(-(-side // 2) for side in x.shape[2:])


def synthesis(bands, bank, height, width):
    channels = low_low(bands)[1]
    check_integer("height", height, 1)
    check_integer("width", width, 1)
    _check_bank(bank, 4 * channels, bands.dtype)
    if bands.shape[2:] != (-(-height // 2), -(-width // 2)):
        raise ShapeError(f"bands must be {-(-height // 2)}x{-(-width // 2)} for a {height}x{width} result, "
                         f"got shape {bands.shape}")
    return bands.shape[0], channels, height, width


def _check_bank(bank, channels, dtype):
    check_ndarray("bank", bank)
    k = bank.shape[-1] if bank.ndim else 0
    if bank.shape != (channels, 1, k, k) or k % 2 or not k:
        raise ShapeError(f"bank must be ({channels}, 1, k, k) with k even, got shape {bank.shape}")
    check_array("bank", bank, dtype=dtype)


def low_low(bands):
    check_array("bands", bands, "batch channels height width")
    if bands.shape[1] % 4:
        raise ShapeError(f"bands must have four channels for every channel of the result, got shape {bands.shape}")
    return bands.shape[0], bands.shape[1] // 4, *bands.shape[2:]


def add_to_low_low(bands, low):
    expected = low_low(bands)
    check_array("low", low, "batch channels height width", bands.dtype)
    if low.shape != expected:
        raise ShapeError(f"low must have shape {expected} to go with bands {bands.shape}, got {low.shape}")
    return bands.shape


# --------------------------------------------------------------------------------------------------- scans

def cross_scan(x, order="bidirectional"):
    check_rank("x", x, "batch channels height width")
    K, L = paths(order, *x.shape[2:]).shape
    return x.shape[0], K, x.shape[1], L


def cross_merge(y, order, height, width):
    check_rank("y", y, "batch directions channels length")
    K, L = paths(order, check_integer("height", height, 0), check_integer("width", width, 0)).shape
    if (y.shape[1], y.shape[3]) != (K, L):
        raise ShapeError(f"y must be (batch, {K}, channels, {L}) for a {height}x{width} map in order {order!r}, "
                         f"got shape {y.shape}")
    return y.shape[0], y.shape[2], height, width


def project(weight, sequences):
    check_array("sequences", sequences, "batch directions in_channels length")
    check_array("weight", weight, "directions out_channels in_channels", sequences.dtype)
    K, M, D = weight.shape
    if sequences.shape[1:3] != (K, D):
        raise ShapeError(f"sequences must be (batch, {K}, {D}, length) to go with weight {weight.shape}, "
                         f"got shape {sequences.shape}")
    return sequences.shape[0], K, M, sequences.shape[3]


def selective_scan(u, delta, A, B, C, D, *, backend="numpy"):
    check_array("u", u, "batch K D L")
    for name, array, axes in (("delta", delta, "batch K D L"), ("A", A, "K D N"), ("B", B, "batch K N L"),
                              ("C", C, "batch K N L"), ("D", D, "K D")):
        check_array(name, array, axes, u.dtype)
    batch, K, dim, length = u.shape
    N = A.shape[-1]
    for name, array, expected in (("delta", delta, u.shape), ("A", A, (K, dim, N)), ("B", B, (batch, K, N, length)),
                                  ("C", C, (batch, K, N, length)), ("D", D, (K, dim))):
        if array.shape != expected:
            raise ShapeError(f"{name} must have shape {expected} to go with u {u.shape}, got {array.shape}")
    return u.shape


# ------------------------------------------------------------------------------------------ tokens (tokens.py)

def rms_norm_channels(x, weight, eps=1e-5):
    return layer_norm_channels(x, weight, weight, eps)


def causal_conv(sequences, weight, bias):
    check_array("sequences", sequences, "batch directions channels length")
    check_array("weight", weight, "directions channels taps", sequences.dtype)
    check_array("bias", bias, "directions channels", sequences.dtype)
    wanted = tuple(sequences.shape[1:3])
    if weight.shape[:2] != wanted or not weight.shape[2]:
        raise ShapeError(f"weight must be {(*wanted, 'k')}, k >= 1, to go with sequences {sequences.shape}, "
                         f"got shape {weight.shape}")
    if bias.shape != wanted:
        raise ShapeError(f"bias must have shape {wanted} to go with sequences {sequences.shape}, got {bias.shape}")
    return sequences.shape


def rotary(x, cos, sin):
    check_array("x", x, "batch channels height width")
    if x.shape[1] % 2:
        raise ShapeError(f"x must have an even number of channels, which turn in pairs, got shape {x.shape}")
    for name, table in (("cos", cos), ("sin", sin)):
        check_array(name, table, "1 channels height width", x.dtype)
        if table.shape != (1, *x.shape[1:]):
            raise ShapeError(f"{name} must have shape {(1, *x.shape[1:])} to go with x {x.shape}, got {table.shape}")
    return x.shape


def pad_to_multiple(x, side):
    check_array("x", x, "batch channels height width")
    check_integer("side", side, 1, MOST_PADDING)
    return *x.shape[:2], *(-(-length // side) * side for length in x.shape[2:])
