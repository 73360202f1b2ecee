"""`mmref.Detector` and `mmref detect`: from picture files to boxes, drawings and COCO's results."""

from __future__ import annotations

import errno
import json
import os
import pickle

import numpy as np
import pytest
from colour_model import RectangleModel, rectangles
from PIL import Image
from safetensors.numpy import save_file

import mmref
from mmref.cli import main
from mmref.data.frame import Frame
from mmref.data.labels import CIFAR10, coco_ids, coco_names
from mmref.detection.result import detections
from mmref.errors import PictureError, ShapeError, ValueProblem
from mmref.show.boxes import draw_objects
from mmref.tasks.coco import category_ids, results_of


@pytest.fixture
def photos(tmp_path):
    """Three pictures of three sizes, one of them below, and a broken one."""
    folder = tmp_path / "photos"
    rectangles(folder / "1.png", (40, 60), {"red": (10, 5, 30, 25), "blue": (40, 20, 60, 40)})
    rectangles(folder / "in" / "2.png", (80, 40), {"green": (0, 0, 20, 60)})
    rectangles(folder / "3.png", (40, 60), {})
    (folder / "broken.jpg").write_text("<html>")
    return folder


def test_answers(photos):
    """Catches boxes of another picture of the batch, a picture that others of another size are filled up to, and a bad
    picture that takes others with it."""
    model = RectangleModel()
    names = ["1.png", "broken.jpg", os.path.join("in", "2.png"), "3.png"]
    one, broken, two, nothing = mmref.Detector(model, batch_size=4)([photos / name for name in names])
    assert one.labels == ("red", "blue") and one.class_names == ("red", "green", "blue")
    np.testing.assert_allclose(one.objects.boxes, [[10, 5, 30, 25], [40, 20, 60, 40]], atol=1.5)
    np.testing.assert_allclose(two.objects.boxes, [[0, 0, 20, 60]], atol=1.5)
    assert two.objects.size == (80, 40) and len(nothing.objects) == 0 and nothing.labels == ()
    assert "broken.jpg" in broken.error and broken.objects is None
    assert sorted(shape[0] for shape in model.shapes) == [1, 2]  # those of one size at once, the other by itself
    assert all(side % 32 == 0 for shape in model.shapes for side in shape[2:])
    (only,) = mmref.Detector(RectangleModel(), score=0.6)([photos / "1.png"])
    assert only.labels == ("red",) and only.image is None


def test_one_picture(photos):
    """Catches an answer that hides its error."""
    answer = mmref.detect(photos / "1.png", RectangleModel(), keep_images=True)
    assert answer.labels == ("red", "blue") and answer.image.size == (60, 40)
    with pytest.raises(PictureError, match="broken.jpg"):
        mmref.detect(photos / "broken.jpg", RectangleModel())


def test_settings():
    """Catches a network of another task that fails somewhere inside, and settings taken without a look."""
    with pytest.raises(ValueProblem, match="finds objects"):
        mmref.Detector("mobilemamba_t2")
    with pytest.raises(ValueProblem, match="classifies"):
        mmref.Predictor("mobilemamba_b1_ssdlite")
    for wrong in (dict(score=2), dict(score="x"), dict(batch_size=0), dict(transform=object())):
        with pytest.raises(ValueProblem):
            mmref.Detector("mobilemamba_nano_ssdlite", **wrong)
    for wrong in (dict(short=0), dict(short=9, long=4), dict(multiple=0), dict(std=(0, 1, 1)), dict(keep_ratio=1)):
        with pytest.raises(ValueProblem, match="transform"):
            Frame(**wrong)
    frame = Frame(320, 320, keep_ratio=False, multiple=1)
    assert Frame.from_dict(json.loads(json.dumps(frame.to_dict()))) == frame
    assert frame.with_size(512).size(10, 99) == (512, 512) and Frame().with_size(400).long == 666
    assert pickle.loads(pickle.dumps(mmref.Detector("mobilemamba_nano_ssdlite", score=0.2))).score == 0.2


def test_turned_pictures(tmp_path):
    """Catches boxes that belong to the picture as it lies in the file."""
    turned = Image.open(rectangles(tmp_path / "a.png", (40, 80), {"red": (0, 0, 20, 40)}))
    exif = Image.Exif()
    exif[0x0112] = 6                                                        # a quarter turn to the right
    turned.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    answer = mmref.detect(tmp_path / "a.jpg", RectangleModel())
    assert answer.objects.size == (80, 40)
    np.testing.assert_allclose(answer.objects.boxes[:1], [[0, 0, 40, 20]], atol=2)
    assert mmref.detect(tmp_path / "a.jpg", RectangleModel(), exif=False).objects.size == (40, 80)


# --------------------------------------------------------------------------------------------- drawing, COCO

@pytest.mark.parametrize("ground", [0, 255])
def test_drawn_on_light_and_dark(ground):
    """Catches lines and names that vanish in a picture of their own brightness, boxes that reach beyond it, and a mask
    that colours the whole box."""
    image = Image.new("RGB", (90, 70), (ground,) * 3)
    boxes = np.array([[20.0, 20, 70, 60], [-5, -5, 200, 8], [3, 3, 3, 3], [80, 60, 90, 70]])
    half = np.zeros((4, 28, 28))
    half[:, :14] = 1
    objects = detections(boxes, np.full(4, 0.5), np.array([0, 1, 0, 1]), (70, 90), np.float32, half)
    colours = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    shown = np.asarray(draw_objects(image, objects, ["black", "white", "empty", "corner"], colours))
    assert shown.shape == (70, 90, 3)
    edge = shown[35:45, 17:26, 0].astype(int)
    assert (np.abs(edge - ground).max(1) > 100).all()
    assert (shown[44, 30:60, 0] == ground).all()                            # below the mask, within the box
    if ground:
        assert (shown[34, 30:60, 0] < ground).all()                         # in it
    assert np.asarray(image).min() == np.asarray(image).max() == ground     # the picture itself is not drawn on
    with pytest.raises(ShapeError, match="objects' own"):
        draw_objects(image.resize((9, 9)), objects, ["a"] * 4, colours)


def test_results_in_cocos_format():
    """Catches corners in the place of sides, class numbers without COCO's gaps, and masks by rows."""
    pycocotools = pytest.importorskip("pycocotools.mask", reason="pip install 'mmref[coco]'")
    boxes = np.array([[1.0, 2, 11, 7], [0, 0, 20, 10]])
    left = np.zeros((2, 28, 28))
    left[:, :, :14] = 1
    objects = detections(boxes, np.array([0.75, 0.5]), np.array([79, 11]), (10, 20), np.float32, left)
    found = results_of(139, objects, category_ids(coco_names()))
    assert [entry["category_id"] for entry in found] == [90, 13] == [coco_ids()[79], coco_ids()[11]]
    assert found[0]["bbox"] == [1, 2, 10, 5] and found[0]["score"] == 0.75 and found[0]["image_id"] == 139
    assert json.loads(json.dumps(found)) == found
    for entry, mask in zip(found, objects.masks, strict=True):
        assert (pycocotools.decode(entry["segmentation"]) == mask).all()
    assert category_ids(CIFAR10) == tuple(range(1, 11))
    assert "segmentation" not in results_of(1, detections(*[np.zeros((0, 4))] * 2, np.zeros(0, int), (1, 1), float),
                                            ())


# --------------------------------------------------------------------------------------------- the command

@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An untrained mobilemamba_nano_ssdlite that finds much, with class names."""
    path = tmp_path_factory.mktemp("weights") / "ssdlite.safetensors"
    state = mmref.create_model("mobilemamba_nano_ssdlite", seed=3).state_dict()
    state = {name: np.ascontiguousarray(array) for name, array in state.items()}
    save_file(state, path, {"class_names": json.dumps(CIFAR10)})
    return path


def test_folder(weights, photos, tmp_path, capsys):
    """Catches drawings written for a bad picture, a status 0 in spite of it, results that --score cuts off, answers
    that are not the detector's, and earlier answers taken for pictures."""
    out, coco = photos / "out", tmp_path / "r.json"
    (first,) = mmref.Detector(weights=weights)([photos / "1.png"])
    score = float(np.median(first.objects.scores))
    command = ["detect", str(photos), "--weights", str(weights), "-o", str(out), "--json", "--coco", str(coco),
               "--score", repr(score)]
    for _ in range(2):
        assert main(command) == 2
        text, err = capsys.readouterr()
        assert err.count("mmref: error") == 1 and "broken.jpg: expected JPEG" in err
        answers = json.loads(text)
        assert len(answers) == 4
    drawn = sorted(os.path.relpath(answer["drawn"], out) for answer in answers if not answer["error"])
    assert drawn == [os.path.join("objects", *name) for name in (("1.png",), ("3.png",), ("in", "2.png"))]
    results = json.loads(coco.read_text())
    for answer in answers:
        if answer["error"]:
            continue
        (expected,) = mmref.Detector(weights=weights)([answer["picture"]])
        listed = expected.objects.above(score)
        assert len(listed) == len(answer["objects"])
        np.testing.assert_allclose([one["box"] for one in answer["objects"]], listed.boxes, atol=1e-4)
        assert [one["label"] for one in answer["objects"]] == [CIFAR10[label] for label in listed.labels]
        place = [one["picture"] for one in answers].index(answer["picture"]) + 1
        assert sum(one["image_id"] == place for one in results) == len(expected.objects)
        with Image.open(answer["drawn"]) as image, Image.open(answer["picture"]) as picture:
            assert image.size == picture.size
    assert len(results) > sum(len(answer["objects"]) for answer in answers if not answer["error"])
    assert "place, from 1 on" in err and "not COCO's classes" in err


def test_numbered_pictures(weights, photos, tmp_path, capsys):
    """Catches image_id that is not the picture's name, and classes left in that were not asked for."""
    coco = tmp_path / "r.json"
    pictures = [str(photos / "3.png"), str(photos / "in" / "2.png")]
    assert main(["detect", *pictures, "--weights", str(weights), "--coco", str(coco), "--classes", "cat", "dog"]) == 0
    results = json.loads(coco.read_text())
    assert {one["image_id"] for one in results} == {2, 3}
    assert {one["category_id"] for one in results} <= {4, 6}
    text, err = capsys.readouterr()
    assert len(text.splitlines()) == 2 and "place" not in err


def test_one_picture_in_words(weights, photos, tmp_path, capsys):
    """Catches a table that leaves out what is drawn."""
    assert main(["detect", str(photos / "1.png"), "--weights", str(weights), "--score", "0", "-o", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "60 x 40 pixels" in text and "score" in text and f"wrote {tmp_path / 'objects' / '1.png'}" in text


def test_results_that_cannot_be_written(weights, photos, tmp_path, capsys, monkeypatch):
    """Catches answers lost because another file of them could not be written."""
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("mmref.cli.detect.to_json", full)
    monkeypatch.setattr(Image.Image, "save", full)
    command = ["detect", str(photos / "1.png"), "--weights", str(weights), "--json", "--score", "0"]
    assert main([*command, "--coco", str(tmp_path / "r.json"), "-o", str(tmp_path)]) == 2
    text, err = capsys.readouterr()
    (answer,) = json.loads(text)
    assert answer["objects"] and "No space left" in answer["error"]
    assert [line for line in err.splitlines() if "error" in line] == [
        f"mmref: error: {tmp_path / 'objects' / '1.png'}: No space left on device",
        f"mmref: error: {tmp_path / 'r.json'}: No space left on device"]
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("options, words", [
    (["--classes", "unicorn"], "unicorn"), (["--masks", "-o", "out"], "gives boxes only"), (["--masks"], "--output"),
    (["--score", "2"], "--score"), (["--coco", "nowhere/r.json"], "--coco"), (["--model", "mobilemamba_t2"], "finds")])
def test_what_is_refused(weights, photos, tmp_path, capsys, monkeypatch, options, words):
    """Catches an error after the work, or a traceback."""
    monkeypatch.chdir(tmp_path)
    assert main(["detect", str(photos / "1.png"), "--weights", str(weights), *options]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("mmref: error") and words in err[-1] and "Traceback" not in "".join(err)
    assert not os.path.exists("out")
