"""The orders in which pixels are visited."""

from __future__ import annotations

import numpy as np
import pytest
from assertions import assert_close
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, channels, dtypes, normal, orders, seeds, sides

from mmref.errors import ShapeError, ValueProblem
from mmref.nn.paths import BACKWARDS, directions, paths
from mmref.nn.scan_order import cross_merge, cross_scan

pytest.importorskip("torch")

import torch

from mmref.bench import torch_network


@given(seeds, dtypes, batches, channels, sides, sides, orders)
def test_scan_and_merge_equal_pytorch(seed, dtype, batch, dim, height, width, order):
    """Catches the wrong direction reversed, rows for columns, samples added up together."""
    x = normal(seed, batch, dim, height, width, dtype=dtype)
    sequences = cross_scan(x, order)
    assert_close(sequences, torch_network.scan_sequences(torch.from_numpy(x), order).numpy(), 0)
    y = normal(seed, *sequences.shape, dtype=dtype)
    assert_close(cross_merge(y, order, height, width),
                 torch_network.scan_merge(torch.from_numpy(y), order, height, width).numpy())


@given(seeds, batches, channels, sides, sides, orders)
def test_merge_undoes_scan(seed, batch, dim, height, width, order):
    """Catches a pixel that lands elsewhere than it came from: the merge of a scan is K times the map."""
    x = np.round(normal(seed, batch, dim, height, width) * 8)  # small integers: sums are exact
    assert_close(cross_merge(cross_scan(x, order), order, height, width), x * len(directions(order)), 0)


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
    with pytest.raises(ShapeError, match=r"y must be \(batch, 2, channels, 6\) for a 2x3 map"):
        cross_merge(np.zeros((1, 2, 4, 5), np.float32), "bidirectional", 2, 3)


@given(sides, sides, st.integers(1, 9), st.booleans())
def test_windows(height, width, side, backwards):
    """Catches windows or their pixels in another order, and padding elsewhere than at the bottom and right."""
    expected = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            for row in range(top, top + side):
                for column in range(left, left + side):
                    expected.append(row * width + column if row < height and column < width else -1)
    table = paths((f"windows {side}{BACKWARDS * backwards}",), height, width)
    assert table.tolist() == [expected[::-1] if backwards else expected]


@given(sides, sides)
def test_atrous(height, width):
    """Catches a pixel that two of EfficientVMamba's four sequences visit, or none, and the order within them."""
    table = paths("atrous", height, width)
    assert sorted(pixel for pixel in table.ravel().tolist() if pixel >= 0) == list(range(height * width))
    for k, (row, column) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        visited = [(pixel // width, pixel % width) for pixel in table[k].tolist() if pixel >= 0]
        assert all((y % 2, x % 2) == (row, column) for y, x in visited)
        assert visited == sorted(visited, key=lambda place: place if row == 0 else place[::-1])


@given(seeds, sides, sides, orders)
def test_paths_are_what_a_loop_visits(seed, height, width, order):
    """Catches a table that is transposed or shifted: each direction written out as a loop."""
    numbers = np.arange(height * width).reshape(height, width)
    ways = {"rows": numbers.ravel(), "columns": numbers.T.ravel()}
    for path, direction in zip(paths(order, height, width), directions(order), strict=True):
        forward = ways[direction.removesuffix(BACKWARDS)]
        assert path.tolist() == (forward[::-1] if direction.endswith(BACKWARDS) else forward).tolist()


def test_directions_of_several_lengths():
    """Catches a shorter path that is padded in front, where the padding would be scanned before its pixels."""
    table = paths(("rows", "windows 3 backwards"), 2, 2)
    assert table.tolist() == [[0, 1, 2, 3] + [-1] * 5, [-1, -1, -1, -1, 3, 2, -1, 1, 0]]
    for order in ("spiral", ("rows", "spiral"), (), "windows 0", ("windows x",), None, 3):
        with pytest.raises(ValueProblem, match="order must be one of"):
            paths(order, 2, 2)
