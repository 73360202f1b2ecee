"""From the raw maps of a detector of one stage to its answer: candidates of every level, their boxes, suppression."""

from __future__ import annotations

import numpy as np

from mmref.detection.boxes import decode, has_area
from mmref.detection.nms import class_wise_nms
from mmref.errors import ValueProblem


def by_anchor(raw: np.ndarray, values: int) -> np.ndarray:
    """One picture's map (anchors * values, H, W) as (H * W * anchors, values): by row, column, anchor. Raises
    ValueProblem for NaN and infinity, which the comparisons behind this would drop without a word."""
    if not np.isfinite(raw).all():
        raise ValueProblem("raw maps must be finite, got NaN or infinity: weights or input are out of any range")
    return raw.transpose(1, 2, 0).reshape(-1, values)


def sigmoid_scores(logits: np.ndarray, threshold: float, most: int):
    """The `most` best (anchor, class) pairs with sigmoid(logit) > threshold, as (anchors, labels, scores float64), by
    descending score; equal ones in the order of anchors and classes. logits (anchors, classes)."""
    bar = np.log(threshold / (1 - threshold)) - 1e-3     # a few too many, so that most need no sigmoid
    anchors, labels = np.nonzero(logits > bar)
    scores = 1 / (1 + np.exp(-logits[anchors, labels].astype(np.float64)))
    return _best(anchors, labels, scores, threshold, most)


def softmax_scores(logits: np.ndarray, threshold: float, most: int | None):
    """Likewise with the softmax over classes, the last of which is background; `most` None for all of them, in the
    order of anchors and classes. logits (anchors, classes + 1)."""
    scores = softmax(logits)[:, :-1]
    anchors, labels = np.nonzero(scores > threshold)
    return _best(anchors, labels, scores[anchors, labels], threshold, most)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, in float64."""
    logits = logits.astype(np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(-1, keepdims=True)


def _best(anchors, labels, scores, threshold, most):
    above = np.flatnonzero(scores > threshold)
    if most is not None:
        above = above[np.argsort(-scores[above], kind="stable")[:most]]
    return anchors[above], labels[above], scores[above]


def one_stage(levels, image_size, original_size, *, spread, threshold: float, most: int, backend: str = "numpy"):
    """(boxes (n, 4), scores, labels) of one picture, in pixels of the original, float64.

    levels     for each map (anchors (n, 4), offsets (n, 4), (anchors, labels, scores) of the candidates)
    image_size, original_size  (height, width) in the network's input and before it
    spread     of the offsets (`decode`); threshold   of overlap; most   how many are kept at last
    """
    boxes, scores, labels = [], [], []
    for anchors, offsets, (which, label, score) in levels:
        boxes.append(decode(anchors[which], offsets[which], spread, image_size))
        labels.append(label)
        scores.append(score)
    boxes, scores, labels = (np.concatenate(parts) for parts in (boxes, scores, labels))
    boxes = boxes / scale_factor(image_size, original_size)
    real = has_area(boxes)
    boxes, scores, labels = boxes[real], scores[real], labels[real]
    kept = class_wise_nms(boxes, scores, labels, threshold, backend=backend)[:most]
    return boxes[kept], scores[kept], labels[kept]


def scale_factor(image_size, original_size) -> np.ndarray:
    """(4,) what x and y were multiplied with when the picture was resized."""
    (height, width), (old_height, old_width) = image_size, original_size
    return np.array([width / old_width, height / old_height] * 2)
