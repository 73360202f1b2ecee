"""Operations of networks that scan rows of tokens, each against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, channels, dtypes, normal, seeds, sides

from mmref.nn.position import resize_bicubic
from mmref.nn.tokens import causal_conv, gelu, pad_to_multiple, rms_norm_channels, rotary

pytest.importorskip("torch")

import torch
from assertions import assert_close
from test_functional import check


@given(seeds, dtypes, st.sampled_from([0.1, 1.0, 5.0, 30.0]))
def test_gelu(seed, dtype, scale):
    """Catches the tanh approximation, and a tail that is lost to 1 + erf(x) where that cancels."""
    x = normal(seed, 3, 50, dtype=dtype, scale=scale)
    check(gelu, torch.nn.functional.gelu, dtype, x)
    shares = np.float64([1.3498980316300946e-3, 9.865876450376946e-10, 7.61985302416052e-24])  # below -3, -6, -10
    x = np.float64([-3, -6, -10])
    np.testing.assert_allclose(gelu(x), x * shares, rtol=1e-12)


@given(seeds, dtypes, batches, channels, sides, sides)
def test_rms_norm(seed, dtype, batch, dim, height, width):
    """Catches a mean taken off, the variance in place of the mean square, eps outside the root."""
    x, weight = normal(seed, batch, dim, height, width, dtype=dtype), normal(seed, dim, dtype=dtype)
    check(rms_norm_channels, lambda x, w: torch.nn.functional.rms_norm(x.movedim(1, 3), (dim,), w, 1e-5).movedim(3, 1),
          dtype, x, weight)


@given(seeds, dtypes, batches, st.integers(1, 3), channels, sides, st.integers(1, 5))
def test_causal_conv(seed, dtype, batch, K, dim, length, taps):
    """Catches a step that sees later ones, filters back to front, directions or channels with each other's filters,
    and sequences shorter than a filter."""
    arrays = [normal(seed, *shape, dtype=dtype) for shape in ((batch, K, dim, length), (K, dim, taps), (K, dim))]

    def theirs(x, weight, bias):
        y = torch.nn.functional.conv1d(x.flatten(1, 2), weight.reshape(-1, 1, taps), bias.flatten(), padding=taps - 1,
                                       groups=K * dim)
        return y[..., :length].reshape(x.shape)
    check(causal_conv, theirs, dtype, *arrays)


@given(seeds, dtypes, batches, st.sampled_from([2, 4, 18]), sides, sides)
def test_rotary(seed, dtype, batch, dim, height, width):
    """Catches halves turned in place of neighbours, the other sense of rotation, a token with another's angle."""
    x, angle = normal(seed, batch, dim, height, width, dtype=dtype), normal(seed, 1, dim // 2, height, width)
    cos, sin = (np.repeat(f(angle), 2, axis=1).astype(dtype) for f in (np.cos, np.sin))

    def theirs(x, cos, sin):
        turn = torch.complex(cos[:, ::2], sin[:, ::2])
        z = torch.complex(x[:, ::2], x[:, 1::2]) * turn
        return torch.stack([z.real, z.imag], 2).flatten(1, 2)
    check(rotary, theirs, dtype, x, cos, sin)


@given(seeds, batches, sides, sides, st.integers(1, 9))
def test_pad_to_multiple(seed, batch, height, width, side):
    """Catches zeros at the top or left, and a whole block more where a side is a multiple already."""
    x = normal(seed, batch, 3, height, width)
    right, bottom = -width % side, -height % side
    check(lambda x: pad_to_multiple(x, side), lambda x: torch.nn.functional.pad(x, (0, right, 0, bottom)), np.float32,
          x)


@given(seeds, dtypes, sides, sides, sides, sides)
def test_resize_bicubic(seed, dtype, height, width, to_height, to_width):
    """Catches corners aligned, another sharpness, rows and columns exchanged, another border."""
    table = normal(seed, height, width, 3, dtype=dtype)
    expected = torch.nn.functional.interpolate(torch.from_numpy(table.astype(np.float64)).movedim(2, 0)[None],
                                               (to_height, to_width), mode="bicubic", align_corners=False)
    assert_close(resize_bicubic(table, to_height, to_width), expected[0].movedim(0, 2).numpy(), dtype=dtype,
                 tolerance=1e-12 if dtype == np.float64 else 1e-6)
