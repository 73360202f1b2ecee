"""From a map to sequences and back: every direction of a scan reads the pixels off in its own order.

Letters: B batch, D channels, H x W pixels, L steps, K directions. The orders are in paths.py. Upstream: `CrossScan`,
`CrossMerge`.
"""

from __future__ import annotations

import numpy as np

from mmref.nn import shapes
from mmref.nn.functional import channels_first, channels_last
from mmref.nn.operation import operation
from mmref.nn.paths import PADDING, paths


@operation(shapes.cross_scan)
def cross_scan(x: np.ndarray, order="bidirectional") -> np.ndarray:
    """(B, D, H, W) -> (B, K, D, L): the map read off once in every direction. Raises ShapeError, and
    ValueProblem for an unknown order."""
    batch, dim, height, width = x.shape
    table = paths(order, height, width)                                     # (K, L)
    pixels = channels_last(x).reshape(batch, height * width, dim)
    sequences = pixels[:, table]                                            # (B, K, L, D)
    if (table == PADDING).any():
        sequences[:, table == PADDING] = 0
    return sequences.swapaxes(2, 3)


@operation(shapes.cross_merge)
def cross_merge(y: np.ndarray, order, height: int, width: int) -> np.ndarray:
    """(B, K, D, L) -> (B, D, H, W): every direction laid back on the map, then added up.

    Each sample adds up its own directions only (the published CPU path adds up over the batch; its GPU path,
    which we follow, does not). Raises ShapeError where shapes disagree, ValueProblem for an unknown order and for a
    height or width that is not an integer >= 0.
    """
    batch, K, dim, _ = y.shape
    pixels = np.zeros((batch, height * width, dim), y.dtype)
    for k, path in enumerate(paths(order, height, width)):
        inside = path != PADDING
        pixels[:, path[inside]] += y[:, k].swapaxes(1, 2)[:, inside]        # a path visits no pixel twice
    return channels_first(pixels.reshape(batch, height, width, dim))
