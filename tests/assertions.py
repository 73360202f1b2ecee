"""The one comparison that all tests use, and what rounding can do: the only limit that holds on every processor.

Float32 rounds differently on different processors, BLAS libraries and numbers of threads: sums are added up in another
order, with or without fused multiply-adds. So no limit here is an error that one machine made. `rounding` measures in
float64, where every machine gets the same, how much a result moves when each value that it is computed from moves by no
more than its own rounding.
"""

from __future__ import annotations

import copy
from unittest.mock import patch

import numpy as np

from mmref.nn import functional as F

# Largest error over largest magnitude, for one operation on values that do not cancel. float64: a right implementation
# differs by rounding only. float32: sums of up to a few thousand products in another order.
TOLERANCE = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 2e-6}

HALF_UNIT = 2.0 ** -24  # of float32, relative
DRAWS = 6    # times that all values are moved: the largest of so many is hardly ever small by luck
UNITS = 32   # a sum of n terms is rounded n times, each term moved once: up to sqrt(n) times as much, in a bad order


def relative_error(actual, expected) -> float:
    """Largest elementwise error over the largest magnitude expected (over 1e-30 where all is zero)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if not expected.size:
        return 0.0
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))


def assert_close(actual, expected, tolerance: float | None = None, *, dtype=None):
    """Shape, dtype, finiteness, then every element within `tolerance` of the largest magnitude expected."""
    expected = np.asarray(expected)
    assert isinstance(actual, np.ndarray), type(actual)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    dtype = np.dtype(dtype or expected.dtype)
    assert actual.dtype == dtype, f"dtype {actual.dtype}, expected {dtype}"
    assert np.isfinite(actual).all(), "result is not finite"
    error, limit = relative_error(actual, expected), TOLERANCE[dtype] if tolerance is None else tolerance
    if error > limit:
        worst = np.unravel_index(np.abs(actual - expected).argmax(), actual.shape)
        raise AssertionError(f"error {error:.2e} of the largest, limit {limit:.0e}, worst at {worst}: "
                             f"{actual[worst]!r}, expected {expected[worst]!r}")


def moves(draws: int = DRAWS):
    """Functions that return a float64 copy of an array, each element moved by up to float32's half unit in the last
    place (whatever is tested: what float64's own moves would do cannot be seen in float64)."""
    rng = np.random.default_rng(0)
    for _ in range(draws):
        yield lambda array: array * (1 + HALF_UNIT * rng.uniform(-1, 1, array.shape))


def tolerance_of(change: float, largest: float, dtype=np.float32) -> float:
    """A tolerance for `assert_close`, from the largest change that `moves` make."""
    return UNITS * (change / max(largest, 1e-30) + HALF_UNIT) * float(np.finfo(dtype).eps) / (2 * HALF_UNIT)


def rounding(compute, dtype=np.float32) -> tuple[np.ndarray, float]:
    """(float64 truth, what `dtype`'s rounding can make of it, as a tolerance for `assert_close`).

    `compute(move)` returns the result in float64. It calls `move` on every array that the computation in `dtype` reads,
    parameters and inputs: in the first turn that only makes them float64, then see `moves`."""
    truth = compute(lambda array: array.astype(np.float64))
    if not truth.size:
        return truth, 0.0
    change = max(float(np.abs(compute(move) - truth).max()) for move in moves())
    return truth, tolerance_of(change, float(np.abs(truth).max()), dtype)


def of_layer(layer, x, run=lambda layer, x: layer(x)):
    """What `rounding` computes for a layer or network of the NumPy text: `run(layer, x)`, parameters moved as well, and
    the means of layer norms. Those of two channels that nearly agree give plus and minus one whatever moves before
    them, but are divided by their small difference, and so is the rounding of their mean."""
    def compute(move):
        moved = copy.deepcopy(layer)
        for _, owner, name in moved.named_parameters():
            setattr(owner, name, move(getattr(owner, name)))

        def layer_norm(x, weight, bias, eps=1e-5):
            centred = x - move(x.mean(1, keepdims=True))
            normed = centred / np.sqrt((centred ** 2).mean(1, keepdims=True) + eps)
            return normed * weight[:, None, None] + bias[:, None, None]
        with patch.object(F, "layer_norm_channels", layer_norm):
            return run(moved, move(x))
    return compute
