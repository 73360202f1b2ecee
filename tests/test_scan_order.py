"""The orders in which pixels are visited."""

from __future__ import annotations

import numpy as np
import pytest
from assertions import assert_close
from hypothesis import given
from strategies import batches, channels, dtypes, normal, orders, seeds, sides

from mmref.errors import ShapeError, ValueProblem
from mmref.nn.scan_order import cross_merge, cross_scan, directions

pytest.importorskip("torch")

import torch
import torch_reference


@given(seeds, dtypes, batches, channels, sides, sides, orders)
def test_scan_and_merge_equal_pytorch(seed, dtype, batch, dim, height, width, order):
    """Catches the wrong direction reversed, rows for columns, samples added up together."""
    x = normal(seed, batch, dim, height, width, dtype=dtype)
    sequences = cross_scan(x, order)
    assert_close(sequences, torch_reference.scan_sequences(torch.from_numpy(x), order).numpy(), 0)
    y = normal(seed, *sequences.shape, dtype=dtype)
    assert_close(cross_merge(y, order, height, width),
                 torch_reference.scan_merge(torch.from_numpy(y), order, height, width).numpy())


@given(seeds, batches, channels, sides, sides, orders)
def test_merge_undoes_scan(seed, batch, dim, height, width, order):
    """Catches a pixel that lands elsewhere than it came from: the merge of a scan is K times the map."""
    x = np.round(normal(seed, batch, dim, height, width) * 8)  # small integers: sums are exact
    assert_close(cross_merge(cross_scan(x, order), order, height, width), x * directions(order), 0)


def test_the_order_of_a_small_map():
    """Catches all of it at once, in numbers a reader can check."""
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)  # 0 1 2 / 3 4 5
    np.testing.assert_array_equal(cross_scan(x, "cross")[0, :, 0], [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5],
                                                                     [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]])
    np.testing.assert_array_equal(cross_scan(x, "bidirectional")[0, :, 0], [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])


def test_errors():
    """Catches unknown orders and lengths that do not belong to the map."""
    with pytest.raises(ValueProblem, match="order must be one of"):
        cross_scan(np.zeros((1, 1, 2, 2), np.float32), "spiral")
    with pytest.raises(ShapeError, match=r"y must be \(batch, 2, channels, 2\*3\)"):
        cross_merge(np.zeros((1, 2, 4, 5), np.float32), "bidirectional", 2, 3)
