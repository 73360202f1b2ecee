"""Non-maximum suppression: of boxes that show the same thing, the one with the highest score.

Greedy: the best box is kept, every other that overlaps it by more than a threshold goes, and so on with the best of
what is left. **Equal scores**: the box that comes first in the input counts as the better one, always. So the result
does not depend on a sort's whims.
"""

from __future__ import annotations

import numpy as np

from mmref.arguments import check_ndarray, check_number
from mmref.detection.boxes import check_boxes, overlap
from mmref.errors import ShapeError
from mmref.nn.functional import check_backend


def nms(boxes, scores, threshold: float, *, backend: str = "numpy") -> np.ndarray:
    """Indices (int64) of the boxes that are kept, by descending score.

    boxes (n, 4) x1 y1 x2 y2, scores (n,), real numbers; computed in float64. A box goes when its intersection over
    union with a kept one is larger than `threshold`, 0 to 1; two boxes without any area overlap by 0.
    `backend="numba"` runs the compiled kernel, with the same result. Raises ShapeError (shapes, NaN), ValueProblem,
    MissingBackend.
    """
    backend = check_backend(backend, ("numpy", "numba"))
    boxes, scores = check_boxes("boxes", boxes), _check_scores(scores, len(boxes))
    threshold = check_number("threshold", threshold, 0, 1)
    order = np.argsort(-scores, kind="stable")
    if backend == "numba":
        from mmref.kernels import load_op
        return order[load_op("nms", "numba")(boxes[order], threshold)]
    kept, alive = [], np.arange(len(order))
    boxes = boxes[order]
    while len(alive):
        best, rest = alive[0], alive[1:]
        kept.append(best)
        alive = rest[overlap(boxes[best], boxes[rest]) <= threshold]
    return order[np.array(kept, np.int64)]


def class_wise_nms(boxes, scores, labels, threshold: float, *, backend: str = "numpy") -> np.ndarray:
    """`nms` among the boxes of each label (n,) by itself; indices by descending score over all labels."""
    boxes, scores = check_boxes("boxes", boxes), _check_scores(scores, len(boxes))
    check_ndarray("labels", labels, "boxes")
    if labels.shape != scores.shape or labels.dtype.kind not in "iu":
        raise ShapeError(f"labels must be ({len(scores)},) integers, got shape {labels.shape} of {labels.dtype}")
    kept = [np.zeros(0, np.int64)]
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        kept.append(own[nms(boxes[own], scores[own], threshold, backend=backend)])
    kept = np.sort(np.concatenate(kept))                                    # in the order of the input, for ties
    return kept[np.argsort(-scores[kept], kind="stable")]


def _check_scores(scores, count):
    check_ndarray("scores", scores, "boxes")
    if scores.shape != (count,) or scores.dtype.kind not in "fiu":
        raise ShapeError(f"scores must be ({count},), one for each box, got shape {scores.shape} of {scores.dtype}")
    scores = scores.astype(np.float64)
    if np.isnan(scores).any():
        raise ShapeError("scores must not hold NaN")
    return scores
