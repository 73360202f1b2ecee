"""Non-maximum suppression of boxes in descending order of score.

Parallel   nothing: whether a box stays depends on those before it.
Loops      boxes; for each, the boxes kept so far, 16 at once: do they meet at all? Only those that do are divided.
Moves      the kept boxes again for every box, 16 bytes each, from the first-level cache.
Costs      a load and a comparison for each side, 16 kept boxes and box; a division for each pair that meets.

Whether two boxes meet is asked of float32 corners that are rounded outwards: no pair that overlaps is lost. What
decides is the overlap in float64, by the reference's formula.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types

from mmref.kernels.records import NMS
from mmref.kernels.target import LANES, round_up
from mmref.kernels.vector import (
    INT64,
    emit_load,
    load_broadcast,
    load_double,
    load_integer,
    load_scalar,
    operation,
    store_integer,
    store_scalar,
    vector,
    view,
)

BOX_BYTES, CORNER_BYTES = 32, 16


@operation(types.int64, types.int64, types.int64, vector, vector, vector, vector)
def _meeting(builder, at, plane, x1, y1, x2, y2):
    """Bit i is set where kept box i, of 16 from `at` on, meets a box; corners lie in four planes."""
    low_x, low_y, high_x, high_y = (emit_load(builder, builder.add(at, builder.mul(plane, INT64(i))))
                                    for i in range(4))
    bits = builder.and_(builder.and_(builder.fcmp_ordered("<", low_x, x2), builder.fcmp_ordered("<", x1, high_x)),
                        builder.and_(builder.fcmp_ordered("<", low_y, y2), builder.fcmp_ordered("<", y1, high_y)))
    return builder.zext(builder.bitcast(bits, ir.IntType(LANES)), INT64)


@njit(error_model="numpy")
def _overlap(a, b):
    """Intersection over union of two boxes at addresses, as `mmref.detection.boxes.overlap` has it."""
    ax1, ay1, ax2, ay2 = load_double(a), load_double(a + 8), load_double(a + 16), load_double(a + 24)
    bx1, by1, bx2, by2 = load_double(b), load_double(b + 8), load_double(b + 16), load_double(b + 24)
    width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
    common = max(width, 0.0) * max(height, 0.0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common
    return common / union if union != 0 else 0.0


def suppress(record, thread, threads):
    """Kernel of NMS."""
    op = view(record, NMS)
    threshold, kept = load_double(op.threshold), 0
    for i in range(op.count):
        corners, stays = op.corners + i * CORNER_BYTES, True
        x1, y1 = load_broadcast(corners), load_broadcast(corners + 4)
        x2, y2 = load_broadcast(corners + 8), load_broadcast(corners + 12)
        for first in range(0, kept, LANES):
            bits = _meeting(op.kept_corners + 4 * first, op.plane, x1, y1, x2, y2)
            lane = 0
            while bits != 0 and stays:
                if bits & 1:
                    other = load_integer(op.kept + 8 * (first + lane))
                    stays = _overlap(op.boxes + other * BOX_BYTES, op.boxes + i * BOX_BYTES) <= threshold
                bits >>= 1
                lane += 1
            if not stays:
                break
        if stays:
            store_integer(op.kept + 8 * kept, i)
            for side in range(4):
                store_scalar(op.kept_corners + side * op.plane + 4 * kept, load_scalar(corners + 4 * side))
            kept += 1
    store_integer(op.result, kept)


def nms(boxes, threshold):
    """Positions (int64) of the boxes that are kept, of boxes (n, 4), float64, in descending order of score: the inner
    part of `mmref.detection.nms.nms`, which has checked them."""
    from mmref.kernels.program import run_alone
    boxes, capacity = np.ascontiguousarray(boxes, np.float64), round_up(len(boxes) + 1)
    with np.errstate(over="ignore"):
        corners = boxes.astype(np.float32)
    outwards = np.nextafter(corners, np.array([-np.inf, -np.inf, np.inf, np.inf], np.float32))
    kept_corners = np.full((4, capacity), np.inf, np.float32)               # a box that meets none
    kept, result = np.zeros(capacity, np.int64), np.zeros(1, np.int64)
    run_alone("suppress", NMS, dict(boxes=boxes, corners=outwards, count=len(boxes), threshold=np.float64([threshold]),
                                    kept_corners=kept_corners, plane=4 * capacity, kept=kept, result=result))
    return kept[:result[0]].copy()
