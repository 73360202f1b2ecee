"""Detection's figures: annotations in COCO's format, pycocotools, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from colour_model import RectangleModel, rectangles
from test_detector import weights  # noqa: F401  (a fixture)

from mmref.cli import main
from mmref.data.labels import CIFAR10, coco_ids, coco_names
from mmref.errors import MmrefError
from mmref.evaluate import evaluate, read_annotations
from mmref.evaluate.folder import FolderError
from mmref.tasks.detector import Detector

pytest.importorskip("pycocotools", reason="pip install 'mmref[coco]'")
NAMES = ("red", "green", "blue")


def written(path, images, names=NAMES, numbers=None):
    """Annotations of {file name: (size, {colour: box})}."""
    numbers = dict(zip(names, numbers or range(7, 7 + len(names)), strict=True))
    listed, annotations = [], []
    for i, (name, (size, boxes)) in enumerate(images.items()):
        listed.append({"id": 10 * i + 3, "file_name": name, "height": size[0], "width": size[1]})
        for colour, (x1, y1, x2, y2) in boxes.items():
            area = (x2 - x1) * (y2 - y1)
            annotations.append({"id": len(annotations) + 1, "image_id": 10 * i + 3, "category_id": numbers[colour],
                                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": 0,
                                "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]})
    content = {"images": listed, "annotations": annotations,
               "categories": [{"id": number, "name": name} for name, number in numbers.items()]}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def data(tmp_path):
    """Six pictures of rectangles, two broken ones that are annotated likewise, and their annotations."""
    rng, images = np.random.default_rng(0), {}
    for i in range(8):
        x1, y1 = (4 * rng.integers(0, 5, 2)).tolist()
        boxes = {NAMES[i % 3]: (x1, y1, x1 + 20, y1 + 16), NAMES[(i + 1) % 3]: (x1 + 24, y1 + 20, x1 + 40, y1 + 40)}
        images[f"{i}.png"] = (80, 80), boxes
        rectangles(tmp_path / "pictures" / f"{i}.png", (80, 80), boxes)
    (tmp_path / "pictures" / "6.png").write_text("<html>")
    rectangles(tmp_path / "pictures" / "7.png", (40, 80), {})               # of another size than annotated
    return tmp_path / "pictures", written(tmp_path / "instances.json", images)


def test_figures(data, tmp_path):
    """Catches boxes compared with another picture's, class numbers instead of categories, bad pictures counted as
    pictures without objects, and figures that depend on batches, processes or an interruption."""
    pictures = read_annotations(*data, NAMES)
    assert len(pictures) == 8 and pictures.categories == (7, 8, 9)
    for masks in (False, True):
        detector = Detector(RectangleModel(masks, short=80))
        tally = evaluate(detector, pictures)
        figures = tally.summary()
        assert figures["AP"] == figures["AP50"] == 100 and figures["APl"] is None and tally.answered == 6
        assert ("mask AP50" in figures) == masks and (not masks or figures["mask AP50"] == 100)
        assert sorted(tally.errors) == [6, 7] and "annotations are of a picture of 80 x 80" in tally.errors[7]
        assert [c["name"] for c in tally.per_class()] == list(NAMES)
    whole = tally.summary()
    journal = tmp_path / "journal"
    with pytest.raises(KeyboardInterrupt):
        evaluate(Detector(RectangleModel(True, short=80), batch_size=2), pictures, resume=journal,
                 progress=lambda tally, new: tally.done.sum() >= 4 and _interrupt())
    again = evaluate(Detector(RectangleModel(True, short=80), batch_size=2), pictures, resume=journal)
    assert again.summary() == whole
    assert evaluate(Detector(RectangleModel(True, short=80), batch_size=3), pictures, processes=2).summary() == whole
    assert evaluate(detector, pictures.limit(3)).answered == 3


def _interrupt():
    raise KeyboardInterrupt


def test_nothing_found(tmp_path):
    """Catches pycocotools' crash where there is no result at all."""
    images = {"a.png": ((80, 80), {"red": (0, 0, 20, 20)})}
    rectangles(tmp_path / "a.png", (80, 80), {})
    pictures = read_annotations(tmp_path, written(tmp_path / "i.json", images), NAMES)
    assert evaluate(Detector(RectangleModel()), pictures).summary()["AP"] == 0


def test_on_dask(data):
    """Catches answers that do not travel."""
    pytest.importorskip("distributed", reason="pip install 'mmref[dask]'")
    pictures = read_annotations(*data, NAMES)
    here = evaluate(Detector(RectangleModel(short=80)), pictures)
    there = evaluate(Detector(RectangleModel(short=80)), pictures, scheduler="local:2")
    assert there.summary() == here.summary() and there.errors == here.errors


def test_annotations(data, tmp_path):
    """Catches classes matched by their place, a file of something else taken for annotations, and pictures that are
    missing without a word."""
    root, path = data
    content = json.loads(path.read_text())
    assert read_annotations(root, path, ("blue", "red")).categories == (9, 7)
    with pytest.raises(FolderError, match="no category is called violet"):
        read_annotations(root, path, ("red", "violet"))
    (root / "3.png").unlink()
    assert "1 pictures of" in read_annotations(root, path, NAMES).problems[0]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FolderError, match="none of the 8 pictures"):
        read_annotations(empty, path, NAMES)
    for wrong in ("[]", "{", "{}", json.dumps({**content, "images": [{"id": 1}]}),
                  json.dumps({**content, "images": content["images"] * 2})):
        path.write_text(wrong)
        with pytest.raises(FolderError, match="instances.json"):
            read_annotations(root, path, NAMES)
    path.write_text(json.dumps({**content, "categories": [{"id": i, "name": f"x{i}"} for i in coco_ids()]}))
    assert read_annotations(root, path, coco_names()).categories == coco_ids()  # translated names


def _changed(content, place, value):
    content = json.loads(json.dumps(content))
    *way, last = place
    inner = content
    for key in way:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return content


INF = float("inf")
WRONG = {("images", 0): [5], ("images", 0, "id"): ["3", 3.5, True, None, [3]], ("images", 0, "file_name"): [None, ""],
         ("images", 0, "height"): [0, -1, 80.5, "80", INF, ...], ("categories", 0, "name"): [5, "green"],
         ("categories", 0, "id"): [8, "x"], ("annotations", 0): [None, 5, []],
         ("annotations", 0, "image_id"): [99, None, "3", ...], ("annotations", 0, "category_id"): [99, [7], None, ...],
         ("annotations", 0, "area"): [None, "x", float("nan"), ...], ("annotations", 0, "iscrowd"): [2, None, "x"],
         ("annotations", 0, "bbox"): [None, [1, 2, 3], [1, 2, "a", 4], "abcd", [1, 2, -5, 5], [INF] * 4, {}, ...]}


@pytest.mark.parametrize("place", WRONG, ids=lambda place: ".".join(map(str, place)))
def test_wrong_annotations(place, data):
    """Catches pycocotools' tracebacks, and annotations of unknown pictures or categories that count for nothing."""
    root, path = data
    content = json.loads(path.read_text())
    for value in WRONG[place]:
        path.write_text(json.dumps(_changed(content, place, value)))
        with pytest.raises(FolderError, match=rf"instances.json: {place[0]}\[\d\]"):
            read_annotations(root, path, NAMES)


def test_annotations_that_count(data):
    """Catches annotations whose id is 0 or somebody else's, which pycocotools never counts as found, iscrowd demanded
    where it says nothing, and a byte order mark that it cannot read."""
    root, path = data
    content = json.loads(path.read_text())
    for one in content["annotations"]:
        one["id"] = 0
        del one["iscrowd"]
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    pictures = read_annotations(root, path, NAMES)
    assert evaluate(Detector(RectangleModel(True, short=80)), pictures).summary()["AP"] == 100


def test_wrong_masks(data):
    """Catches masks that pycocotools cannot read, run lengths beyond their picture among them; boxes need no masks."""
    from pycocotools import mask
    root, path = data
    content = json.loads(path.read_text())
    image = content["annotations"][0]["image_id"]
    assert image == content["images"][0]["id"]
    detector, boxes = (Detector(RectangleModel(masks, short=80)) for masks in (True, False))
    packed = mask.encode(np.asfortranarray(np.random.default_rng(0).random((80, 80)) > 0.5, np.uint8))
    good = {"size": [80, 80], "counts": packed["counts"].decode()}
    for right in (good, {"size": [80, 80], "counts": [0, 6400]}):
        path.write_text(json.dumps(_changed(content, ("annotations", 0, "segmentation"), right)))
        read_annotations(root, path, NAMES).tally(detector, NAMES)
    for wrong in (..., None, 5, [], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, None]], {}, {**good, "size": [80, 81]},
                  {**good, "counts": good["counts"] + "o" * 20}, {**good, "counts": good["counts"][:-1]},
                  {"size": [80, 80], "counts": [0, 6401]}, {"size": [80, 80], "counts": [-1, 6401]}):
        path.write_text(json.dumps(_changed(content, ("annotations", 0, "segmentation"), wrong)))
        with pytest.raises(FolderError, match=r"annotations\[0\]: segmentation"):
            read_annotations(root, path, NAMES).tally(detector, NAMES)
        read_annotations(root, path, NAMES).tally(boxes, NAMES)


def test_command(weights, data, tmp_path, capsys):  # noqa: F811
    """Catches figures that the files and the lines do not have, and options of other tasks taken without a word."""
    root, path = data
    results = tmp_path / "results.json"
    content = json.loads(path.read_text())
    content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(CIFAR10)]
    path.write_text(json.dumps(content))
    command = ["eval", str(root), "--task", "detect", "--annotations", str(path), "--weights", str(weights)]
    assert main([*command, "--results-file", str(results)]) == 2             # two bad pictures
    text, err = capsys.readouterr()
    found = json.loads(results.read_text())
    assert found["answered"] == 6 and 0 <= found["AP"] < 50 and len(found["bad"]) == 2 and "AP50" in text
    assert main([*command, "--results-file", str(tmp_path / "r.csv")]) == 2
    assert (tmp_path / "r.csv").read_text().startswith("model,AP,AP50,AP75,APs,APm,APl,param_count")
    capsys.readouterr()
    for wrong, words in ((["--topk", "1"], "--topk"), (["--tile", "64"], "--tile"), (["--labels", "x"], "--labels")):
        assert main([*command, *wrong]) == 2 and words in capsys.readouterr().err
    assert main(["eval", str(root), "--task", "detect"]) == 2 and "--annotations" in capsys.readouterr().err
    assert main(["eval", str(root), "--annotations", str(path)]) == 2 and "detect" in capsys.readouterr().err


def test_no_picture_at_all(tmp_path):
    """Catches figures of nothing."""
    (tmp_path / "a.png").write_text("<html>")
    path = written(tmp_path / "i.json", {"a.png": ((8, 8), {"red": (0, 0, 4, 4)})})
    with pytest.raises(MmrefError, match="no picture could be read"):
        evaluate(Detector(RectangleModel()), read_annotations(tmp_path, path, NAMES)).summary()
