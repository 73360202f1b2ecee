"""What was found in each picture, and COCO's figures of it, which pycocotools computes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

from mmref.errors import MissingBackend
from mmref.evaluate.tally import BOX_FIGURES, Progress

__all__ = ["BoxTally"]


class BoxTally(Progress):
    """Entries in COCO's format of results, at their pictures' places; a batch that comes twice changes nothing.

    annotations  a CocoFile   images, categories  the numbers there of the pictures and of the classes
    masks        whether masks are compared, too

    Raises MissingBackend without pycocotools."""

    key = "found"

    def __init__(self, annotations, images: Sequence[int], categories: Sequence[int], class_names: Sequence[str],
                 masks: bool):
        super().__init__(len(images))
        try:
            import pycocotools.cocoeval  # noqa: F401
        except ImportError as error:
            raise MissingBackend(f'COCO\'s figures need pycocotools: pip install "mmref[coco]" ({error})') from error
        self.annotations, self.images, self.categories = annotations, tuple(images), tuple(categories)
        self.class_names, self.masks = tuple(class_names), masks
        self.entries: dict[int, list[dict]] = {}
        self._figures = None

    def enter(self, place: int, answer: list) -> None:
        """Enter a picture's entries."""
        self.entries[place] = answer
        self._figures = None

    @property
    def running(self) -> str:
        """What a progress bar shows."""
        return f"{sum(map(len, self.entries.values()))} objects"

    @property
    def answered(self) -> int:
        """Pictures that count."""
        return len(self.entries)

    def summary(self) -> dict:
        """{"AP", "AP50", "AP75", "APs", "APm", "APl"} in percent, for masks "mask AP" and so on; None where there is
        nothing of that size. Raises MmrefError where no picture could be read."""
        self.check_answered(self.answered)
        return {name: value for name, value in self._computed().items() if name != "classes"}

    def per_class(self) -> list[dict]:
        """AP of each class that is annotated, in percent."""
        return self._computed()["classes"]

    def _computed(self):
        if self._figures is None:
            with contextlib.redirect_stdout(io.StringIO()):      # it reports its own progress
                self._figures = self._compute()
        return self._figures

    def _compute(self):
        import numpy as np
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
        truth = COCO()
        truth.dataset = self.annotations.as_pycocotools_reads()
        truth.createIndex()
        entries = [entry for place in sorted(self.entries) for entry in self.entries[place]]
        evaluated = sorted(self.images[place] for place in self.entries)
        if not entries:                                          # which pycocotools cannot load
            return _nothing(self.masks)
        found = truth.loadRes([dict(entry) for entry in entries])
        figures, classes = {}, []
        for kind, prefix in (("bbox", ""), ("segm", "mask "))[:1 + self.masks]:
            one = COCOeval(truth, found, kind)
            one.params.imgIds, one.params.catIds = evaluated, sorted(self.categories)
            one.evaluate()
            one.accumulate()
            one.summarize()
            figures |= {prefix + name: _percent(value) for name, value in zip(BOX_FIGURES, one.stats, strict=False)}
            precision = one.eval["precision"][:, :, :, 0, -1]    # (thresholds, recalls, classes)
            for k, category in enumerate(one.params.catIds):
                valid = precision[:, :, k][precision[:, :, k] > -1]
                if valid.size:
                    name = self.class_names[self.categories.index(category)]
                    if prefix:
                        next(c for c in classes if c["name"] == name)["mask AP"] = _percent(np.mean(valid))
                    else:
                        classes.append({"class": self.categories.index(category), "name": name,
                                        "AP": _percent(np.mean(valid)),
                                        "annotated": len(truth.getAnnIds(imgIds=evaluated, catIds=[category]))})
        return figures | {"classes": sorted(classes, key=lambda c: c["class"])}


def _percent(value):
    return round(100 * float(value), 4) if value > -1 else None


def _nothing(masks):
    names = [prefix + name for prefix in ("", "mask ")[:1 + masks] for name in BOX_FIGURES]
    return dict.fromkeys(names, 0.0) | {"classes": []}
