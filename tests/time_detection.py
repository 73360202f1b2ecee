"""What detection costs on this machine: suppression of 10,000 boxes, and Mask R-CNN at 1333 x 800, from input to masks.

    python tests/time_detection.py [numpy]

Parameters are random, but boxes stay where anchors are and fifteen classes are likely: the thousand regions and hundred
objects with masks that there can be at most. Seconds are processor time of all threads and,
behind it, the clock's; memory is this process's peak.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import mmref
from mmref.bench.worker import peak_memory
from mmref.detection.nms import class_wise_nms, nms


def timed(function, rounds):
    """(result, median processor time, median time by the clock)."""
    cpu, clock = [], []
    for _ in range(rounds):
        starts = time.process_time(), time.perf_counter()
        result = function()
        cpu.append(time.process_time() - starts[0])
        clock.append(time.perf_counter() - starts[1])
    return result, np.median(cpu), np.median(clock)


def suppression():
    rng = np.random.default_rng(0)
    scores, labels = rng.uniform(0, 1, 10_000), rng.integers(0, 80, 10_000)
    for extent, side in ((300, 100), (800, 200), (10_000, 60)):
        centres, sides = rng.uniform(0, extent, (10_000, 2)), rng.uniform(8, side, (10_000, 2))
        boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
        for backend, rounds in (("numba", 15), ("numpy", 1)):
            nms(boxes, scores, 0.5, backend=backend)     # compiles
            kept, cpu, _ = timed(lambda boxes=boxes, backend=backend: nms(boxes, scores, 0.5, backend=backend), rounds)
            _, by_class, _ = timed(lambda boxes=boxes, backend=backend: class_wise_nms(
                boxes, scores, labels, 0.5, backend=backend), rounds)
            print(f"10,000 boxes of up to {side} pixels on {extent}: {len(kept):,} kept, {backend} {1e3 * cpu:.1f} ms, "
                  f"by 80 classes {1e3 * by_class:.1f} ms")


def mask_rcnn(backend, rounds):
    model = mmref.create_model("mobilemamba_b1_mask_rcnn")
    heads = model.roi_head.bbox_head
    heads.fc_cls.bias[:15] += 9
    for layer in (model.rpn_head.rpn_reg, heads.fc_reg):
        layer.weight *= 0                        # boxes stay where anchors are
    if backend == "numba":
        from mmref.engine import CompiledModel
        model = CompiledModel(model)
        model.detect(np.zeros((1, 3, 64, 64), np.float32))
    x = np.random.default_rng(0).standard_normal((1, 3, 800, 1344), np.float32)

    def run():
        found = model.detect(x, [(800, 1333)])[0]
        return len(found), found.masks.sum()
    (count, _), cpu, clock = timed(run, rounds)
    print(f"Mask R-CNN, 1333 x 800, {backend}: {count} objects with masks, {cpu:.1f} s ({clock:.1f} s), "
          f"peak {peak_memory() / 1e9:.2f} GB")


if __name__ == "__main__":
    if sys.argv[1:] == ["numpy"]:
        mask_rcnn("numpy", 1)
    else:
        suppression()
        mask_rcnn("numba", 3)
