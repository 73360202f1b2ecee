"""exp, softplus, SiLU and the logistic function of the compiled kernels, in units in the last place."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numba import njit

from mmref.kernels import vector, vector_math
from mmref.kernels.target import LANES

LIMIT = 2.0  # units in the last place


@cache
def compiled(name):
    """(source address, target address, floats): the vector function of that name over an array."""
    function = getattr(vector_math, name)

    @njit
    def over_array(source, target, floats):
        for i in range(0, floats, LANES):
            vector.store(target + 4 * i, function(vector.load(source + 4 * i)))
    return over_array


def evaluate(name, x):
    padded = np.zeros(-(-len(x) // LANES) * LANES, np.float32)
    padded[:len(x)] = x
    y = np.empty_like(padded)
    compiled(name)(padded.ctypes.data, y.ctypes.data, len(padded))
    return y[:len(x)]


def truth(name, x):
    """The function in float64, at float32 arguments."""
    x = x.astype(np.float64)
    e = np.exp(-np.abs(x))
    if name in ("exp", "exp2"):
        return getattr(np, name)(x)
    if name == "softplus":
        return np.maximum(x, 0) + np.log1p(e)
    sigmoid = np.where(x >= 0, 1, e) / (1 + e)
    return sigmoid if name == "sigmoid" else np.where(x == -np.inf, -0.0, x * sigmoid)


def all_floats(step):
    """Every `step`-th bit pattern of float32: both signs, denormals, infinities, NaN among them."""
    return np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)


def worst(name, x):
    """Largest error in units in the last place of the right result; NaN and overflow must be where they belong."""
    with np.errstate(all="ignore"):
        y, right = evaluate(name, x), truth(name, x)
        rounded = right.astype(np.float32)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
        infinite = np.isinf(rounded)
        np.testing.assert_array_equal(y[infinite], rounded[infinite])
        plain = np.isfinite(rounded)
        return float(np.max(np.abs(y[plain] - right[plain]) / np.spacing(np.abs(rounded[plain])).astype(np.float64)))


@pytest.mark.parametrize("name", ["exp", "exp2", "softplus", "silu", "sigmoid"])
def test_whole_range(name):
    """Catches clamping where results are still denormal, overflow, lost NaN, and a wrong polynomial anywhere."""
    assert worst(name, all_floats(1009)) <= LIMIT


@pytest.mark.parametrize("name", ["exp", "exp2", "softplus", "silu", "sigmoid"])
@pytest.mark.parametrize("low, high", [(-105, -85), (-30, -2), (-2, 2), (2, 90)])
def test_dense_where_it_curves(name, low, high):
    """Catches a polynomial whose coefficients are off in the last digits, and a wrong border of the range reduction."""
    assert worst(name, np.linspace(low, high, 1_000_003).astype(np.float32)) <= LIMIT


def test_special_values():
    """Catches limits that are NaN where x * sigmoid(x), evaluated literally, is infinity times zero."""
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32)
    np.testing.assert_array_equal(evaluate("exp", x), np.array([np.inf, 0, np.nan, 1, 1, 1, 1, np.inf, 0], np.float32))
    silu = evaluate("silu", x)
    np.testing.assert_array_equal(silu[:5], np.array([np.inf, 0, np.nan, 0, 0], np.float32))
    np.testing.assert_array_equal(silu[7:], np.array([3.4e38, 0], np.float32))
    assert np.signbit(silu[[1, 4, 8]]).all() and not np.signbit(silu[3])
    softplus = evaluate("softplus", x)
    np.testing.assert_array_equal(softplus[[0, 1, 2, 7, 8]], np.array([np.inf, 0, np.nan, 3.4e38, 0], np.float32))


def test_every_lane_is_its_own():
    """Catches a result that depends on a neighbour in the vector, or a lane mixed up with another."""
    x = np.random.default_rng(0).uniform(-90, 90, 64 * LANES).astype(np.float32)
    for name in ("exp", "exp2", "softplus", "silu", "sigmoid"):
        np.testing.assert_array_equal(evaluate(name, x)[::-1], evaluate(name, x[::-1].copy()))
