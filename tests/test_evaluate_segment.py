"""Segmentation's figures: the counts, the meaning of label files, and the command."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest
from colour_model import COLOURS, PixelColourModel, patches
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_segment_cli import NAMES, weights  # noqa: F401  (a fixture)

from mmref.cli import main
from mmref.errors import MmrefError, PictureError, ShapeError, ValueProblem
from mmref.evaluate import LabelRule, evaluate, read_labelled_folder
from mmref.evaluate.folder import FolderError
from mmref.evaluate.overlap import count_pixels, overlap_figures
from mmref.tasks.segmenter import Segmenter

# --------------------------------------------------------------------------------------------- counts and figures

def test_figures_by_hand():
    """Catches another mean than the definition's: a class predicted but never labelled counts 0 in mIoU and not in
    mAcc, one that is neither is left out of both, ignored pixels count nowhere, stray ones for what is predicted
    there."""
    predicted = np.array([[0, 0, 1, 1, 2, 2, 0]], np.uint8)
    labels = np.array([[0, 1, 1, 1, 0, 255, 200]], np.uint8)
    counts = count_pixels(predicted, labels, 4)
    assert counts.tolist() == [[1, 2, 0, 0], [3, 2, 1, 0], [2, 3, 0, 0]]
    figures = overlap_figures(counts)
    assert np.allclose(figures["IoU"], [25, 200 / 3, 0, np.nan], equal_nan=True)
    assert np.isclose(figures["mIoU"], (25 + 200 / 3) / 3) and np.isclose(figures["mAcc"], (50 + 200 / 3) / 2)
    assert np.isclose(figures["aAcc"], 60)
    with pytest.raises(ValueProblem, match="got none"):
        overlap_figures(count_pixels(predicted, np.full_like(labels, 255), 4))
    with pytest.raises(ValueProblem, match="below 2"):
        count_pixels(predicted, labels, 2)
    for wrong in (labels.T, labels[0], labels.astype(int)):
        with pytest.raises(ShapeError):
            count_pixels(predicted, wrong, 4)


@given(st.integers(1, 250), st.integers(0, 2 ** 32 - 1))
def test_counts_are_those_of_masks(classes, seed):
    """Catches a count that mixes classes, and values at the ends of the range: compared with one mask per class."""
    rng = np.random.default_rng(seed)
    predicted = rng.integers(0, classes, (5, 7), np.uint8)
    labels = rng.integers(0, 256, (5, 7)).astype(np.uint8)
    labels = np.where(rng.random((5, 7)) < 0.5, predicted, labels)
    seen = labels != 255
    expected = [[((predicted == c) & (labels == c) & seen).sum(), ((predicted == c) & seen).sum(), (labels == c).sum()]
                for c in range(classes)]
    assert (count_pixels(predicted, labels, classes) == np.transpose(expected)).all()


# --------------------------------------------------------------------------------------------- label files

def label_png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def test_what_label_values_mean(tmp_path):
    """Catches labels that are one off, "other" that counts, and values of another data set that count without a
    word."""
    path = label_png(tmp_path / "a.png", [[0, 1, 5, 6, 255]])
    assert LabelRule(7).read(path).tolist() == [[0, 1, 5, 6, 255]]
    assert LabelRule(6, zero_other=True).read(path).tolist() == [[255, 0, 4, 5, 255]]
    with pytest.raises(PictureError, match=r"a.png: labels: 0 to 5 are the classes, 255 is ignored, got the value 6 in "
                                           r"1 of 5 pixels"):
        LabelRule(6).read(path)
    with pytest.raises(PictureError, match=r"a.png: labels: 0 is other and ignored, 1 to 5 .* got the value 6"):
        LabelRule(5, zero_other=True).read(path)
    assert LabelRule(5, True, count_stray=True).read(path).tolist() == [[255, 0, 4, 5, 255]]


def colours(tmp_path, labels="labels"):
    """Five pictures of squares with their labels: the fourth is broken, the fifth's labels are of another size."""
    rng = np.random.default_rng(0)
    for i, folder in enumerate(["", "in", "", "", ""]):
        truth = patches(tmp_path / "p" / folder / f"{i}.png",
                        [" ".join(rng.choice(list(COLOURS), 4)) for _ in range(3)])
        label_png(tmp_path / labels / folder / f"{i}.png", truth[:, :-1] if i == 4 else truth)
    (tmp_path / "p" / "3.png").write_text("<html>")
    return read_labelled_folder(tmp_path / "p", tmp_path / labels, LabelRule(len(COLOURS)))


def test_every_way_gives_the_same_counts(tmp_path):
    """Catches counts that depend on processes, a resume or the cluster, a batch that counts twice, and a bad picture or
    label that counts or stops the run."""
    pictures = colours(tmp_path)
    assert len(pictures) == 5 and not pictures.problems
    expected = evaluate(Segmenter(PixelColourModel()), pictures)
    # 0, 1 and 2 at the size of the network's input, where edges between squares are blurred
    assert expected.answered == 3 and expected.counts[2].sum() == 3 * 24 * 32
    assert expected.summary()["aAcc"] > 80 and sorted(expected.errors) == [2, 3]
    errors = {pictures.paths[i]: error for i, error in expected.errors.items()}
    assert "expected JPEG" in errors["3.png"]
    assert errors["4.png"].endswith("4.png: labels must have the size of their picture, 32 x 24, got 31 x 24")
    journal = tmp_path / "journal"
    evaluate(Segmenter(PixelColourModel()), pictures, resume=journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:5])  # as a kill would leave it
    for way in ({"processes": 2}, {"resume": journal}):
        tally = evaluate(Segmenter(PixelColourModel()), pictures, **way)
        assert (tally.counts == expected.counts).all() and tally.errors == expected.errors
    tally.add({"start": 0, "counts": [[[0, 1, 1, 1]]]})
    assert (tally.counts == expected.counts).all()
    with pytest.raises(MmrefError, match="holds another evaluation"):
        evaluate(Segmenter(PixelColourModel(), tile=16), pictures, resume=journal)
    with pytest.raises(MmrefError, match="holds another evaluation"):
        evaluate(Segmenter(PixelColourModel()), pictures.limit(2), resume=journal)


def test_on_a_cluster(tmp_path):
    """Catches label files that do not travel with their pictures."""
    pytest.importorskip("distributed", reason="pip install 'mmref[dask]'")
    pictures = colours(tmp_path)
    expected = evaluate(Segmenter(PixelColourModel()), pictures)
    tally = evaluate(Segmenter(PixelColourModel()), pictures, scheduler="local:1")
    assert (tally.counts == expected.counts).all() and tally.errors == expected.errors


def test_which_label_belongs_to_which_picture(tmp_path):
    """Catches labels that are taken for pictures, pictures without labels that go unsaid, a label that two pictures
    claim, and files of cameras that shout overlooked."""
    rule = LabelRule(6)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for name in ("a.png", "b.jpg.png", "z.png"):
        label_png(tmp_path / name, np.zeros((4, 4)))
    beside = read_labelled_folder(tmp_path, tmp_path, rule)
    assert beside.paths == ("a.jpg", "b.jpg") and beside.labels == ("a.png", "b.jpg.png")
    assert "2 pictures without labels left out" in beside.notes  # c.jpg and z.png
    inner = colours(tmp_path / "in", labels="p/labels")
    assert len(inner) == 5 and inner.labels[0] == "0.png"
    label_png(tmp_path / "l" / "a.png", np.zeros((4, 4)))
    label_png(tmp_path / "l" / "x.png", np.zeros((4, 4)))

    shouted = tmp_path / "shouted"
    label_png(shouted / "A.PNG", np.zeros((4, 4)))
    Image.new("RGB", (4, 4)).save(shouted / "A.JPG")
    assert read_labelled_folder(shouted, shouted, rule).labels == ("A.PNG",)
    with pytest.raises(FolderError, match="may be the label of any of a.jpg, a.png"):
        (tmp_path / "two").mkdir()
        for name in ("a.jpg", "a.png"):
            Image.new("RGB", (4, 4)).save(tmp_path / "two" / name)
        read_labelled_folder(tmp_path / "two", tmp_path / "l", rule)
    with pytest.raises(FolderError, match="no labels of the"):
        read_labelled_folder(tmp_path / "two", tmp_path / "in" / "p" / "in", rule)
    with pytest.raises(FolderError, match="labels are a folder"):
        read_labelled_folder(tmp_path, tmp_path / "a.jpg", rule)


# --------------------------------------------------------------------------------------------- the command

def test_own_answers_are_right(weights, tmp_path, capsys):  # noqa: F811
    """Catches a command whose label maps the evaluation reads otherwise than they were meant; files that differ from
    what is printed; figures that hold times."""
    rng = np.random.default_rng(0)
    for i in range(3):
        patches(tmp_path / "p" / f"{i}.png", [" ".join(rng.choice(list(COLOURS), 3))] * 2)
    common = ["--weights", str(weights)]
    assert main(["segment", str(tmp_path / "p"), *common, "-o", str(tmp_path / "out")]) == 0
    command = ["eval", str(tmp_path / "p"), "--task", "segment", *common, "--labels", str(tmp_path / "out" / "labels")]
    capsys.readouterr()
    assert main([*command, "--json", "--results-file", str(tmp_path / "r.csv")]) == 0
    out, err = capsys.readouterr()
    results = json.loads(out)
    assert (results["mIoU"], results["mAcc"], results["aAcc"]) == (100, 100, 100)
    assert "0 to 10 are the classes" in err and all(c["name"] == NAMES[c["class"]] for c in results["classes"])
    row, = csv.DictReader((tmp_path / "r.csv").open())
    assert row == {"model": "mobilemamba_nano_fpn", "mIoU": "100.0", "mAcc": "100.0", "aAcc": "100.0",
                   "param_count": str(results["param_count"]), "img_size": "32"}
    label_png(tmp_path / "out" / "labels" / "1.png", np.full((16, 24), 99))
    assert main([*command, "--results-file", str(tmp_path / "r.json")]) == 2
    out, err = capsys.readouterr()
    bad, = json.loads((tmp_path / "r.json").read_text())["bad"]
    assert f"{os.path.join('labels', '1.png')}: labels: 0 to 10" in bad["error"] and bad["error"] in err
    assert "mIoU   100.00 %" in out and "bad    1 pictures, not counted" in out
    assert main([*command, "--stray-labels", "count"]) == 0
    assert "mIoU   100.00 %" not in capsys.readouterr().out


def test_options_of_another_task(weights, tmp_path, capsys):  # noqa: F811
    """Catches options that are taken and have no effect."""
    patches(tmp_path / "p" / "a.png", ["red"])
    segment = ["eval", str(tmp_path / "p"), "--task", "segment", "--weights", str(weights)]
    for command, message in ((segment, "--labels must be a folder"),
                             ([*segment, "--labels", "x", "--topk", "2"], "--topk must be left out"),
                             ([*segment, "--labels", str(tmp_path / "no")], "not a folder"),
                             (["eval", str(tmp_path / "p"), "--zero-is-other"], "--zero-is-other must be left out")):
        assert main(command) == 2
        assert message in capsys.readouterr().err
