"""What every operation takes, and the shape of its result: one function an operation, of the same arguments.

They look at ranks and shapes only, so they answer for symbols as well as for arrays (operation.py). Every one raises
ShapeError, which names the argument, what was expected and what was received.

Letters: B batch, C channels, H x W pixels, L steps of a sequence, K directions, N states, k kernel side.
"""

from __future__ import annotations

from mmref.errors import ShapeError, ValueProblem
from mmref.nn.paths import paths


def check_rank(name: str, array, axes: str) -> None:
    """Raise ShapeError unless `array` has one axis for every word of `axes` ("batch channels height width")."""
    shape = getattr(array, "shape", ())
    if len(shape) != len(axes.split()):
        raise ShapeError(f"{name} must be rank {len(axes.split())} ({', '.join(axes.split())}), got shape {shape}")


def check_vector(name: str, array, size: int) -> None:
    """Raise ShapeError unless `array` is None or has shape (size,)."""
    if array is not None and getattr(array, "shape", None) != (size,):
        raise ShapeError(f"{name} must have shape ({size},), got {getattr(array, 'shape', array)}")


def check_count(name: str, value, least: int) -> None:
    """Raise ValueProblem unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ValueProblem(f"{name} must be an integer of at least {least}, got {value!r}")


def check_dtype(*arrays) -> None:
    """Raise ShapeError unless all arrays (those that are not None) have the dtype of the first."""
    first = arrays[0].dtype
    for array in arrays[1:]:
        if array is not None and array.dtype != first:
            raise ShapeError(f"all arrays must have one dtype, got {first} and {array.dtype}")


# ------------------------------------------------------------------------------------------------ convolutions

def conv2d(x, weight, bias=None, *, stride=1, padding=0, groups=1):
    check_rank("x", x, "batch channels height width")
    check_rank("weight", weight, "out_channels in_channels/groups k_h k_w")
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0), ("groups", groups, 1)):
        check_count(name, value, least)
    c_in, (c_out, c_group, *kernel) = x.shape[1], weight.shape
    if c_in != c_group * groups or c_out % groups:
        raise ShapeError(f"weight must be (out_channels, {c_in} // {groups}, k_h, k_w) with out_channels a multiple "
                         f"of groups={groups}, got shape {weight.shape}")
    check_vector("bias", bias, c_out)
    check_dtype(x, weight, bias)
    return x.shape[0], c_out, *_correlated(x.shape[2:], kernel, stride, padding)


def depthwise_conv2d(x, weight, bias=None, *, stride=1, padding=0, backend="numpy"):
    check_rank("x", x, "batch channels height width")
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0)):
        check_count(name, value, least)
    if len(weight.shape) != 4 or weight.shape[:2] != (x.shape[1], 1):
        raise ShapeError(f"weight must be ({x.shape[1]}, 1, k_h, k_w), got shape {weight.shape}")
    check_vector("bias", bias, x.shape[1])
    check_dtype(x, weight, bias)
    return *x.shape[:2], *_correlated(x.shape[2:], weight.shape[2:], stride, padding)


def _correlated(size, kernel, stride, padding):
    padded = [side + 2 * padding for side in size]
    if padded[0] < kernel[0] or padded[1] < kernel[1]:
        raise ShapeError(f"kernel {kernel[0]}x{kernel[1]} is larger than the padded picture {padded[0]}x{padded[1]}")
    return [(side - k) // stride + 1 for side, k in zip(padded, kernel, strict=True)]


def depthwise_conv_transpose2d(x, weight, *, groups, stride=1, padding=0):
    check_rank("x", x, "batch channels height width")
    check_rank("weight", weight, "channels 1 k_h k_w")
    for name, value, least in (("groups", groups, 1), ("stride", stride, 1), ("padding", padding, 0)):
        check_count(name, value, least)
    if x.shape[1] % groups or weight.shape[:2] != (x.shape[1], 1):
        raise ShapeError(f"x must have a multiple of {groups} channels and weight be ({x.shape[1]}, 1, k_h, k_w), "
                         f"got {x.shape} and {weight.shape}")
    check_dtype(x, weight)
    return x.shape[0], groups, *((side - 1) * stride - 2 * padding + k
                                 for side, k in zip(x.shape[2:], weight.shape[2:], strict=True))


def linear(x, weight, bias=None):
    check_rank("x", x, "batch features")
    check_rank("weight", weight, "out_features in_features")
    if x.shape[1] != weight.shape[1]:
        raise ShapeError(f"weight must be (out_features, {x.shape[1]}), got shape {weight.shape}")
    check_vector("bias", bias, weight.shape[0])
    check_dtype(x, weight, bias)
    return x.shape[0], weight.shape[0]


# -------------------------------------------------------------------------------------------- norms, pointwise

def batch_norm(x, weight, bias, running_mean, running_var, eps=1e-5):
    if len(getattr(x, "shape", ())) not in (2, 4) or x.shape[1:2] != weight.shape:
        channels = ", ".join(map(str, weight.shape))
        raise ShapeError(f"x must be (batch, {channels}) or (batch, {channels}, height, width), "
                         f"got shape {getattr(x, 'shape', x)}")
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, array in vectors.items():
        check_vector(name, array, x.shape[1])
    check_dtype(x, *vectors.values())
    return x.shape


def layer_norm_channels(x, weight, bias, eps=1e-5):
    check_rank("x", x, "batch channels height width")
    for name, array in (("weight", weight), ("bias", bias)):
        check_vector(name, array, x.shape[1])
    check_dtype(x, weight, bias)
    return x.shape


def elementwise(x):
    return x.shape


def broadcast(x, y):
    """Of two arrays of one rank: each axis equal, or 1 in one of them."""
    if len(x.shape) != len(y.shape) or any(a != b and 1 not in (a, b) for a, b in zip(x.shape, y.shape, strict=True)):
        raise ShapeError(f"x and y must have equal shapes but for axes of length 1, got {x.shape} and {y.shape}")
    check_dtype(x, y)
    return tuple(b if a == 1 else a for a, b in zip(x.shape, y.shape, strict=True))


def global_average_pool(x, keep_axes=False):
    check_rank("x", x, "batch channels height width")
    return (*x.shape[:2], 1, 1) if keep_axes else x.shape[:2]


# -------------------------------------------------------------------------------------- taking apart, joining

def slice_axis(x, axis, start, stop, step=1):
    size = x.shape[axis]
    if not 0 <= start <= stop <= size or step < 1:
        raise ShapeError(f"start and stop must be 0 <= start <= stop <= {size} and step >= 1 for axis {axis} of "
                         f"{x.shape}, got {start}, {stop} and {step}")
    return *x.shape[:axis], -(-(stop - start) // step), *x.shape[axis + 1:]


def concatenate(*parts, axis=1):
    if not parts:
        raise ShapeError("parts must be at least one array, got none")
    first = parts[0].shape
    for part in parts[1:]:
        if len(part.shape) != len(first) or any(a != b for i, (a, b) in enumerate(zip(part.shape, first, strict=True))
                                                if i != axis):
            raise ShapeError(f"parts must agree in every axis but {axis}, got shapes {first} and {part.shape}")
    check_dtype(*parts)
    return *first[:axis], sum(part.shape[axis] for part in parts), *first[axis + 1:]


# ------------------------------------------------------------------------------------------------ wavelets

def analysis(x, bank):
    check_rank("x", x, "batch channels height width")
    check_bank(bank, 4 * x.shape[1])
    check_dtype(x, bank)
    return x.shape[0], 4 * x.shape[1], *(-(-side // 2) for side in x.shape[2:])


def synthesis(bands, bank, height, width):
    check_rank("bands", bands, "batch channels height width")
    check_bank(bank, bands.shape[1])
    check_dtype(bands, bank)
    if tuple(bands.shape[2:]) != (-(-height // 2), -(-width // 2)):
        raise ShapeError(f"bands must be {-(-height // 2)}x{-(-width // 2)} for a {height}x{width} result, "
                         f"got shape {bands.shape}")
    return bands.shape[0], bands.shape[1] // 4, height, width


def check_bank(bank, channels: int) -> None:
    k = bank.shape[-1] if len(getattr(bank, "shape", ())) == 4 else 0
    if bank.shape != (channels, 1, k, k) or k % 2 or not k:
        raise ShapeError(f"bank must be ({channels}, 1, k, k) with k even, got shape {bank.shape}")


def low_low(bands):
    check_rank("bands", bands, "batch channels height width")
    if bands.shape[1] % 4:
        raise ShapeError(f"bands must have a multiple of 4 channels, got shape {bands.shape}")
    return bands.shape[0], bands.shape[1] // 4, *bands.shape[2:]


def add_to_low_low(bands, low):
    if low_low(bands) != tuple(low.shape):
        raise ShapeError(f"low must have shape {low_low(bands)} to go with bands {bands.shape}, got {low.shape}")
    check_dtype(bands, low)
    return bands.shape


# --------------------------------------------------------------------------------------------------- scans

def cross_scan(x, order="bidirectional"):
    check_rank("x", x, "batch channels height width")
    K, L = paths(order, *x.shape[2:]).shape
    return x.shape[0], K, x.shape[1], L


def cross_merge(y, order, height, width):
    check_rank("y", y, "batch directions channels length")
    expected = paths(order, height, width).shape
    if (y.shape[1], y.shape[3]) != expected:
        raise ShapeError(f"y must be (batch, {expected[0]}, channels, {expected[1]}) for a {height}x{width} map in "
                         f"order {order!r}, got shape {y.shape}")
    return y.shape[0], y.shape[2], height, width


def project(weight, sequences):
    check_rank("weight", weight, "directions out_channels in_channels")
    check_rank("sequences", sequences, "batch directions in_channels length")
    K, M, D = weight.shape
    if tuple(sequences.shape[1:3]) != (K, D):
        raise ShapeError(f"sequences must be (batch, {K}, {D}, length) to go with weight {weight.shape}, "
                         f"got shape {sequences.shape}")
    check_dtype(sequences, weight)
    return sequences.shape[0], K, M, sequences.shape[3]


def selective_scan(u, delta, A, B, C, D, *, backend="numpy"):
    check_rank("u", u, "batch K D L")
    batch, K, dim, length = u.shape
    N = A.shape[-1] if len(A.shape) else 0
    for name, array, expected in (("delta", delta, u.shape), ("A", A, (K, dim, N)), ("B", B, (batch, K, N, length)),
                                  ("C", C, (batch, K, N, length)), ("D", D, (K, dim))):
        if tuple(array.shape) != tuple(expected):
            raise ShapeError(f"{name} must have shape {tuple(expected)} to go with u {u.shape}, got {array.shape}")
    check_dtype(u, delta, A, B, C, D)
    return u.shape
