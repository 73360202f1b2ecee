"""The recurrence against PyTorch's step-by-step form, for any number of states and directions."""

from __future__ import annotations

import numpy as np
import pytest
from assertions import assert_close, rounding
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, channels, dtypes, normal, seeds

from mmref.errors import MissingBackend, ShapeError
from mmref.nn.recurrence import selective_scan

pytest.importorskip("torch")

import torch
import torch_reference


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
    expected, tolerance = rounding(lambda move: torch_reference.selective_scan(*map(tensor, map(move, inputs))).numpy(),
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
