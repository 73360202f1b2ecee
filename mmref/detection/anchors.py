"""Anchors: the boxes that a detector's raw maps are offsets of, some for each cell of each map.

Boxes are (x1, y1, x2, y2) in pixels of the network's input, continuous: width = x2 - x1. Always float64: an anchor of
500 pixels is off by 2e-5 of them in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmref.arguments import check_integers


@dataclass(frozen=True)
class Anchors:
    """The anchors of one map.

    stride   pixels from one cell's centre to the next
    shapes   (width, height) of each anchor of a cell
    offset   where the first centre lies, in strides: 0 in the corner of the picture, 0.5 in the middle of its cell
    """

    stride: float
    shapes: tuple[tuple[float, float], ...]
    offset: float = 0.0

    def grid(self, height: int, width: int) -> np.ndarray:
        """(height * width * anchors, 4), float64: by row, column, anchor. Raises ValueProblem."""
        height, width = check_integers("size of a map", (height, width), 2, 0)
        half = np.array(self.shapes, np.float64).reshape(-1, 2) / 2         # (anchors, 2)
        corners = np.concatenate([-half, half], axis=1)                     # (anchors, 4)
        y = (np.arange(height) + self.offset) * self.stride
        x = (np.arange(width) + self.offset) * self.stride
        centres = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)  # (height, width, 2)
        centres = np.concatenate([centres, centres], axis=-1)               # (height, width, 4)
        return (centres[:, :, None] + corners).reshape(-1, 4)


def by_ratio_and_scale(stride: float, sizes, ratios) -> Anchors:
    """All pairs, ratios outermost: width s / sqrt(r), height s * sqrt(r) for r = height / width. Centres lie at
    (column * stride, row * stride), as RetinaNet and region proposals have them."""
    return Anchors(stride, tuple((size / ratio ** 0.5, size * ratio ** 0.5) for ratio in ratios for size in sizes))


def of_ssd(stride: float, smallest: float, largest: float) -> Anchors:
    """SSD's six: squares of side `smallest` and of the geometric mean of both sides, then `smallest` at height / width
    1/2, 2, 1/3, 3. Centres lie in the middle of their cells (Liu et al. 2016, section 2.2)."""
    squares = ((smallest, smallest), ((smallest * largest) ** 0.5,) * 2)
    slender = tuple((smallest / ratio ** 0.5, smallest * ratio ** 0.5) for ratio in (1 / 2, 2, 1 / 3, 3))
    return Anchors(stride, squares + slender, 0.5)
