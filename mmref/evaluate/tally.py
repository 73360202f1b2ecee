"""What was answered for each picture, and the figures counted from it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmref.errors import MmrefError
from mmref.files import replacing
from mmref.text import to_json

__all__ = ["BOX_FIGURES", "MASK_FIGURES", "Tally", "write_results"]

BOX_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")     # COCO's, of boxes and of masks
MASK_FIGURES = tuple(f"mask {name}" for name in BOX_FIGURES)
COLUMNS = ("model", "top1", "top1_err", "top5", "top5_err", "mIoU", "mAcc", "aAcc", *BOX_FIGURES, *MASK_FIGURES,
           "param_count",
           "img_size", "crop_pct", "interpolation")


class Progress:
    """Which of `pictures` have been entered, and which had no answer. A class built on it has `key`, where a record
    keeps its answers, `enter(place, answer)`, and the text `running`, how it stands."""

    key: str

    def __init__(self, pictures: int):
        self.done = np.zeros(pictures, bool)
        self.errors: dict[int, str] = {}

    def add(self, record: dict) -> int:
        """Enter a batch {"start": place, key: [answer or error text, one per picture]}; returns how many were new."""
        start, answers = record["start"], record[self.key]
        places = range(start, start + len(answers))
        if start < 0 or places.stop > len(self.done):
            raise MmrefError(f"batch must lie in 0..{len(self.done)}, got {places}")
        new = 0
        for place, answer in zip(places, answers, strict=True):
            if self.done[place]:
                continue
            new += 1
            self.done[place] = True
            if isinstance(answer, str):
                self.errors[place] = answer
            else:
                self.enter(place, answer)
        return new

    def check_answered(self, answered: int) -> None:
        """Raise MmrefError, with the first error, where no picture was answered."""
        if not answered:
            raise MmrefError(f"no picture could be read of {len(self.done)}"
                             + (f", first: {self.errors[min(self.errors)]}" if self.errors else ""))


class Tally(Progress):
    """The answers to `targets`, each at its picture's place: a batch that comes twice changes nothing.

    targets  (pictures,) int32
    topk     how many classes of an answer are kept
    """

    key = "top"

    def __init__(self, targets: np.ndarray, class_names: Sequence[str], topk: int = 5):
        super().__init__(len(targets))
        self.targets, self.class_names = targets, tuple(class_names)
        self.topk = topk
        self.answers = np.full((len(targets), min(topk, len(self.class_names))), -1, np.int32)
        self._seen = self._right = 0  # for a progress bar; figures are counted from the answers

    def enter(self, place: int, answer: list) -> None:
        """Enter the classes of a picture."""
        self.answers[place] = answer
        self._seen += 1
        self._right += answer[0] == self.targets[place]

    @property
    def running(self) -> str:
        """What a progress bar shows."""
        return f"top-1 {self.running_top1:.2f} %"

    @property
    def running_top1(self) -> float:
        """Percent right so far, without a pass over all pictures."""
        return 100 * self._right / max(1, self._seen)

    @property
    def good(self) -> np.ndarray:
        """(pictures,) bool: those that were answered; bad pictures count neither as right nor as wrong."""
        return self.answers[:, 0] >= 0

    def correct(self, k: int) -> np.ndarray:
        """(pictures,) bool: the right class is among the first k."""
        return (self.answers[:, :k] == self.targets[:, None]).any(1)

    def counts(self) -> tuple[int, int, int]:
        """(answered, right at once, right among the first topk)."""
        return int(self.good.sum()), int(self.correct(1).sum()), int(self.correct(self.topk).sum())

    def summary(self) -> dict:
        """Accuracies in percent under timm's names; `top5` is called after `topk` where that is another."""
        answered, first, among = self.counts()
        self.check_answered(answered)
        top1, topk = round(100 * first / answered, 4), round(100 * among / answered, 4)
        name = f"top{self.topk}"
        figures = {"top1": top1, "top1_err": round(100 - top1, 4)}
        if self.topk > 1:
            figures |= {name: topk, f"{name}_err": round(100 - topk, 4)}
        return figures

    def per_class(self, confusions: int = 3) -> list[dict]:
        """Each class that has pictures: how many, how many right, and what its pictures were mostly taken for."""
        classes, good = len(self.class_names), self.good
        targets, answers = self.targets[good], self.answers[good, 0]
        total = np.bincount(targets, minlength=classes)
        first = np.bincount(self.targets[self.correct(1)], minlength=classes)
        among = np.bincount(self.targets[self.correct(self.topk)], minlength=classes)
        pairs, often = np.unique(targets[answers != targets].astype(np.int64) * classes + answers[answers != targets],
                                 return_counts=True)
        taken = {}
        for pair, count in sorted(zip(pairs.tolist(), often.tolist(), strict=True), key=lambda p: (-p[1], p[0])):
            taken.setdefault(pair // classes, []).append({"class": pair % classes, "pictures": count,
                                                          "name": self.class_names[pair % classes]})
        return [{"class": i, "name": self.class_names[i], "pictures": int(total[i]), "correct": int(first[i]),
                 "top1": round(100 * int(first[i]) / int(total[i]), 4), f"correct_top{self.topk}": int(among[i]),
                 "taken_for": taken.get(i, [])[:confusions]} for i in np.flatnonzero(total).tolist()]

    def worst(self, count: int = 5) -> list[dict]:
        """The classes with the lowest accuracy."""
        return sorted(self.per_class(), key=lambda c: (c["correct"] / c["pictures"], c["class"]))[:count]


def write_results(path, results: dict, format: str | None = None) -> None:
    """Write figures as timm does: CSV (one header, one line, timm's columns) or JSON (all there is).

    format  "csv" or "json"; None decides by the file's name. The file is replaced as a whole or not at all."""
    path = Path(path)
    kind = format or ("json" if path.suffix.lower() == ".json" else "csv")
    if kind == "json":
        text = to_json(results, indent=4) + "\n"
    else:
        columns = [key for key in results if key in COLUMNS or key.startswith("top")]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerow(results)
        text = buffer.getvalue()
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
