"""`mmref segment` as a user meets it: files, lines, exit status."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from colour_model import patches
from PIL import Image
from safetensors.numpy import save_file

import mmref
from mmref.cli import main
from mmref.data.keep_ratio import KeepRatio
from mmref.data.label_map import read_label_map, write_label_map
from mmref.data.labels import CIFAR10

NAMES = ("background", *CIFAR10)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An untrained mobilemamba_nano_fpn, with class names and a small transform."""
    path = tmp_path_factory.mktemp("weights") / "fpn.safetensors"
    state = mmref.create_model("mobilemamba_nano_fpn", seed=3).state_dict()
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path,
              {"class_names": json.dumps(NAMES), "transform": json.dumps(KeepRatio(32, 128).to_dict())})
    return path


@pytest.fixture
def photos(tmp_path):
    """Four pictures, one of them below, and a broken one."""
    patches(tmp_path / "photos" / "a.png", ["red blue", "green white"])
    Image.new("RGB", (9, 5), "red").save(tmp_path / "photos" / "a.jpg")
    patches(tmp_path / "photos" / "in" / "b.png", ["red blue white"])
    Image.new("RGB", (1, 1)).save(tmp_path / "photos" / "one.png")
    (tmp_path / "photos" / "broken.jpg").write_text("<html>")
    return tmp_path / "photos"


def files_below(folder):
    return sorted(os.path.relpath(os.path.join(where, name), folder) for where, _, names in os.walk(folder)
                  for name in names)


def test_mean_of_a_grey_network(tmp_path, capsys):
    """Catches --mean's three numbers given to a network of one channel as they are, and three different ones reduced to
    the first without a word."""
    path = tmp_path / "grey.safetensors"
    state = mmref.create_model("mobilemamba_nano_fpn", seed=3, in_chans=1).state_dict()
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path,
              {"class_names": json.dumps(NAMES),
               "transform": json.dumps(KeepRatio(32, 128, (0.4,), (0.2,)).to_dict())})
    patches(tmp_path / "pictures" / "a.png", ["red blue", "green white"])
    (tmp_path / "labels").mkdir()
    write_label_map(tmp_path / "labels" / "a.png", np.zeros((16, 16), np.uint8), np.zeros((1, 3), np.uint8))
    command = ["eval", str(tmp_path / "pictures"), "--labels", str(tmp_path / "labels"), "--task", "segment",
               "--weights", str(path), "--model", "mobilemamba_nano_fpn", "--json"]
    assert main([*command, "--mean", "0.3", "0.4", "0.3"]) == 2
    assert "--mean must be three equal numbers" in capsys.readouterr().err
    assert main([*command, "--mean", "0.3", "0.3", "0.3"]) == 0, capsys.readouterr().err


def test_folder(weights, photos, tmp_path, capsys):
    """Catches label maps that overwrite one another, lose their folder, or are written for a bad picture; a status 0 in
    spite of it; label maps that are not the answer."""
    out = tmp_path / "out"
    assert main(["segment", str(photos), "--weights", str(weights), "-o", str(out), "--json"]) == 2
    text, err = capsys.readouterr()
    assert err.count("mmref: error") == 1 and "broken.jpg: expected JPEG" in err
    files = ["a.jpg.png", "a.png.png", os.path.join("in", "b.png"), "one.png"]
    assert files_below(out / "labels") == files_below(out / "overlays") == files
    answers = {os.path.relpath(answer["picture"], photos): answer for answer in json.loads(text)}
    assert answers["broken.jpg"]["error"] and "labels" not in answers["broken.jpg"]
    answer = answers[os.path.join("in", "b.png")]
    labels = read_label_map(answer["labels"])
    expected = mmref.segment(photos / "in" / "b.png", weights=weights)
    assert (labels == expected.labels).all() and (answer["height"], answer["width"]) == labels.shape == (8, 24)
    assert {c["class"]: c["pixels"] for c in answer["classes"]} == {c.number: c.pixels for c in expected.classes()}
    assert all(c["name"] == NAMES[c["class"]] and c["share"] == c["pixels"] / labels.size for c in answer["classes"])
    with Image.open(answer["overlay"]) as image:
        assert image.height > labels.shape[0]  # the legend


def test_one_picture(weights, photos, tmp_path, capsys):
    """Catches a legend of other shares than the picture's, an overlay that ignores the opacity, and options that do not
    arrive."""
    out, picture = tmp_path / "out", photos / "in" / "b.png"
    assert main(["segment", str(picture), "--weights", str(weights), "-o", str(out), "--no-legend", "--opacity", "0",
                 "--tile", "16", "--backend", "numba"]) == 0
    expected = mmref.segment(picture, weights=weights, tile=16, backend="numba")
    assert (read_label_map(out / "labels" / "b.png") == expected.labels).all()
    with Image.open(out / "overlays" / "b.png") as shown, Image.open(picture) as image:
        assert (np.asarray(shown) == np.asarray(image)).all()
    text, _ = capsys.readouterr()
    first = expected.classes()[0]
    assert f"{first.name}" in text and f"{first.share:.1%}" in text and str(out / "labels" / "b.png") in text


def test_answers_are_not_segmented_again(weights, photos, capsys):
    """Catches a second run into the pictures' own folder that takes the first one's label maps for pictures."""
    command = ["segment", str(photos), "--weights", str(weights), "-o", str(photos)]
    assert main(command) == 2
    before = files_below(photos)
    assert main(command) == 2
    assert files_below(photos) == before and "8 pictures" in capsys.readouterr().err


def test_refused_before_any_work(weights, photos, tmp_path, capsys):
    """Catches two pictures that become one file, a picture that would be replaced, an output that is a file, and
    options out of range: each one line, status 2, nothing written."""
    (tmp_path / "file").write_text("")
    patches(tmp_path / "other" / "a.png", ["red"])
    patches(tmp_path / "labels" / "c.png", ["red"])
    cases = {"would both become a.png.*;": [photos / "a.png", tmp_path / "other" / "a.png", "-o", tmp_path / "x"],
             "would replace a picture": [tmp_path / "labels" / "c.png", "-o", tmp_path],
             "got the file": [photos / "a.png", "-o", tmp_path / "file"],
             "--opacity": [photos / "a.png", "-o", tmp_path / "x", "--opacity", "1.5"],
             "pass one of them": [photos / "a.png", "-o", tmp_path / "x", "--tile", "64", "--img-size", "32"],
             "class_names": [photos / "a.png", "-o", tmp_path / "x", "--class-names", "ade20k"],
             "at least one file": ["-o", tmp_path / "x"]}
    before = files_below(tmp_path)
    for message, arguments in cases.items():
        assert main(["segment", *map(str, arguments), "--weights", str(weights)]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
    assert files_below(tmp_path) == before and not (tmp_path / "x").exists()


def test_nothing_half_written(weights, photos, tmp_path, capsys, monkeypatch):
    """Catches a label map without its overlay or the reverse, temporary files left behind, and a run that ends at the
    first picture that cannot be written."""
    from PIL import Image as module
    save = module.Image.save

    def fails(self, path, *rest, **options):
        save(self, path, *rest, **options)
        if self.mode == "P" and self.size == (24, 8):
            raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(module.Image, "save", fails)
    assert main(["segment", str(photos / "in"), str(photos / "one.png"), "--weights", str(weights), "-o",
                 str(tmp_path / "out")]) == 2
    assert "b.png: Input/output error" in capsys.readouterr().err
    assert files_below(tmp_path / "out") == [os.path.join("labels", "one.png"), os.path.join("overlays", "one.png")]


def test_full_disk_ends_the_run(weights, photos, tmp_path, capsys, monkeypatch):
    """Catches hours of work for a disk that takes no more files."""
    import errno

    from PIL import Image as module

    def fails(self, path, *rest, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.Image, "save", fails)
    assert main(["segment", str(photos), "--weights", str(weights), "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("No space left") == 1 and files_below(tmp_path / "out") == []


def test_classifiers_weights(photos, tmp_path, capsys):
    """Catches a classifier's checkpoint that is not called what it is."""
    state = mmref.create_model("mobilemamba_nano").state_dict()
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, tmp_path / "c.safetensors")
    assert main(["segment", str(photos / "a.png"), "--weights", str(tmp_path / "c.safetensors"), "-o",
                 str(tmp_path / "x")]) == 2
    assert "They fit mobilemamba_nano with num_classes=10" in capsys.readouterr().err
