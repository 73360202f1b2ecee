"""What a detector finds, in COCO's format of results.

    entries = results_of(139, answer.objects, category_ids(answer.class_names))

A list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}, with masks also "segmentation": {"size":
[height, width], "counts": text}, run lengths as pycocotools packs them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmref.data.labels import coco_ids, coco_names
from mmref.detection.result import Detections
from mmref.errors import MissingBackend

__all__ = ["category_ids", "needs_pycocotools", "results_of"]


def category_ids(class_names: Sequence[str]) -> tuple[int, ...]:
    """The number of each class in COCO's files: COCO's own (1 to 90, with gaps) for its 80 classes, else 1, 2, ..."""
    return coco_ids() if tuple(class_names) == coco_names() else tuple(range(1, len(class_names) + 1))


def results_of(image_id: int, objects: Detections, ids: Sequence[int]) -> list[dict]:
    """One entry per object, best first. Raises MissingBackend for masks without pycocotools."""
    entries = []
    for i, (box, score, label) in enumerate(zip(objects.boxes, objects.scores, objects.labels, strict=True)):
        x1, y1, x2, y2 = map(float, box)
        entry = {"image_id": image_id, "category_id": ids[label], "bbox": [x1, y1, x2 - x1, y2 - y1],
                 "score": float(score)}
        if objects.probabilities is not None:
            entry["segmentation"] = run_lengths(objects[i:i + 1].masks[0])
        entries.append(entry)
    return entries


def run_lengths(mask: np.ndarray) -> dict:
    """A mask (height, width) of booleans as COCO's compressed run lengths."""
    encoded = needs_pycocotools("masks in COCO's format").encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(map(int, encoded["size"])), "counts": encoded["counts"].decode("ascii")}


def needs_pycocotools(what: str):
    """The module pycocotools.mask. Raises MissingBackend that says how to get it."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingBackend(f'{what} needs pycocotools: pip install "mmref[coco]" ({error})') from error
    return mask
