"""Transposed convolution against PyTorch, over drawn shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, channels, dtypes, normal, seeds, sides
from test_functional import check

from mmref.engine import CompiledModel
from mmref.errors import NotTraceable, ShapeError, ValueProblem
from mmref.nn import functional as F
from mmref.nn.transposed import conv_transpose2d

pytest.importorskip("torch")

import torch

functional = torch.nn.functional


@given(seeds, dtypes, batches, channels, channels, sides, sides, st.integers(1, 4), st.integers(1, 4),
       st.integers(1, 4), st.integers(0, 2), st.booleans())
def test_conv_transpose2d(seed, dtype, batch, c_in, c_out, height, width, k_h, k_w, stride, padding, biased):
    """Catches filters turned, input and output channels exchanged, overlaps that overwrite, a bias added twice."""
    x, w = normal(seed, batch, c_in, height, width, dtype=dtype), normal(seed, c_in, c_out, k_h, k_w, dtype=dtype)
    arrays = [x, w, normal(seed, c_out, dtype=dtype)] if biased else [x, w]
    if (min(height, width) - 1) * stride + min(k_h, k_w) <= 2 * padding:
        with pytest.raises(ShapeError, match="no pixel"):
            if (height - 1) * stride + k_h > 2 * padding and (width - 1) * stride + k_w > 2 * padding:
                raise ShapeError("no pixel")     # the longer filter lies along the shorter side: there is one
            conv_transpose2d(*arrays, stride=stride, padding=padding)
        return
    check(lambda *arrays: conv_transpose2d(*arrays, stride=stride, padding=padding),
          lambda x, w, b=None: functional.conv_transpose2d(x, w, b, stride, padding), dtype, *arrays)


@given(seeds, batches, channels, sides, sides)
def test_flatten(seed, batch, dim, height, width):
    """Catches values by pixel instead of by channel."""
    x = normal(seed, batch, height, width, dim).transpose(0, 3, 1, 2)       # channels last, as a network has them
    np.testing.assert_array_equal(F.flatten(x), torch.from_numpy(x).flatten(1).numpy())


def test_what_is_refused():
    """Catches shapes that NumPy would broadcast, and a kernel that computes something else where filters overlap."""
    x, w = np.zeros((1, 2, 3, 3), np.float32), np.zeros((2, 4, 2, 2), np.float32)
    for arrays, options, error in (((x[0], w), {}, ShapeError), ((x, w[:1]), {}, ShapeError),
                                   ((x, w, np.zeros(1, np.float32)), {}, ShapeError),
                                   ((x, w.astype(float)), {}, ShapeError), ((x, w), dict(stride=0), ValueProblem),
                                   ((x, w), dict(padding=-1), ValueProblem), ((x[:, :, :0], w), {}, ShapeError)):
        with pytest.raises(error):
            conv_transpose2d(*arrays, **options)
    from test_graph import OneLayer, Text
    layer = Text(lambda self, x: conv_transpose2d(x, np.ones((8, 2, 3, 3), np.float32), stride=2))
    with pytest.raises(NotTraceable, match="filters overlap"):
        CompiledModel(OneLayer(layer))(np.zeros((1, 8, 4, 4), np.float32))
