"""What happens to a detector's raw maps on the host, against figures of the published code."""

from __future__ import annotations

import numpy as np
import pytest

from mmref.detection.anchors import by_ratio_and_scale, of_ssd
from mmref.detection.boxes import decode
from mmref.detection.masks import paste, paste_masks
from mmref.detection.nms import class_wise_nms, nms
from mmref.detection.roi_align import pyramid_levels, roi_align

EXACT = dict(rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def parts(shared_golden):
    return np.load(shared_golden / "det_parts.npz")


def test_roi_align(parts):
    """Catches another number of samples, half a pixel, or another rule at the edges and for empty regions."""
    for size in (7, 14):
        got = roi_align(parts["roi_align/features"], parts["roi_align/rois"], size, parts["roi_align/spatial_scale"].item())
        np.testing.assert_allclose(got, parts[f"roi_align/out{size}"], **EXACT)


def test_levels(parts):
    """Catches a box taken from the map next to its own."""
    np.testing.assert_array_equal(pyramid_levels(parts["levels/rois"][:, 1:], 4), parts["levels/level"])


def test_nms(parts):
    """Catches a threshold that is not strict, ties in another order, empty boxes that overlap."""
    for threshold in (0.45, 0.5, 0.7):
        kept = nms(parts["nms/boxes"], parts["nms/scores"], threshold)
        np.testing.assert_array_equal(kept, parts[f"nms/keep_{threshold}"])


def test_class_wise_nms(parts):
    """Catches boxes of different classes that suppress each other."""
    boxes, scores, labels = parts["nms/boxes"], parts["nms/scores"], parts["batched_nms/labels"]
    np.testing.assert_array_equal(class_wise_nms(boxes, scores, labels, 0.5), parts["batched_nms/keep"])
    negative = parts["batched_nms/negative_boxes"]
    np.testing.assert_array_equal(class_wise_nms(negative, scores, labels, 0.5), parts["batched_nms/negative_keep"])


def test_decoding(parts):
    """Catches sides that are not clamped, a spread forgotten, height and width exchanged in clipping."""
    anchors, deltas, size = parts["decode/anchors"], parts["decode/deltas"], parts["decode/max_shape"]
    for name, spread in (("unit", (1, 1, 1, 1)), ("tenth", (0.1, 0.1, 0.2, 0.2))):
        np.testing.assert_allclose(decode(anchors, deltas, spread, size), parts[f"decode/boxes_{name}"], **EXACT)


def test_anchors(parts):
    """Catches another order of anchors, or centres half a cell off."""
    ratios, sides = (0.5, 1, 2), (48, 100, 150, 202, 253, 304, 320)
    sets = {"retinanet": [by_ratio_and_scale(s, [4 * s * 2 ** (i / 3) for i in range(3)], ratios)
                          for s in (8, 16, 32, 64, 128)],
            "mask_rcnn": [by_ratio_and_scale(s, [8 * s], ratios) for s in (4, 8, 16, 32, 64)],
            "ssdlite": [of_ssd(s, *pair) for s, pair in zip((16, 32, 64, 107, 160, 320), zip(sides, sides[1:]))]}
    for name, levels in sets.items():
        for i, (anchors, size) in enumerate(zip(levels, parts[f"anchors/{name}/sizes"], strict=True)):
            np.testing.assert_allclose(anchors.grid(*size), parts[f"anchors/{name}/{i}"], **EXACT)


def test_pasting(parts):
    """Catches masks half a pixel off, or cut at another column than upstream's."""
    size, boxes, probabilities = parts["paste/size"], parts["paste/boxes"], parts["paste/probabilities"]
    for one, box, values in zip(probabilities, boxes, parts["paste/values"], strict=True):
        np.testing.assert_allclose(paste(one, box, size), values, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(paste_masks(probabilities, boxes, size), parts["paste/masks"])
