"""The pictures that the included dense networks are trained on: what is where, and that the files say so."""

from __future__ import annotations

import numpy as np
import pytest
from compose import SIZE, Composer, write_data_set
from hypothesis import given, settings
from strategies import seeds

from mmref.data.labels import CIFAR10
from mmref.data.picture import open_picture
from mmref.detection.boxes import decode
from mmref.evaluate import LabelRule, read_annotations, read_labelled_folder

PLAIN = np.where(np.arange(3)[:, None, None, None] == np.arange(3), 220, 40).astype(np.uint8).repeat(
    32, 1).repeat(32, 2)                     # three pictures, (32, 32) of red, of green, of blue: classes 0, 1, 2


class OnBlack(Composer):
    """Plain patches on black, where every pixel tells whose it is."""

    def __init__(self, seed):
        super().__init__(PLAIN, np.arange(3), seed)

    def background(self):
        return np.zeros((SIZE, SIZE, 3), np.float32)


@given(seeds)
@settings(max_examples=40)
def test_masks_and_boxes_lie_where_the_objects_lie(seed):
    """Catches a mask of another place or shape than what was pasted, of a patch that a later one hides, a class of
    another picture, boxes that are not the tightest, and labels that are not the masks'."""
    scene = OnBlack(seed)()
    colour, bright = scene.pixels.argmax(2), scene.pixels.max(2)
    assert 1 <= len(scene.masks) == len(scene.classes) == len(scene.boxes) <= 4
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for mask, box, label in zip(scene.masks, scene.boxes, scene.classes, strict=True):
        assert (labels[mask] == 0).all()                                    # nobody else's
        labels[mask] = label + 1
        # an edge is half of two colours, and contrast is drawn: almost all
        assert (colour[mask] == label).mean() > 0.98 and (bright[mask] > 60).mean() > 0.98
        x1, y1, x2, y2 = box.astype(int)
        assert mask[y1:y2, x1:x2].sum() == mask.sum() > 300
        assert all(side.any() for side in (mask[y1, x1:x2], mask[y2 - 1, x1:x2], mask[y1:y2, x1], mask[y1:y2, x2 - 1]))
    assert (scene.labels == labels).all()
    beside = bright[labels == 0]                                            # nothing but soft edges, some on others
    assert (beside > 140).sum() < 0.01 * SIZE ** 2 and (beside > 0).sum() < 0.15 * SIZE ** 2


def test_the_same_seed_gives_the_same_scenes():
    """Catches a composer that draws from anywhere else, and one that always draws the same."""
    ours, again, other = ([composer() for _ in range(3)] for composer in map(OnBlack, (5, 5, 6)))
    for a, b in zip(ours, again, strict=True):
        assert (a.pixels == b.pixels).all() and (a.labels == b.labels).all() and (a.boxes == b.boxes).all()
    assert any((a.pixels != b.pixels).any() for a, b in zip(ours, other, strict=True))
    assert (ours[0].pixels != ours[1].pixels).any()


def test_backgrounds_show_nothing():
    """Catches a background that is an object without a mask: of a fine pattern nothing may be left."""
    fine = np.indices((32, 32)).sum(0)[None, :, :, None] % 2 * np.full(3, 255)
    ground = Composer(fine.astype(np.uint8), np.zeros(1, int), 0).background()
    assert ground.shape == (SIZE, SIZE, 3) and np.ptp(ground) < 20


def test_files_as_mmref_eval_reads_them(tmp_path):
    """Catches label maps, boxes and run lengths that are another scene's, transposed or shifted."""
    pycocotools = pytest.importorskip("pycocotools.coco", reason="pip install 'mmref[coco]'")
    write_data_set(OnBlack(3), 4, tmp_path)
    again, rule = OnBlack(3), LabelRule(11, False, False)
    assert len(read_labelled_folder(tmp_path / "pictures", tmp_path / "labels", rule)) == 4
    assert len(read_annotations(tmp_path / "pictures", tmp_path / "instances.json", CIFAR10)) == 4
    coco = pycocotools.COCO(str(tmp_path / "instances.json"))
    for number in range(4):
        scene, name = again(), coco.loadImgs(number)[0]["file_name"]
        entries = coco.loadAnns(coco.getAnnIds(number))
        assert (np.asarray(open_picture(tmp_path / "pictures" / name)[0]) == scene.pixels).all()
        assert len(entries) == len(scene.masks)
        for entry, mask, box, label in zip(entries, scene.masks, scene.boxes, scene.classes, strict=True):
            assert (coco.annToMask(entry) == mask).all() and entry["area"] == mask.sum()
            x, y, width, height = entry["bbox"]
            assert [x, y, x + width, y + height] == box.tolist()
            assert coco.loadCats(entry["category_id"])[0]["name"] == CIFAR10[label]


@pytest.fixture(scope="module")
def trainer():
    pytest.importorskip("torch")
    import train_ssdlite
    return train_ssdlite, train_ssdlite.anchors_of(train_ssdlite.CONFIG)


@given(seeds)
@settings(max_examples=20)
def test_targets_of_the_detector(trainer, seed):
    """Catches offsets that the detector would decode to other boxes, an object without an anchor, and anchors of
    background that are taken for objects."""
    import torch

    from mmref.models.ssdlite import SSDLite
    (module, anchors), scene = trainer, OnBlack(seed)()
    boxes, classes = torch.from_numpy(scene.boxes), torch.from_numpy(scene.classes)
    label, offsets = module.targets(anchors, boxes, classes, torch.tensor(SSDLite.spread))
    found = label < len(CIFAR10)
    decoded = decode(anchors[found].numpy(), offsets[found].numpy(), SSDLite.spread)
    distance = np.abs(decoded[:, None] - scene.boxes).max(2)                # (anchors, objects)
    nearest = distance.argmin(1)
    assert distance.min(1).max() < 1e-3 and (scene.classes[nearest] == label[found].numpy()).all()
    assert set(nearest) == set(range(len(boxes)))
    assert (module.overlaps(anchors[~found], boxes) < module.MATCH).all() and found.sum() < len(anchors) / 4
