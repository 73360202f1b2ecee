"""Resizing as OpenCV does it, for the networks of dense tasks, whose training and published figures rest on it.

    small = resize(picture, resized_size(*picture.shape[:2], long=2048, short=512))

OpenCV's `INTER_LINEAR` on 8-bit pixels is integer arithmetic, so it can be met to the last bit: each axis has two
neighbours per output pixel, with weights in 2048ths. Nothing is smoothed first: where a picture shrinks to less than
half, pixels between the neighbours have no say, which is how these networks have seen their pictures.
"""

from __future__ import annotations

import numpy as np

from mmref.arguments import check_integer, check_integers, check_rank
from mmref.errors import PictureError, ShapeError

__all__ = ["resize", "resized_size"]

ONE = 2048            # a weight of 1: eleven bits
_BLOCK = 64           # output rows at once, so that a large picture takes no large copies
_MOST = 1 << 16       # output pixels per side


def resized_size(height: int, width: int, long: int, short: int) -> tuple[int, int]:
    """(height, width) after scaling, up or down and with the ratio kept, until the longer side is `long` or the
    shorter is `short`, whichever comes first.

    Raises PictureError where a side would round to nothing: 1 x 5000 becomes 0 x 2048."""
    height, width = check_integer("height", height, 1), check_integer("width", width, 1)
    long, short = check_integer("long", long, 1, _MOST), check_integer("short", short, 1, _MOST)
    factor = min(long / max(height, width), short / min(height, width))
    new = int(height * factor + 0.5), int(width * factor + 0.5)
    if 0 in new:
        raise PictureError(f"too slender: {width} x {height} pixels would be resized to {new[1]} x {new[0]}; crop it "
                           f"so that the longer side is at most {2 * long} times the shorter")
    return new


def resize(picture: np.ndarray, size) -> np.ndarray:
    """(H, W, C) uint8 -> (*size, C) uint8, bilinear, equal to OpenCV's `resize(..., INTER_LINEAR)` in every bit.

    size  (height, width) of the result. Raises ShapeError for another picture, ValueProblem for another size."""
    check_rank("picture", picture, "height width channels")
    if picture.dtype != np.uint8 or 0 in picture.shape:
        raise ShapeError(f"picture must be 8-bit pixels (uint8) and at least one, got {picture.dtype} of shape "
                         f"{picture.shape}")
    height, width = check_integers("size", size, 2, 1, _MOST)
    columns, across = _neighbours(picture.shape[1], width)
    rows, down = _neighbours(picture.shape[0], height)
    # beyond an edge lies the edge's own row or column again, with both weights: their shares are cut to whole numbers
    # one by one below, so a single weight of 1 would give another sum
    columns, rows = columns.clip(0, picture.shape[1] - 1), rows.clip(0, picture.shape[0] - 1)
    result = np.empty((height, width, picture.shape[2]), np.uint8)
    for start in range(0, height, _BLOCK):
        block = slice(start, start + _BLOCK)
        needed, places = np.unique(rows[:, block], return_inverse=True)
        upper, lower = places.reshape(2, -1)
        wide = _blend(picture[needed], columns, across) >> 4                    # (rows needed, width, C)
        first, second = down[:, block, None, None]
        result[block] = ((first * wide[upper] >> 16) + (second * wide[lower] >> 16) + 2) >> 2
    return result


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `new` pixels along an axis of `old`: its neighbours' indices, which may lie one beyond either end,
    and their weights; both (2, new) int32."""
    scale = 1 / (new / old)  # not old / new: the last bit of it decides about some pixels of sides beyond 4096
    position = ((np.arange(new) + 0.5) * scale - 0.5).astype(np.float32)
    index = np.floor(position)
    fraction = position - index
    weights = np.rint(np.stack([np.float32(1) - fraction, fraction]) * np.float32(ONE)).astype(np.int32)
    index = index.astype(np.int32)
    return np.stack([index, index + 1]), weights


def _blend(rows, columns, weights):
    """(R, W, C) uint8 -> (R, new W, C) int32, in 2048ths."""
    left, right = (rows[:, index].astype(np.int32) for index in columns)
    left *= weights[0][:, None]
    right *= weights[1][:, None]
    left += right
    return left
