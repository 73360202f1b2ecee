"""Maps enlarged and shrunk to any size, and the means and maxima of parts of a map.

Letters: B batch, C channels, H x W pixels. All source rules are computed with integers, so that no rounding moves a
pixel: PyTorch, which computes them in float32, may take the neighbour where a source falls on a pixel's edge.
"""

from __future__ import annotations

import numpy as np

from mmref.nn import shapes
from mmref.nn.functional import channels_first, channels_last
from mmref.nn.operation import operation


def nearest_sources(size: int, new_size: int) -> np.ndarray:
    """floor(i * size / new_size), the pixel that the new pixel i shows: (new_size,) int64."""
    return np.arange(new_size) * size // new_size


def bilinear_sources(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where new pixels lie between old ones, their centres being half a pixel from their edges (`align_corners=False`).

    The source of i is (i + 1/2) * size / new_size - 1/2, not below 0. Returns (lower neighbour, upper neighbour, not
    beyond the last, weight of the upper one in [0, 1)): int64, int64, float64, each (new_size,).
    """
    parts = np.maximum((2 * np.arange(new_size) + 1) * size - new_size, 0)   # the source, times 2 * new_size
    lower = parts // (2 * new_size)
    return lower, np.minimum(lower + 1, size - 1), parts % (2 * new_size) / (2 * new_size)


@operation(shapes.resize)
def resize(x, height: int, width: int, *, mode: str = "bilinear"):
    """x (B, C, H, W) at another size: (B, C, height, width) of x's dtype.

    mode  "bilinear", as `torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)`, without
          antialiasing; or "nearest", the pixel floor(i * H / height) of PyTorch's mode of that name

    Raises ShapeError for an x that is not a map of at least one pixel, ValueProblem for another mode or a size that is
    not an integer in 1..1,000,000.
    """
    pixels = channels_last(x)
    if mode == "nearest":
        rows, columns = nearest_sources(x.shape[2], height), nearest_sources(x.shape[3], width)
        return channels_first(pixels[:, rows[:, None], columns])
    return channels_first(_blend(_blend(pixels, 1, height), 2, width))


def _blend(pixels, axis, new_size):
    """Pixels (B, H, W, C) resized along one axis."""
    lower, upper, share = bilinear_sources(pixels.shape[axis], new_size)
    share = share.astype(pixels.dtype).reshape(-1, *(1,) * (3 - axis))
    blended = pixels.take(lower, axis)
    blended *= 1 - share
    above = pixels.take(upper, axis)
    above *= share
    blended += above
    return blended


@operation(shapes.upsample)
def upsample(x, factor: int, *, mode: str = "bilinear"):
    """x (B, C, H, W) with both sides `factor` times as long, as `resize` does it. A text that says so computes with no
    size. Raises ShapeError and ValueProblem as that does."""
    return resize(x, factor * x.shape[2], factor * x.shape[3], mode=mode)


def bins(size: int, count: int) -> list[tuple[int, int]]:
    """An axis of `size` pixels in `count` parts that cover it: part i is pixels floor(i * size / count) to
    ceil((i + 1) * size / count) - 1, as (start, stop). They overlap where `count` does not divide `size`, and hold one
    pixel, some of them the same, where the axis is shorter than `count`."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


@operation(shapes.adaptive_average_pool)
def adaptive_average_pool(x, rows: int, columns: int):
    """Means over `bins`: x (B, C, H, W) -> (B, C, rows, columns) of x's dtype, any H and W from 1;
    `torch.nn.functional.adaptive_avg_pool2d`. Raises ShapeError and ValueProblem."""
    pixels = channels_last(x)
    means = np.empty((len(x), rows, columns, x.shape[1]), x.dtype)
    for i, (top, bottom) in enumerate(bins(x.shape[2], rows)):
        for j, (left, right) in enumerate(bins(x.shape[3], columns)):
            means[:, i, j] = pixels[:, top:bottom, left:right].mean((1, 2), dtype=x.dtype)
    return channels_first(means)


@operation(shapes.max_pool2d)
def max_pool2d(x, kernel: int, *, stride: int = 1, padding: int = 0):
    """The largest value of every kernel x kernel window, x (B, C, H, W) ->
    (B, C, (H + 2*padding - kernel) // stride + 1, likewise for W) of x's dtype; `torch.nn.functional.max_pool2d`.

    What a window holds of the padding does not count; NaN is larger than every number. Raises ShapeError for a window
    larger than the padded map, ValueProblem for a padding of more than half the kernel.
    """
    pixels = channels_last(x)
    (height, width), out = x.shape[2:], shapes.max_pool2d(x, kernel, stride=stride, padding=padding)[2:]
    largest = np.full((len(x), *out, x.shape[1]), -np.inf, x.dtype)
    for i in range(kernel):
        for j in range(kernel):
            down, across = _inside(i - padding, height, out[0], stride), _inside(j - padding, width, out[1], stride)
            part = largest[:, down, across]
            source = pixels[:, down.start * stride + i - padding:, across.start * stride + j - padding:]
            np.maximum(part, source[:, ::stride, ::stride][:, :part.shape[1], :part.shape[2]], out=part)
    return channels_first(largest)


def _inside(offset, size, count, stride):
    """Windows 0..count-1, `stride` apart, whose tap at `offset` lies in 0..size-1: as a slice."""
    first = min(max(-(offset // stride), 0), count)
    return slice(first, max(first, min(count, (size - 1 - offset) // stride + 1)))
