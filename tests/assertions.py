"""The one comparison that all tests use."""

from __future__ import annotations

import numpy as np

# Largest error over largest magnitude, for one layer. float64: a right implementation differs by rounding only.
# float32: sums of up to a few thousand products in another order.
TOLERANCE = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 2e-6}


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
