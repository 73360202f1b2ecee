"""exp, softplus, SiLU, GELU and the logistic function of the compiled kernels, in units in the last place.

In the floating-point mode of the kernels, too, which flushes denormals: there a result may also be off by what was
flushed, less than the smallest normal number.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numba import njit
from scipy.special import erfc

from mmref.kernels import vector, vector_math
from mmref.kernels.float_mode import enter_kernels, set_float_mode
from mmref.kernels.target import LANES

LIMITS = dict.fromkeys(("exp", "exp2", "softplus", "silu", "sigmoid"), 2.0) | {"gelu": 7.0}  # units in the last place
SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)
MODES = {"denormals kept": 0.0, "denormals flushed": SMALLEST_NORMAL}  # and what may be lost


@cache
def compiled(name):
    """(source address, target address, floats): the vector function of that name over an array."""
    function = getattr(vector_math, name)

    @njit
    def over_array(source, target, floats):
        for i in range(0, floats, LANES):
            vector.store(target + 4 * i, function(vector.load(source + 4 * i)))
    return over_array


@cache
def compiled_to_flush(name):
    """The same as the kernels run it."""
    over_array = compiled(name)

    @njit
    def flushing(source, target, floats):
        mode = enter_kernels()
        over_array(source, target, floats)
        set_float_mode(mode)
    return flushing


def evaluate(name, x, mode="denormals kept"):
    padded = np.zeros(-(-len(x) // LANES) * LANES, np.float32)
    padded[:len(x)] = x
    y = np.empty_like(padded)
    run = compiled_to_flush(name) if MODES[mode] else compiled(name)
    run(padded.ctypes.data, y.ctypes.data, len(padded))
    return y[:len(x)]


def truth(name, x):
    """The function in float64, at float32 arguments."""
    x = x.astype(np.float64)
    e = np.exp(-np.abs(x))
    if name in ("exp", "exp2"):
        return getattr(np, name)(x)
    if name == "softplus":
        return np.maximum(x, 0) + np.log1p(e)
    if name == "gelu":
        return np.where(x == -np.inf, -0.0, 0.5 * x * erfc(-x * 0.5 ** 0.5))
    sigmoid = np.where(x >= 0, 1, e) / (1 + e)
    return sigmoid if name == "sigmoid" else np.where(x == -np.inf, -0.0, x * sigmoid)


def all_floats(step):
    """Every `step`-th bit pattern of float32: both signs, denormals, infinities, NaN among them."""
    return np.arange(0, 2**32, step, dtype=np.uint64).astype(np.uint32).view(np.float32)


def worst(name, x, mode):
    """Largest error in units in the last place of the right result; NaN and overflow must be where they belong."""
    with np.errstate(all="ignore"):
        y, right = evaluate(name, x, mode), truth(name, x)
        rounded = right.astype(np.float32)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
        infinite = np.isinf(rounded)
        np.testing.assert_array_equal(y[infinite], rounded[infinite])
        plain = np.isfinite(rounded)
        error = np.maximum(np.abs(y[plain] - right[plain]) - MODES[mode], 0)
        return float(np.max(error / np.spacing(np.abs(rounded[plain])).astype(np.float64)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LIMITS)
def test_whole_range(name, mode):
    """Catches clamping where results are still denormal, overflow, lost NaN, and a wrong polynomial anywhere."""
    assert worst(name, all_floats(1009), mode) <= LIMITS[name]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("low, high", [(-105, -85), (-30, -2), (-2, 2), (2, 90)])
def test_dense_where_it_curves(name, low, high, mode):
    """Catches a polynomial whose coefficients are off in the last digits, and a wrong border of the range reduction."""
    assert worst(name, np.linspace(low, high, 1_000_003).astype(np.float32), mode) <= LIMITS[name]


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
    for name in LIMITS:
        np.testing.assert_array_equal(evaluate(name, x)[::-1], evaluate(name, x[::-1].copy()))
