"""What a detector finds in one picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects of one picture, by descending score; equal scores in the order of their anchors.

    boxes    (n, 4) x1 y1 x2 y2 in pixels of the original picture, continuous, of the model's dtype
    scores   (n,) in (0, 1], of the model's dtype
    labels   (n,) int64, 0 .. num_classes - 1
    masks    (n, height, width) booleans of the original picture; None where the network gives none
    probabilities  (n, 28, 28), what masks are pasted from, of the model's dtype; None likewise
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Those whose score is at least `score`."""
        chosen = self.scores >= score
        return Detections(*(None if part is None else part[chosen] for part in (
            self.boxes, self.scores, self.labels, self.masks, self.probabilities)))
