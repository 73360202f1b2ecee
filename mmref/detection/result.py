"""What a detector finds in one picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mmref.detection.masks import paste_masks


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects of one picture, by descending score; equal scores in the order of their anchors.

    boxes    (n, 4) x1 y1 x2 y2 in pixels of the original picture, continuous, of the model's dtype
    scores   (n,) in (0, 1], of the model's dtype
    labels   (n,) int64, 0 .. num_classes - 1
    size     (height, width) of the original picture
    probabilities  (n, 28, 28), what masks are pasted from, of the model's dtype; None where the network gives none
    exact    the boxes as they were computed, in float64: masks follow from them
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    size: tuple[int, int]
    probabilities: np.ndarray | None
    exact: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def masks(self) -> np.ndarray | None:
        """(n, height, width) booleans; None where the network gives none. Made anew every time: a hundred objects of a
        large picture are a gigabyte. `self[i:i + 1].masks` makes one."""
        if self.probabilities is None:
            return None
        return paste_masks(self.probabilities, self.exact, self.size)

    def __getitem__(self, chosen) -> Detections:
        """Some of them, chosen as NumPy does: by a slice, an array of indices or of booleans."""
        return replace(self, **{name: None if (part := getattr(self, name)) is None else part[chosen] for name in (
            "boxes", "scores", "labels", "probabilities", "exact")})

    def above(self, score: float) -> Detections:
        """Those whose score is at least `score`."""
        return self[self.scores >= score]


def detections(boxes, scores, labels, size, dtype, probabilities=None) -> Detections:
    """Of boxes and scores in float64, for a model of `dtype`."""
    if probabilities is not None:
        probabilities = probabilities.astype(dtype, copy=False)
    return Detections(boxes.astype(dtype), scores.astype(dtype), labels, tuple(size), probabilities, boxes)
