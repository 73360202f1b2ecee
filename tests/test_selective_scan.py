"""The recurrence against PyTorch's step-by-step form, for any number of states and directions."""

from __future__ import annotations

import numpy as np
import pytest
from assertions import assert_close, rounding
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import batches, channels, dtypes, normal, seeds

from mmref.errors import MissingBackend, ShapeError
from mmref.nn.recurrence import selective_scan

pytest.importorskip("torch")

import torch

from mmref.bench import torch_network


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def arguments(seed, dtype, batch, K, dim, N, length):
    """Inputs in the range of a trained network: decays between 0.05 and 1."""
    u, delta = normal(seed, batch, K, dim, length, dtype=dtype), normal(seed + 1, batch, K, dim, length, dtype=dtype)
    delta, A = np.log1p(np.exp(delta)), -np.exp(0.5 * normal(seed, K, dim, N, dtype=dtype))
    B, C = normal(seed + 2, batch, K, N, length, dtype=dtype), normal(seed + 3, batch, K, N, length, dtype=dtype)
    return u, delta, A, B, C, normal(seed, K, dim, dtype=dtype)


@given(seeds, dtypes, batches, st.integers(1, 4), channels, st.integers(1, 4), st.sampled_from([1, 2, 3, 7, 16, 33]))
def test_equals_pytorch(seed, dtype, batch, K, dim, N, length):
    """Catches a forgotten D, C before the update, states that mix, a state kept from the previous sample."""
    inputs = arguments(seed, dtype, batch, K, dim, N, length)
    for array in inputs:
        array.flags.writeable = False
    expected, tolerance = rounding(lambda move: torch_network.selective_scan(*map(tensor, map(move, inputs))).numpy(),
                                   dtype)
    assert_close(selective_scan(*inputs), expected, tolerance, dtype=dtype)


def test_one_channel_by_hand():
    """Catches an off-by-one in time: h starts at zero and the first output sees the first input."""
    u, delta = np.array([[[[1.0, 2.0, 4.0]]]]), np.array([[[[0.5, 1.0, 0.25]]]])
    A, D = np.array([[[-1.0]]]), np.array([[3.0]])
    B, C = np.array([[[[1.0, 2.0, 1.0]]]]), np.array([[[[2.0, 1.0, 1.0]]]])
    h0 = 0.5 * 1 * 1
    h1 = np.exp(-1.0) * h0 + 1.0 * 2 * 2
    h2 = np.exp(-0.25) * h1 + 0.25 * 1 * 4
    np.testing.assert_allclose(selective_scan(u, delta, A, B, C, D)[0, 0, 0], [2 * h0 + 3, h1 + 6, h2 + 12])


def test_errors():
    """Catches shapes that would broadcast, and unknown backends."""
    good = arguments(0, np.float32, 2, 2, 3, 1, 5)
    for position, name in enumerate(("u", "delta", "A", "B", "C", "D")):
        bad = list(good)
        bad[position] = bad[position][..., :-1]
        with pytest.raises(ShapeError, match="to go with u|must be rank"):
            selective_scan(*bad)
        assert name
    with pytest.raises(MissingBackend, match="numpy, numba"):
        selective_scan(*good, backend="jax")


def test_the_first_step_is_like_any_other():
    """Catches a first decay that is skipped by one backend and not by another: the zero state is multiplied by it."""
    ones = np.ones((1, 1, 1, 3), np.float32)
    A, D = np.full((1, 1, 1), 100, np.float32), np.ones((1, 1), np.float32)
    for backend in ("numpy", "numba"):
        with np.errstate(over="ignore", invalid="ignore"):
            overflown = selective_scan(ones, ones, A, ones, ones, D, backend=backend)
            nan = selective_scan(ones, ones, A * np.float32(np.nan), ones, ones, D, backend=backend)
        assert np.isnan(overflown).all() and np.isnan(nan).all(), backend


@given(seeds, batches, st.integers(0, 3), st.integers(0, 20), st.integers(0, 5))
def test_without_states(seed, batch, K, dim, length):
    """Catches an error, or an array of another shape, where no channel has a state (or there are none of anything)."""
    u = normal(seed, batch, K, dim, length)
    A, B, D = np.zeros((K, dim, 0), np.float32), np.zeros((batch, K, 0, length), np.float32), normal(seed, K, dim)
    for backend in ("numpy", "numba"):
        np.testing.assert_array_equal(selective_scan(u, u, A, B, B, D, backend=backend), D[:, :, None] * u)


def strange(seed, name, *shape, share):
    """Moderate values, some of them replaced by what arithmetic has rules of its own for. Those that overflow or
    underflow an exponential do so by far: near the borders of float32 backends may round to either side."""
    rng = np.random.default_rng([seed, len(name), *map(ord, name)])
    values = rng.uniform(-1.5, 1.5, shape)
    special = rng.choice([0.0, -0.0, np.inf, -np.inf, np.nan, 300.0, -300.0], shape)
    return np.where(rng.random(shape) < share, special, values).astype(np.float32)


@given(seeds, st.integers(1, 2), st.integers(1, 2), st.sampled_from([1, 3, 17]), st.integers(0, 16), st.integers(0, 6),
       st.sampled_from([0.02, 0.2]))
def test_values_that_are_not_finite(seed, batch, K, dim, N, length, share):
    """Catches a backend with its own idea of a decay that is NaN or overflowed, of infinity times zero, of a sum of
    infinities: finite, infinite or NaN at the same places in both, and close where finite."""
    u, delta = (strange(seed, name, batch, K, dim, length, share=share) for name in ("u", "delta"))
    B, C = (strange(seed, name, batch, K, N, length, share=share) for name in ("B", "C"))
    A, D = strange(seed, "A", K, dim, N, share=share), strange(seed, "D", K, dim, share=share)
    with np.errstate(all="ignore"):
        exponents = np.abs(delta[..., None, :] * A[..., None])
        assume(not ((exponents > 60) & (exponents < 150)).any())  # decays that are denormal, or nearly infinite
        expected, magnitude = selective_scan(u, delta, A, B, C, D), selective_scan(
            *(np.where(np.isfinite(a), np.abs(a), 0).astype(np.float64) for a in (u, delta, A, B, C, D)))
    assume(magnitude.max(initial=0) < 1e30)  # no sum that overflows in one order of rounding and not in another
    got = selective_scan(u, delta, A, B, C, D, backend="numba")
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite])
    assert np.isfinite(got[finite]).all()
    assert (np.abs(got[finite] - expected[finite]) <= 1e-5 * magnitude[finite] + 1e-30).all()
