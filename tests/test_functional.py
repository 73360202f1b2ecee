"""Each standard operation against PyTorch, over drawn shapes, in float32 and float64."""

from __future__ import annotations

import numpy as np
import pytest
from assertions import assert_close, rounding
from hypothesis import assume, example, given
from hypothesis import strategies as st
from strategies import batches, channels, dtypes, normal, seeds, sides

from mmref.errors import ShapeError
from mmref.nn import functional as F

pytest.importorskip("torch")

import torch


def t(array):
    return None if array is None else torch.from_numpy(np.ascontiguousarray(array))


def check(ours, theirs, dtype, *arrays):
    """`ours(*arrays)` is `theirs(*tensors)` in double precision, to what the rounding of `dtype` can do (sums may
    cancel). None stays None."""
    def exact(move):
        return theirs(*(t(None if array is None else move(array)) for array in arrays)).numpy()
    assert_close(ours(*arrays), *rounding(exact, dtype), dtype=dtype)


@given(seeds, dtypes, batches, channels, channels, sides, sides, st.sampled_from([1, 2, 3, 5]), st.integers(1, 3),
       st.integers(0, 3), st.booleans())
@example(0, np.float32, 1, 3, 5, 7, 4, 3, 2, 1, True)
def test_conv2d(seed, dtype, batch, c_in, c_out, height, width, kernel, stride, padding, with_bias):
    """Catches swapped height and width, a flipped kernel, a wrong stride origin, a forgotten bias."""
    assume(min(height, width) + 2 * padding >= kernel)
    x, w = normal(seed, batch, c_in, height, width, dtype=dtype), normal(seed, c_out, c_in, kernel, kernel, dtype=dtype)
    bias = normal(seed, c_out, dtype=dtype) if with_bias else None
    check(lambda *arrays: F.conv2d(*arrays, stride=stride, padding=padding),
          lambda *tensors: torch.nn.functional.conv2d(*tensors, stride, padding), dtype, x, w, bias)


@given(seeds, dtypes, batches, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), sides, sides,
       st.integers(1, 2))
def test_grouped_conv2d(seed, dtype, batch, groups, in_each, out_each, height, width, stride):
    """Catches channels of one group reaching another, and the order of a group's outputs."""
    x = normal(seed, batch, groups * in_each, height, width, dtype=dtype)
    w = normal(seed, groups * out_each, in_each, 3, 3, dtype=dtype)
    check(lambda x, w: F.conv2d(x, w, stride=stride, padding=1, groups=groups),
          lambda x, w: torch.nn.functional.conv2d(x, w, None, stride, 1, 1, groups), dtype, x, w)


@given(seeds, dtypes, batches, channels, sides, sides, st.sampled_from([1, 3, 5, 7]), st.integers(1, 2), st.booleans())
@example(1, np.float32, 2, 17, 1, 1, 7, 2, True)
def test_depthwise_conv2d(seed, dtype, batch, dim, height, width, kernel, stride, with_bias):
    """Catches a transposed kernel, padding on one side only, and sums that leak from image to image."""
    x, w = normal(seed, batch, dim, height, width, dtype=dtype), normal(seed, dim, 1, kernel, kernel, dtype=dtype)
    bias = normal(seed, dim, dtype=dtype) if with_bias else None
    check(lambda *arrays: F.depthwise_conv2d(*arrays, stride=stride, padding=kernel // 2),
          lambda *tensors: torch.nn.functional.conv2d(*tensors, stride, kernel // 2, 1, dim), dtype, x, w, bias)


@given(seeds, dtypes, batches, st.integers(1, 5), st.integers(1, 4), sides, sides, st.sampled_from([2, 4]),
       st.integers(0, 1))
def test_depthwise_conv_transpose2d(seed, dtype, batch, groups, per_group, height, width, kernel, padding):
    """Catches inputs added to the wrong output channel, a flipped filter, a crop on one side only."""
    assume(2 * (min(height, width) - 1) + kernel > 2 * padding)
    x = normal(seed, batch, groups * per_group, height, width, dtype=dtype)
    w = normal(seed, groups * per_group, 1, kernel, kernel, dtype=dtype)
    check(lambda x, w: F.depthwise_conv_transpose2d(x, w, groups=groups, stride=2, padding=padding),
          lambda x, w: torch.nn.functional.conv_transpose2d(x, w, stride=2, padding=padding, groups=groups), dtype,
          x, w)


@given(seeds, dtypes, batches, channels, sides, sides)
def test_norms_and_pooling(seed, dtype, batch, dim, height, width):
    """Catches a wrong axis, a wrong eps (float64 sees 1e-6 for 1e-5), variance with n-1."""
    x = normal(seed, batch, dim, height, width, dtype=dtype, scale=0.01)  # small: eps matters
    w, b, mean = (normal(seed + i, dim, dtype=dtype) for i in range(3))
    var = np.abs(normal(seed + 3, dim, dtype=dtype, scale=1e-4))
    for features in (x, np.ascontiguousarray(x[:, :, 0, 0])):
        check(F.batch_norm, lambda x, w, b, mean, var: torch.nn.functional.batch_norm(x, mean, var, w, b), dtype,
              features, w, b, mean, var)
    check(F.layer_norm_channels,
          lambda x, w, b: torch.nn.functional.layer_norm(x.movedim(1, 3), (dim,), w, b).movedim(3, 1), dtype, x, w, b)
    check(F.global_average_pool, lambda x: x.mean((2, 3)), dtype, x)


@given(seeds, dtypes, st.sampled_from([0.1, 1.0, 30.0, 200.0]))
def test_activations(seed, dtype, scale):
    """Catches overflow at large arguments, a softplus threshold that jumps, SiLU without its product."""
    x = normal(seed, 3, 50, dtype=dtype, scale=scale)
    for ours, theirs in ((F.relu, torch.relu), (F.sigmoid, torch.sigmoid), (F.silu, torch.nn.functional.silu),
                         (F.softplus, torch.nn.functional.softplus)):
        check(ours, theirs, dtype, x)
    # above 20 softplus is x itself: off by exp(-20) = 2e-9, invisible in float32
    exact, tolerance = rounding(lambda move: np.logaddexp(0, move(x)), dtype)
    assert_close(F.softplus(x), exact, max(tolerance, 2.1e-9), dtype=dtype)


def test_activations_at_the_edges():
    """Catches NaN from inf/inf and warnings at the ends of the range."""
    x = np.array([-np.inf, -1000, -104, -0.0, 0.0, 88, 1000, np.inf], np.float32)
    with np.errstate(invalid="ignore"):  # -inf * 0
        assert np.isnan(F.silu(x)[0])
    np.testing.assert_array_equal(F.sigmoid(x)[[0, 1, -2, -1]], np.float32([0, 0, 1, 1]))
    np.testing.assert_array_equal(F.softplus(x)[[0, 1, -2, -1]], np.float32([0, 0, 1000, np.inf]))
    assert np.isnan(F.relu(np.float32([np.nan]))).all()


@given(seeds, dtypes, batches, channels, channels)
def test_linear(seed, dtype, batch, c_in, c_out):
    """Catches a transposed weight."""
    x, w = normal(seed, batch, c_in, dtype=dtype), normal(seed, c_out, c_in, dtype=dtype)
    b = normal(seed, c_out, dtype=dtype)
    check(F.linear, torch.nn.functional.linear, dtype, x, w, b)


@given(seeds, batches, channels, sides, sides)
def test_inputs_are_never_modified(seed, batch, dim, height, width):
    """Catches an in-place shortcut that writes to an argument."""
    x = normal(seed, batch, dim, height, width)
    x = F.channels_first(F.channels_last(x))  # the layout for which nothing is copied
    w, v = normal(seed, dim, 1, 3, 3), np.abs(normal(seed, dim))
    x.flags.writeable = False
    F.depthwise_conv2d(x, w, v, padding=1)
    F.batch_norm(x, v, v, v, v)
    F.layer_norm_channels(x, v, v)
    for operation in (F.relu, F.sigmoid, F.silu, F.softplus, F.global_average_pool):
        operation(x)


@pytest.mark.parametrize("call, message", [
    (lambda: F.conv2d(np.zeros((3, 4, 4)), np.zeros((2, 3, 1, 1))), r"x must be rank 4.*\(3, 4, 4\)"),
    (lambda: F.conv2d(np.zeros((1, 3, 4, 4)), np.zeros((2, 4, 1, 1))), r"weight must be .*got shape \(2, 4, 1, 1\)"),
    (lambda: F.conv2d(np.zeros((1, 3, 2, 2)), np.zeros((2, 3, 3, 3))), "kernel 3x3 is larger .* 2x2"),
    (lambda: F.depthwise_conv2d(np.zeros((1, 3, 4, 4)), np.zeros((4, 3))), r"weight must be \(3, 1, .*\(4, 3\)"),
    (lambda: F.batch_norm(np.zeros((1, 3, 4)), *[np.zeros(3)] * 4), r"x must be .*got shape \(1, 3, 4\)"),
])
def test_errors_say_what_was_expected_and_what_came(call, message):
    """Catches shapes that NumPy would broadcast into nonsense."""
    with pytest.raises(ShapeError, match=message):
        call()
