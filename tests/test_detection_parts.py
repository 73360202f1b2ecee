"""What happens to a detector's raw maps on the host, against figures of the published code."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from assertions import assert_close
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import normal, seeds, sides

from mmref.detection.anchors import by_ratio_and_scale, of_ssd
from mmref.detection.boxes import decode, has_area
from mmref.detection.masks import paste, paste_masks
from mmref.detection.nms import class_wise_nms, nms
from mmref.detection.roi_align import pyramid_levels, roi_align
from mmref.errors import ShapeError, ValueProblem

EXACT = dict(rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def parts(shared_golden):
    return np.load(shared_golden / "det_parts.npz")


def test_roi_align(parts):
    """Catches another number of samples, half a pixel, or another rule at the edges and for empty regions."""
    for size in (7, 14):
        scale = parts["roi_align/spatial_scale"].item()
        got = roi_align(parts["roi_align/features"], parts["roi_align/rois"], size, scale)
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
            "ssdlite": [of_ssd(s, *pair) for s, pair in zip((16, 32, 64, 107, 160, 320), pairwise(sides),
                                                          strict=True)]}
    for name, levels in sets.items():
        for i, (anchors, size) in enumerate(zip(levels, parts[f"anchors/{name}/sizes"], strict=True)):
            np.testing.assert_allclose(anchors.grid(*size), parts[f"anchors/{name}/{i}"], **EXACT)


def test_pasting(parts):
    """Catches masks half a pixel off, or cut at another column than upstream's."""
    size, boxes, probabilities = parts["paste/size"], parts["paste/boxes"], parts["paste/probabilities"]
    for one, box, values in zip(probabilities, boxes, parts["paste/values"], strict=True):
        np.testing.assert_allclose(paste(one, box, size), values, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(paste_masks(probabilities, boxes, size), parts["paste/masks"])


# ----------------------------------------------------------------------------------- kernels, ties, what is refused

def boxes_of(seed, count, side, decimals=None):
    rng = np.random.default_rng([seed, count])
    corners = np.sort(rng.uniform(0, 60, (count, 2, 1)) + rng.uniform(-side, side, (count, 2, 2)), axis=2)
    boxes = np.concatenate([corners[..., 0], corners[..., 1]], axis=1)
    return boxes if decimals is None else boxes.round(decimals)


@given(seed=seeds, count=st.integers(0, 200), side=st.sampled_from([2, 15, 60]),
       threshold=st.sampled_from([0, 0.3, 0.5, 1]), classes=st.integers(1, 3), whole=st.booleans())
@example(seed=0, count=65, side=15, threshold=0.5, classes=1, whole=True)
def test_the_kernel_keeps_the_same_boxes(seed, count, side, threshold, classes, whole):
    """Catches boxes that only touch, empty ones, equal ones and equal scores decided otherwise in the kernel, and pairs
    that its quick look loses."""
    rng = np.random.default_rng(seed)
    boxes = boxes_of(seed, count, side, 0 if whole else None)
    scores, labels = rng.integers(0, 5, count) / 4, rng.integers(0, classes, count)
    expected = class_wise_nms(boxes, scores, labels, threshold)
    np.testing.assert_array_equal(class_wise_nms(boxes, scores, labels, threshold, backend="numba"), expected)
    ranks = list(zip(-scores[expected], expected, strict=True))
    assert ranks == sorted(ranks)            # by score, then as they came


def test_thousands_of_equal_scores():
    """Catches an order that depends on a sort's whims, and what takes forever where nothing is suppressed."""
    boxes = np.stack(np.meshgrid(np.arange(60.0), np.arange(60.0)), -1).reshape(-1, 2)
    boxes = np.concatenate([boxes, boxes + 0.9], axis=1)
    for backend in ("numpy", "numba"):
        kept = nms(np.concatenate([boxes, boxes]), np.ones(2 * len(boxes)), 0.5, backend=backend)
        np.testing.assert_array_equal(kept, np.arange(len(boxes)))


@given(seed=seeds, channels=st.sampled_from([1, 16, 19]), height=sides, width=sides, size=st.sampled_from([1, 2, 7]),
       scale=st.sampled_from([1.0, 0.25]))
def test_roi_align_kernel(seed, channels, height, width, size, scale):
    """Catches samples beyond the map, half empty vectors of channels, and regions of another sample in the kernel."""
    rng, features = np.random.default_rng(seed), normal(seed, 2, channels, height, width)
    boxes = boxes_of(seed, 6, 30)
    boxes[0, 2:] = boxes[0, :2]
    rois = np.concatenate([rng.integers(0, 2, (6, 1)), boxes], axis=1)
    truth = roi_align(features.astype(np.float64), rois, size, scale)
    assert not truth[0].any()
    for backend in ("numpy", "numba"):
        largest = max(np.abs(features).max(), 1e-30)
        got = roi_align(features, rois, size, scale, backend=backend)
        assert got.dtype == np.float32 and np.abs(got - truth).max() <= 1e-5 * largest


@given(seed=seeds, height=st.integers(1, 40), width=st.integers(1, 40))
def test_roi_align_of_the_whole_map(seed, height, width):
    """Catches half a pixel: one bin for each pixel gives the map back."""
    features = normal(seed, 1, 2, height, width, dtype=np.float64)
    side = max(height, width)
    got = roi_align(features, np.array([[0, 0.0, 0, side, side]]), side, 1.0)
    assert_close(np.ascontiguousarray(got[:, :, :height, :width]), features, 1e-12)


@given(seed=seeds)
def test_decoding_finds_what_was_encoded(seed):
    """Catches offsets of the corner, or of the wrong side."""
    rng = np.random.default_rng(seed)
    anchors, boxes = (boxes_of(seed + i, 30, 40) for i in range(2))
    both = has_area(anchors) & has_area(boxes)
    anchors, boxes = anchors[both], boxes[both]
    sides, wanted = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    spread = rng.uniform(0.1, 1, 4)
    moves = ((boxes[:, :2] + boxes[:, 2:]) - (anchors[:, :2] + anchors[:, 2:])) / 2 / sides
    growth = np.log(wanted / sides)
    mild = (np.abs(growth) < 4).all(1)
    deltas = np.concatenate([moves, growth], axis=1) / spread
    got = decode(anchors[mild], deltas[mild], spread)
    np.testing.assert_allclose(got, boxes[mild], rtol=0, atol=1e-9)
    assert (decode(anchors, deltas, spread, (20, 30)) <= [30, 20, 30, 20]).all()


@given(seed=seeds, side=st.integers(1, 9), height=st.integers(0, 20), width=st.integers(0, 20))
def test_pasting_far_and_small(seed, side, height, width):
    """Catches an index beyond the picture, for boxes outside, empty and larger than it."""
    probabilities = np.random.default_rng(seed).uniform(0, 1, (4, side, side))
    boxes = np.array([[-50, -50, -40, -40], [5, 5, 5, 5], [-100, -100, 100, 100], [1e6, 0, 1e7, 3]], np.float64)
    masks = paste_masks(probabilities, boxes, (height, width))
    assert masks.shape == (4, height, width) and not masks[0].any() and not masks[3].any()
    ones = paste(np.ones((side, side)), np.array([0.0, 0, width, height]), (height, width))
    assert (ones > 0.25 - 1e-9).all()         # at least one half along each axis


def plain_overlap(a, b):
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in range(2)]
    common = max(sides[0], 0) * max(sides[1], 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union else 0


@given(seed=seeds, count=st.integers(0, 30), side=st.sampled_from([5, 20]), threshold=st.sampled_from([0, 0.3, 0.7]),
       whole=st.booleans())
def test_nms_in_plain_words(seed, count, side, threshold, whole):
    """Catches a box that one that was suppressed itself suppresses, and pairs compared by another measure."""
    boxes = boxes_of(seed, count, side, 0 if whole else None)
    scores = np.random.default_rng(seed).integers(0, 5, count)
    kept = []
    for i in sorted(range(count), key=lambda i: (-scores[i], i)):
        if all(plain_overlap(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    np.testing.assert_array_equal(nms(boxes, scores, threshold), kept)


@given(height=st.integers(0, 5), width=st.integers(0, 5), stride=st.sampled_from([4, 107]))
def test_anchors_in_plain_words(height, width, stride):
    """Catches rows and columns exchanged, on maps that are not square, and a map without pixels."""
    for anchors, offset in ((by_ratio_and_scale(stride, (8, 9), (0.5, 2)), 0), (of_ssd(stride, 20, 45), 0.5)):
        plain = [[x - w / 2, y - h / 2, x + w / 2, y + h / 2]
                 for y in [(row + offset) * stride for row in range(height)]
                 for x in [(column + offset) * stride for column in range(width)] for w, h in anchors.shapes]
        assert_close(anchors.grid(height, width), np.reshape(plain, (-1, 4)), 1e-12)


@given(seed=seeds, side=st.integers(2, 28), height=st.integers(1, 25), width=st.integers(1, 25))
def test_pasting_beside_pytorch(seed, side, height, width):
    """Catches half a pixel, and edges that fade otherwise than PyTorch's sampling of the same grid does."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(-5, 30, (2, 2)) + [[0], [0.5]], axis=0)   # x and y, low and high
    one, box = rng.uniform(0, 1, (side, side)), np.concatenate(corners)
    steps = [(np.arange(n) + 0.5 - low) / (high - low) * 2 - 1
             for n, low, high in ((width, *corners[:, 0]), (height, *corners[:, 1]))]
    grid = np.stack(np.meshgrid(*steps), -1)[None]
    whole = torch.nn.functional.grid_sample(torch.from_numpy(one)[None, None], torch.from_numpy(grid),
                                            align_corners=False)[0, 0].numpy()
    got = paste(one, box, (height, width))
    x1, y1, x2, y2 = box
    inside = np.zeros((height, width), bool)     # a pixel around the box is computed, no more
    inside[max(int(np.floor(y1)) - 1, 0):max(int(np.ceil(y2)) + 1, 0),
           max(int(np.floor(x1)) - 1, 0):max(int(np.ceil(x2)) + 1, 0)] = True
    np.testing.assert_allclose(got, np.where(inside, whole, 0), rtol=0, atol=1e-9)


def test_what_is_refused():
    """Catches NaN that vanishes in comparisons, and arrays that do not belong together."""
    boxes, scores = np.zeros((2, 4)), np.zeros(2)
    for wrong in (np.full((2, 4), np.nan), np.full((2, 4), np.inf), np.zeros((2, 5)), [[0, 0, 1, 1]]):
        with pytest.raises(ShapeError, match="boxes"):
            nms(wrong, scores, 0.5)
    for wrong in (np.array([0, np.nan]), np.zeros(3)):
        with pytest.raises(ShapeError, match="scores"):
            nms(boxes, wrong, 0.5)
    with pytest.raises(ValueProblem, match="threshold"):
        nms(boxes, scores, 1.5)
    with pytest.raises(ShapeError, match="labels"):
        class_wise_nms(boxes, scores, np.zeros(2), 0.5)
    features = np.zeros((1, 2, 3, 3))
    for wrong in (np.zeros((1, 4)), np.array([[1.0, 0, 0, 1, 1]]), np.array([[0, 0, 0, np.nan, 1]])):
        with pytest.raises(ShapeError, match="rois"):
            roi_align(features, wrong, 7, 0.5)
    with pytest.raises(ShapeError, match="float32"):
        roi_align(features, np.zeros((1, 5)), 7, 0.5, backend="numba")
    with pytest.raises(ShapeError, match="probabilities"):
        paste_masks(np.zeros((3, 28, 28)), boxes, (4, 4))
