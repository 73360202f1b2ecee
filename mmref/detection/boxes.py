"""Arithmetic of boxes (x1, y1, x2, y2): offsets of anchors, clipping, overlap. All in float64."""

from __future__ import annotations

import numpy as np

from mmref.arguments import check_ndarray
from mmref.errors import ShapeError

MOST_GROWTH = np.log(1000 / 16)  # of a side, in logarithms: offsets beyond it are clamped


def check_boxes(name: str, boxes) -> np.ndarray:
    """`boxes` (n, 4) of real numbers, as float64. Raises ShapeError for anything else, NaN and infinity included."""
    check_ndarray(name, boxes, "boxes x1,y1,x2,y2")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "fiu":
        raise ShapeError(f"{name} must be (boxes, 4) of real numbers, got shape {boxes.shape} of {boxes.dtype}")
    boxes = boxes.astype(np.float64)
    if not np.isfinite(boxes).all():
        raise ShapeError(f"{name} must be finite, got NaN or infinity")
    return boxes


def decode(anchors, deltas, spread=(1.0, 1.0, 1.0, 1.0), size=None) -> np.ndarray:
    """Boxes (n, 4), float64, from anchors (n, 4) and a network's offsets (n, 4) of them (Girshick et al. 2014,
    appendix C).

    deltas   (dx, dy, dw, dh), each times its `spread`: the centre moves by dx widths and dy heights of the anchor, the
             sides grow by exp(dw) and exp(dh), at most 62.5 times and at least as little
    size     (height, width) that the boxes are clipped to, None for none

    Raises ShapeError.
    """
    anchors, deltas = check_boxes("anchors", anchors), check_boxes("deltas", deltas)
    if len(anchors) != len(deltas):
        raise ShapeError(f"deltas must be one for each of {len(anchors)} anchors, got {len(deltas)}")
    deltas = deltas * np.asarray(spread, np.float64)
    sides = anchors[:, 2:] - anchors[:, :2]
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2 + deltas[:, :2] * sides
    halves = sides * np.exp(np.clip(deltas[:, 2:], -MOST_GROWTH, MOST_GROWTH)) / 2
    boxes = np.concatenate([centres - halves, centres + halves], axis=1)
    return boxes if size is None else clip(boxes, size)


def clip(boxes, size) -> np.ndarray:
    """Boxes cut to a picture of `size` (height, width)."""
    height, width = size
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float64))


def has_area(boxes) -> np.ndarray:
    """(n,) booleans: width and height are both larger than 0."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def areas(boxes) -> np.ndarray:
    """(n,) width times height."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def overlap(box, boxes) -> np.ndarray:
    """Intersection over union of one box (4,) with others (n, 4); 0 where both are empty."""
    inside = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.maximum(inside[:, 0], 0) * np.maximum(inside[:, 1], 0)
    union = areas(box[None])[0] + areas(boxes) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union != 0)
