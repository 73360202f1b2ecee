"""The orders in which a scan visits the pixels of a map, and the way back.

Letters: B batch, D channels, H x W pixels, L = H*W, K directions. Upstream: `CrossScan`, `CrossMerge`.

    unidirectional  K = 1: rows, left to right
    bidirectional   K = 2: rows; the same backwards (the released weights)
    cross           K = 4: rows; columns; both backwards
"""

from __future__ import annotations

import numpy as np

from mmref.arguments import check_choice, check_integer, check_rank
from mmref.errors import ShapeError

DIRECTIONS = {"unidirectional": 1, "bidirectional": 2, "cross": 4}


def directions(order: str) -> int:
    """K of an order; ValueProblem for an unknown one."""
    return DIRECTIONS[check_choice("order", order, DIRECTIONS)]


def cross_scan(x: np.ndarray, order: str = "bidirectional") -> np.ndarray:
    """(B, D, H, W) -> (B, K, D, L): the map read off once in every direction. Raises ShapeError, and
    ValueProblem for an unknown order."""
    check_rank("x", x, "batch channels height width")
    batch, dim, height, width = x.shape
    K = directions(order)
    sequences = np.empty((batch, K, height * width, dim), x.dtype)           # channels last, as everywhere
    sequences[:, 0] = x.transpose(0, 2, 3, 1).reshape(batch, height * width, dim)
    if order == "cross":
        sequences[:, 1] = x.transpose(0, 3, 2, 1).reshape(batch, height * width, dim)
    if K > 1:
        sequences[:, K // 2:] = sequences[:, :K // 2, ::-1]
    return sequences.swapaxes(2, 3)


def cross_merge(y: np.ndarray, order: str, height: int, width: int) -> np.ndarray:
    """(B, K, D, L) -> (B, D, H, W): every direction laid back on the map, then added up.

    Each sample adds up its own directions only (the published CPU path adds up over the batch; its GPU path,
    which we follow, does not). Raises ShapeError where shapes disagree, ValueProblem for an unknown order and for a
    height or width that is no integer >= 0.
    """
    check_rank("y", y, "batch directions channels length")
    height, width = check_integer("height", height, 0), check_integer("width", width, 0)
    batch, K, dim, length = y.shape
    if K != directions(order) or length != height * width:
        raise ShapeError(f"y must be (batch, {directions(order)}, channels, {height}*{width}) for order {order!r}, "
                         f"got shape {y.shape}")
    y = y.swapaxes(2, 3)                                                     # (B, K, L, D)
    if K > 1:
        y = y[:, :K // 2] + y[:, K // 2:, ::-1]
    merged = y[:, 0].reshape(batch, height, width, dim)
    if order == "cross":
        merged = merged + y[:, 1].reshape(batch, width, height, dim).swapaxes(1, 2)
    return merged.transpose(0, 3, 1, 2)
