"""Resizing, pooling and dilation against PyTorch, over drawn shapes, and the source rules written out."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import batches, channels, dtypes, normal, seeds, sides
from test_functional import check

from mmref.errors import ShapeError, ValueProblem
from mmref.nn import functional as F
from mmref.nn.resize import (
    adaptive_average_pool,
    bilinear_sources,
    bins,
    max_pool2d,
    nearest_sources,
    resize,
    upsample,
)

pytest.importorskip("torch")

import torch

functional = torch.nn.functional


@given(seeds, dtypes, batches, channels, channels, sides, sides, st.sampled_from([1, 2, 3]), st.integers(1, 2),
       st.integers(0, 5), st.integers(1, 9))
@example(0, np.float64, 1, 3, 2, 8, 7, 3, 1, 12, 12)
def test_dilated_conv2d(seed, dtype, batch, c_in, c_out, height, width, kernel, stride, padding, dilation):
    """Catches taps side by side, a padding that does not grow with them, sides exchanged."""
    padding += max(0, -(-(dilation * (kernel - 1) + 1 - min(height, width)) // 2))
    x, w = normal(seed, batch, c_in, height, width, dtype=dtype), normal(seed, c_out, c_in, kernel, kernel, dtype=dtype)
    check(lambda *arrays: F.conv2d(*arrays, stride=stride, padding=padding, dilation=dilation),
          lambda *tensors: functional.conv2d(*tensors, None, stride, padding, dilation), dtype, x, w)


@given(seeds, st.integers(1, 4), sides, sides, st.integers(1, 4))
def test_dilated_depthwise(seed, dim, height, width, dilation):
    """Catches a dilation forgotten where every channel has its own filter."""
    x, w = normal(seed, 2, dim, height, width, dtype=np.float64), normal(seed, dim, 1, 3, 3, dtype=np.float64)
    check(lambda x, w: F.conv2d(x, w, padding=dilation, groups=dim, dilation=dilation),
          lambda x, w: functional.conv2d(x, w, None, 1, dilation, dilation, dim), np.float64, x, w)


@given(seeds, dtypes, batches, channels, sides, sides, st.integers(1, 40), st.integers(1, 40))
@example(0, np.float64, 1, 1, 1, 1, 1, 1)
@example(0, np.float64, 1, 2, 7, 9, 1, 1)
def test_bilinear(seed, dtype, batch, dim, height, width, new_height, new_width):
    """Catches corners aligned, antialiasing, a last pixel beyond the map, a first below it."""
    check(lambda x: resize(x, new_height, new_width),
          lambda x: functional.interpolate(x, (new_height, new_width), mode="bilinear", align_corners=False), dtype,
          normal(seed, batch, dim, height, width, dtype=dtype))


@given(seeds, sides, sides, st.integers(1, 5), st.sampled_from(["bilinear", "nearest"]))
def test_upsample(seed, height, width, factor, mode):
    """Catches a factor that is taken for a size."""
    options = {} if mode == "nearest" else dict(align_corners=False)
    check(lambda x: upsample(x, factor, mode=mode),
          lambda x: functional.interpolate(x, scale_factor=factor, mode=mode, **options), np.float64,
          normal(seed, 2, 3, height, width, dtype=np.float64))


@given(st.integers(1, 4000), st.integers(1, 4000))
@example(3, 999)
@example(1, 4000)
def test_sources_are_exact(size, new_size):
    """Catches a source that rounding moves to another pixel (float32 does, at 3 to 999), and weights outside [0, 1)."""
    exact = [Fraction(i * size, new_size) for i in range(new_size)]
    assert nearest_sources(size, new_size).tolist() == [floor(source) for source in exact]
    lower, upper, share = bilinear_sources(size, new_size)
    exact = [max(source + Fraction(size, 2 * new_size) - Fraction(1, 2), 0) for source in exact]
    assert lower.tolist() == [floor(source) for source in exact]
    assert upper.tolist() == [min(floor(source) + 1, size - 1) for source in exact]
    assert share.tolist() == [float(source - floor(source)) for source in exact]


@given(seeds, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]), sides, sides)
def test_nearest(seed, factor_down, factor_across, height, width):
    """Catches the pixel whose centre is nearest where the one at the corner is meant; rows taken for columns."""
    x = normal(seed, 2, 3, height, width, dtype=np.float64)
    for size in ((height * factor_down, width * factor_across), (2 * height - 1, max(2 * width - 1, 1)),
                 (max(height // 2, 1), max(width // 2, 1))):
        expected = functional.interpolate(torch.from_numpy(x), size, mode="nearest").numpy()
        assert np.array_equal(resize(x, *size, mode="nearest"), expected)


@given(seeds, dtypes, batches, channels, sides, sides, st.integers(1, 9), st.integers(1, 9))
def test_adaptive_average_pool(seed, dtype, batch, dim, height, width, rows, columns):
    """Catches parts that do not overlap where they must, leave pixels out, or are empty on a map smaller than they
    are many."""
    check(lambda x: adaptive_average_pool(x, rows, columns),
          lambda x: functional.adaptive_avg_pool2d(x, (rows, columns)), dtype,
          normal(seed, batch, dim, height, width, dtype=dtype))
    assert bins(height, rows)[0][0] == 0 and bins(height, rows)[-1][1] == height


@given(seeds, batches, channels, sides, sides, st.integers(1, 5), st.integers(1, 4), st.integers(0, 2))
def test_max_pool2d(seed, batch, dim, height, width, kernel, stride, padding):
    """Catches padding that counts as zeros (all values are below), and windows counted wrongly at the border."""
    padding = min(padding, kernel // 2)
    if min(height, width) + 2 * padding < kernel:
        with pytest.raises(ShapeError, match="larger than the padded"):
            max_pool2d(normal(seed, batch, dim, height, width), kernel, stride=stride, padding=padding)
        return
    x = normal(seed, batch, dim, height, width) - np.float32(9)
    expected = functional.max_pool2d(torch.from_numpy(x), kernel, stride, padding).numpy() if batch else x[:, :, :0, :0]
    result = max_pool2d(x, kernel, stride=stride, padding=padding)
    assert np.array_equal(result, expected) or not batch


def test_values_that_are_not_finite():
    """Catches NaN lost in a maximum or in a clip."""
    x = np.float32([[[[np.nan, 1], [2, -np.inf]]]])
    assert np.isnan(max_pool2d(x, 2)).all() and max_pool2d(x[:, :, 1:], 1)[0, 0, 0, 1] == -np.inf
    np.testing.assert_array_equal(F.relu6(np.float32([np.nan, -1, 3, 7, np.inf])), np.float32([np.nan, 0, 3, 6, 6]))


@given(seeds, batches, channels, sides, sides)
def test_inputs_are_never_modified(seed, batch, dim, height, width):
    """Catches an in-place shortcut that writes to an argument; a result that is the argument's own memory would do."""
    x = F.channels_first(F.channels_last(normal(seed, batch, dim, height, width)))
    x.flags.writeable = False
    for result in (resize(x, height, width), resize(x, 3, 5), resize(x, 5, 3, mode="nearest"), upsample(x, 2),
                   adaptive_average_pool(x, 2, 2), max_pool2d(x, 1), F.relu6(x)):
        assert result.dtype == np.float32 and not np.shares_memory(result, x)


@pytest.mark.parametrize("call, error, message", [
    (lambda x: resize(x, 0, 4), ValueProblem, "height must be an integer in 1..1000000, got 0"),
    (lambda x: resize(x, 4, 2.0), ValueProblem, "width must be .* write 2"),
    (lambda x: resize(x, 4, 4, mode="bicubic"), ValueProblem, "mode must be one of bilinear, nearest, got 'bicubic'"),
    (lambda x: resize(x[0], 4, 4), ShapeError, "x must be rank 4"),
    (lambda x: resize(x[:, :, :0], 4, 4), ShapeError, "at least one pixel"),
    (lambda x: upsample(x, 0), ValueProblem, "factor must be"),
    (lambda x: adaptive_average_pool(x, 2, 0), ValueProblem, "columns must be"),
    (lambda x: max_pool2d(x, 2, padding=2), ValueProblem, "padding must be at most half the kernel of 2"),
    (lambda x: F.conv2d(x, np.zeros((1, 2, 3, 3)), dilation=0), ValueProblem, "dilation must be"),
    (lambda x: F.conv2d(x, np.zeros((1, 2, 3, 3)), dilation=4), ShapeError, "3x3 with dilation 4 is larger")])
def test_errors(call, error, message):
    """Catches arguments that NumPy would take for something else."""
    with pytest.raises(error, match=message):
        call(np.zeros((1, 2, 5, 6)))
