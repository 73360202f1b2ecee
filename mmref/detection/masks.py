"""From a square of probabilities in a box to a mask of the picture."""

from __future__ import annotations

import numpy as np

from mmref.arguments import check_array, check_integers
from mmref.detection.boxes import check_boxes
from mmref.errors import ShapeError


def paste(probabilities, box, size) -> np.ndarray:
    """One object's probabilities (m, m), stretched over its box (4,), for every pixel of a picture of `size` (height,
    width); float64, zeros beyond a pixel outside of the box.

    Bilinear between the centres of the m x m squares, fading to zero beyond the outermost. A box without width (height)
    takes the middle column (row). Raises ShapeError, ValueProblem.
    """
    picture = np.zeros(check_integers("size", size, 2, 0))
    top, left, values = pasted_part(probabilities, box, size)
    picture[top:top + values.shape[0], left:left + values.shape[1]] = values
    return picture


def pasted_part(probabilities, box, size) -> tuple[int, int, np.ndarray]:
    """The part of `paste` that may not be zero: (first row, first column, values)."""
    check_array("probabilities", probabilities, "rows columns")
    height, width = check_integers("size", size, 2, 0)
    x1, y1, x2, y2 = check_boxes("box", np.reshape(box, (1, -1)))[0]
    top, rows = _line_weights(y1, y2, probabilities.shape[0], height)
    left, columns = _line_weights(x1, x2, probabilities.shape[1], width)
    return top, left, rows @ probabilities.astype(np.float64) @ columns.T


def _line_weights(low, high, count, length):
    """(first pixel, weights (pixels, count)): how much each of `count` squares counts for the pixels of an axis."""
    first = int(np.clip(np.floor(low) - 1, 0, length))
    last = int(np.clip(np.ceil(high) + 1, first, length))
    if high == low:
        at = np.full(last - first, (count - 1) / 2)
    else:
        with np.errstate(over="ignore"):
            at = (np.arange(first, last) + 0.5 - low) / (high - low) * count - 0.5
    at = np.clip(at, -2, count + 1)              # beyond one square outside nothing counts, however far
    below = np.floor(at).astype(np.int64)
    weights = np.zeros((len(at), count + 5))
    pixels = np.arange(len(at))
    weights[pixels, below + 2] = 1 - (at - below)
    weights[pixels, below + 3] += at - below
    return first, weights[:, 2:count + 2]


def paste_masks(probabilities, boxes, size) -> np.ndarray:
    """(n, height, width) booleans: where the probabilities (n, m, m), pasted in boxes (n, 4), are at least one half.
    Raises ShapeError, ValueProblem."""
    boxes = check_boxes("boxes", boxes)
    check_array("probabilities", probabilities, "boxes rows columns")
    if len(boxes) != len(probabilities):
        raise ShapeError(f"probabilities must be one map for each of {len(boxes)} boxes, got {len(probabilities)}")
    masks = np.zeros((len(boxes), *check_integers("size", size, 2, 0)), bool)
    for mask, one, box in zip(masks, probabilities, boxes, strict=True):
        top, left, values = pasted_part(one, box, size)
        mask[top:top + values.shape[0], left:left + values.shape[1]] = values >= 0.5
    return masks
