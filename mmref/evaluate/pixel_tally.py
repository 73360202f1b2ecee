"""What was counted in each picture of a segmentation, and the figures from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmref.evaluate.overlap import overlap_figures
from mmref.evaluate.tally import Progress

__all__ = ["PixelTally"]


class PixelTally(Progress):
    """Counts of pixels of `pictures` pictures, added up; a batch that comes twice changes nothing."""

    key = "counts"

    def __init__(self, pictures: int, class_names: Sequence[str]):
        super().__init__(pictures)
        self.class_names = tuple(class_names)
        self.counts = np.zeros((3, len(self.class_names)), np.int64)  # right, predicted, labelled

    def enter(self, place: int, answer: list) -> None:
        """Add the counts [[class, right, predicted, labelled], ...] of a picture."""
        for number, *counts in answer:
            self.counts[:, number] += counts

    @property
    def running(self) -> str:
        """What a progress bar shows."""
        return f"mIoU {overlap_figures(self.counts)['mIoU']:.2f} %" if self.counts[2].any() else "no labels yet"

    @property
    def answered(self) -> int:
        """Pictures that count."""
        return int(self.done.sum()) - len(self.errors)

    def summary(self) -> dict:
        """{"mIoU", "mAcc", "aAcc"} in percent. Raises MmrefError where no picture could be read or none has labels."""
        self.check_answered(self.answered)
        figures = overlap_figures(self.counts)
        return {name: round(figures[name], 4) for name in ("mIoU", "mAcc", "aAcc")}

    def per_class(self) -> list[dict]:
        """Each class that is labelled or predicted somewhere; "Acc" is None for one that is labelled nowhere."""
        figures = overlap_figures(self.counts)
        return [{"class": i, "name": self.class_names[i], "IoU": round(float(figures["IoU"][i]), 4),
                 "Acc": round(float(figures["Acc"][i]), 4) if self.counts[2, i] else None,
                 "right": int(self.counts[0, i]), "predicted": int(self.counts[1, i]),
                 "labelled": int(self.counts[2, i])} for i in np.flatnonzero(self.counts.any(0)).tolist()]


