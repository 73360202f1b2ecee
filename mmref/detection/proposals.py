"""Region proposals: where in a picture something may be (Ren et al. 2015, section 3.1)."""

from __future__ import annotations

import numpy as np

from mmref.detection.boxes import decode, has_area
from mmref.detection.nms import class_wise_nms
from mmref.nn.functional import sigmoid


def propose(levels, image_size, *, candidates: int, threshold: float, most: int, backend: str = "numpy"):
    """(boxes (n, 4), scores (n,)) in pixels of the network's input, float64, by descending score.

    levels  for each map (anchors (n, 4), logits (n, 1), offsets (n, 4)). Of each map the `candidates` best are decoded,
            clipped to image_size (height, width) and suppressed among themselves, overlap above `threshold`; then the
            `most` best of all maps stay.
    """
    boxes, scores, numbers = [], [], []
    for number, (anchors, logits, offsets) in enumerate(levels):
        score = sigmoid(logits[:, 0].astype(np.float64))
        best = np.argsort(-score, kind="stable")[:candidates]
        box = decode(anchors[best], offsets[best], size=image_size)
        real = has_area(box)
        boxes.append(box[real])
        scores.append(score[best][real])
        numbers.append(np.full(int(real.sum()), number))
    boxes, scores, numbers = (np.concatenate(parts) for parts in (boxes, scores, numbers))
    kept = class_wise_nms(boxes, scores, numbers, threshold, backend=backend)[:most]
    return boxes[kept], scores[kept]
