"""Evaluation: which pictures and classes, which figures, and the same figures however the work is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from colour_model import COLOURS, ColourModel, paint
from hypothesis import given, settings
from hypothesis import strategies as st

from mmref.data.labels import CIFAR10, class_names, imagenet_ids, imagenet_names
from mmref.errors import MmrefError, ValueProblem
from mmref.evaluate import Tally, evaluate, read_folder, write_results
from mmref.evaluate.batch import Batch, run_batch
from mmref.evaluate.folder import FolderError
from mmref.evaluate.journal import Journal, JournalError
from mmref.tasks.predictor import Predictor

NAMES = tuple(COLOURS)
PAINTED_AS = {"black": "black", "blue": "blue", "green": "yellow", "red": "red", "white": "white", "yellow": "yellow"}


@pytest.fixture
def folder(tmp_path):
    """Six class folders of five pictures: the green ones are all painted yellow, one red one blue, two are broken."""
    root = tmp_path / "data"
    for name in NAMES:
        for i in range(5):
            paint(root / name / f"{i}.png", PAINTED_AS[name])
    paint(root / "red" / "2.png", "blue")
    (root / "white" / "0.png").write_bytes(b"")
    (root / "black" / "deeper").mkdir()
    (root / "black" / "4.png").rename(root / "black" / "deeper" / "4.PNG")
    (root / "blue" / "3.png").write_text("<html>")
    (root / "blue" / "notes.txt").write_text("no picture")
    return root


EXPECTED = {"top1": round(100 * 22 / 28, 4), "top1_err": round(100 - round(100 * 22 / 28, 4), 4)}


# -- folders -------------------------------------------------------------------------------------------------

def test_class_folders(folder):
    """Catches: pictures in deeper folders or with capital extensions lost, other files taken, an unstable order."""
    pictures = read_folder(folder, NAMES)
    assert len(pictures) == 30 and list(pictures.paths) == sorted(pictures.paths)
    assert pictures.targets.tolist() == [i for i in range(6) for _ in range(5)]
    assert os.path.join("black", "deeper", "4.PNG") in pictures.paths
    assert pictures.notes == ("classes by names", "1 files ignored that are no .jpg, .jpeg, .png, .webp, .bmp")


def test_class_names_decide_not_the_order(tmp_path):
    """Catches: folders numbered by their sorted order although their names say otherwise (tried: only sorting)."""
    for name in ("ten", "two"):
        paint(tmp_path / name / "a.png", "red")
    assert read_folder(tmp_path, ("two", "ten")).targets.tolist() == [1, 0]
    assert read_folder(tmp_path, ("one", "Two", "three", "TEN")).targets.tolist() == [3, 1]


def test_numbered_folders(tmp_path):
    """Catches: folder "10" sorted before folder "2"."""
    for i in range(11):
        paint(tmp_path / str(i) / "a.png", "red")
    pictures = read_folder(tmp_path, class_names(11))
    assert dict(zip(pictures.paths, pictures.targets.tolist(), strict=True))[os.path.join("10", "a.png")] == 10


def test_imagenet_class_folders(tmp_path):
    """Catches: a subset of ImageNet numbered from 0 instead of by its identifiers."""
    for i in (0, 217, 999):
        paint(tmp_path / imagenet_ids()[i] / "a.png", "red")
    assert read_folder(tmp_path, imagenet_names()).targets.tolist() == [0, 217, 999]


@pytest.mark.parametrize("name, text, note", [
    ("val.txt", "ILSVRC2012_val_00000001.JPEG 65\nILSVRC2012_val_00000003.JPEG 2\nILSVRC2012_val_00000002.JPEG 970\n",
     "numbers"),
    ("LOC_val_solution.csv", "ImageId,PredictionString\nILSVRC2012_val_00000002,{970} 85 1 499 272 1 2 3 4\n"
     "ILSVRC2012_val_00000003,{2} 0 0 9 9\nILSVRC2012_val_00000001,{65} 1 2 3 4\n", "WordNet"),
    ("imagenet_2012_validation_synset_labels.txt", "{65}\n{970}\n{2}\n", "WordNet"),
    ("labels.csv", "ILSVRC2012_val_00000001.JPEG,sea snake\nILSVRC2012_val_00000002.JPEG,alp\n"
     "ILSVRC2012_val_00000003.JPEG,great white shark\n", "names")])
def test_imagenet_validation_layout(tmp_path, name, text, note):
    """Catches: any of the usual label files misread: wrong column, header taken for a label, order of lines."""
    for i in (1, 2, 3):
        paint(tmp_path / "ILSVRC2012_val.png", "red").rename(tmp_path / f"ILSVRC2012_val_{i:08}.JPEG")
    for i in (65, 970, 2):
        text = text.replace(f"{{{i}}}", imagenet_ids()[i])
    (tmp_path / name).write_text(text)
    pictures = read_folder(tmp_path, imagenet_names())
    assert pictures.targets.tolist() == [65, 970, 2] and note in pictures.notes[0]
    assert read_folder(tmp_path, imagenet_names(), labels=tmp_path / name).paths == pictures.paths


def test_devkit_ground_truth_is_refused(tmp_path):
    """Catches: the development kit's numbers taken for the networks' (they are in another order)."""
    path = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text("490\n361\n")
    with pytest.raises(FolderError, match="order of its own"):
        read_folder(tmp_path, imagenet_names(), labels=path)


def test_class_maps(folder, tmp_path):
    """Catches: a class map read and not used, or used beside other rules."""
    lines, table = tmp_path / "map.txt", tmp_path / "map.json"
    lines.write_text("\n".join(reversed(NAMES)))
    table.write_text(json.dumps({name: 5 - i for i, name in enumerate(NAMES)}))
    for path in (lines, table):
        assert read_folder(folder, NAMES, class_map=path).targets.tolist() == [5 - i for i in range(6) for _ in "12345"]


def test_order_is_the_last_resort(tmp_path):
    """Catches: unknown folder names refused where their number fits, and no word that the order was used."""
    for name in ("b", "a"):
        paint(tmp_path / name / "x.png", "red")
    pictures = read_folder(tmp_path, ("class 0", "class 1"))
    assert pictures.targets.tolist() == [0, 1] and "order of the sorted" in pictures.notes[0]


def test_folders_that_cannot_be_told(folder, tmp_path):
    """Catches: right classes guessed where they are not known."""
    empty = tmp_path / "empty"
    empty.mkdir()
    labels, table = tmp_path / "labels.txt", tmp_path / "map.json"
    for call, match in [
            (lambda: read_folder(tmp_path / "none", NAMES), "none: not a folder"),
            (lambda: read_folder(empty, NAMES), "neither class folders"),
            (lambda: read_folder(folder, imagenet_names()), "6 .*1000 classes; give a class map"),
            (lambda: read_folder(folder, ("red", "blue", "tree", "sky", "sea", "sun")), "4 of 6 are none.*'black'"),
            (lambda: read_folder(folder, NAMES, labels=labels), "labels.txt: No such file")]:
        with pytest.raises(FolderError, match=match):
            call()
    paint(empty / "a.png", "red")
    paint(empty / "b.png", "red")
    for text, match in [("", "no labels"), ("a.png red\n", None), ("a.png red\na.png blue\n", "listed twice"),
                        ("red\nblue\ngreen\n", "3 classes for 2 pictures"), ("a.png red\nblue\n", "every line"),
                        ("../a.png red\n", "must lie below"), ("a.png 6\nb.png 1\n", "'6'"),
                        ("a.png mauve\n", "first 'mauve'"), (b"\xff\xfe\0", "not a text file")]:
        labels.write_bytes(text if isinstance(text, bytes) else text.encode())
        if match is None:
            pictures = read_folder(empty, NAMES, labels=labels)
            assert pictures.paths == ("a.png",) and "1 pictures without a label left out" in pictures.notes
            continue
        with pytest.raises(FolderError, match=match):
            read_folder(empty, NAMES, labels=labels)
    for text, match in [("{", "not JSON"), ("[]", "must be an object"), ('{"red": 6}', "'red' must be"),
                        ('{"red": 0}', "none of the model's")]:
        table.write_text(text)
        with pytest.raises(FolderError, match=match):
            read_folder(folder, NAMES, class_map=table)


@pytest.mark.parametrize("pattern", ["class{}", "a{}b", "{}x", "run 1.{}"])
def test_two_orders(tmp_path, pattern):
    """Catches: folders numbered in one of two orders without a word. class10 became output 2 of twelve."""
    for i in range(12):
        paint(tmp_path / pattern.format(i) / "a.png", "red")
    names = tuple(f"class {i}" for i in range(12)) if pattern != "class{}" else tuple("abcdefghijkl")
    with pytest.raises(FolderError) as caught:
        read_folder(tmp_path, names)
    natural = [pattern.format(i) for i in range(12)]
    assert "--order natural" in str(caught.value) and "--order lexicographic" in str(caught.value)
    assert all(repr(name) in str(caught.value) for name in (pattern.format(10), pattern.format(1)))
    for order, names_in_order in (("natural", natural), ("lexicographic", sorted(natural))):
        pictures = read_folder(tmp_path, names, order=order)
        classes = dict(zip(pictures.paths, pictures.targets.tolist(), strict=True))
        assert classes == {os.path.join(name, "a.png"): i for i, name in enumerate(names_in_order)}
        assert order in pictures.notes[0]
    with pytest.raises(ValueProblem, match="order must be one of"):
        read_folder(tmp_path, names, order="random")


def test_names_decide_before_any_order(tmp_path):
    """Catches: an order that is asked for put before names that say which is which; an error although they do."""
    for i in range(12):
        paint(tmp_path / f"class_{i}" / "a.png", "red")
        paint(tmp_path / "numbers" / str(i) / "a.png", "red")
    os.rename(tmp_path / "numbers", tmp_path.parent / f"{tmp_path.name} numbers")
    for folder in (tmp_path, tmp_path.parent / f"{tmp_path.name} numbers"):
        for order in (None, "lexicographic"):
            pictures = read_folder(folder, class_names(12), order=order)
            classes = {os.path.dirname(path): target for path, target in
                       zip(pictures.paths, pictures.targets.tolist(), strict=True)}
            assert all(int(name.removeprefix("class_")) == target for name, target in classes.items())


def test_names_that_two_outputs_have(tmp_path):
    """Catches: the last of two outputs of one name taken. ImageNet has two cranes."""
    paint(tmp_path / "crane" / "a.png", "red")
    with pytest.raises(FolderError, match="'crane' may be any of the outputs 0, 2"):
        read_folder(tmp_path, ("crane", "dog", "crane"))
    assert read_folder(tmp_path, ("Crane", "dog", "crane")).targets.tolist() == [2]  # the very name first
    with pytest.raises(FolderError, match="'crane' may be any"):
        read_folder(tmp_path, ("Crane", "dog", "CRANE"))


def test_lines_for_pictures_in_two_orders(tmp_path):
    """Catches: classes given to 1.png, 10.png, 2.png in this order although the lines were written for 1, 2, 10."""
    for i in range(1, 12):
        paint(tmp_path / f"{i}.png", "red")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(str(i) for i in range(1, 12)))
    with pytest.raises(FolderError, match="'1.png', '10.png', '11.png'.*'1.png', '2.png', '3.png'"):
        read_folder(tmp_path, class_names(12))
    pictures = read_folder(tmp_path, class_names(12), order="natural")
    assert [f"{target}.png" for target in pictures.targets] == list(pictures.paths)


def test_unreadable_folders_are_reported(folder, monkeypatch, tmp_path, capsys):
    """Catches: a class folder that cannot be read left out without a word: accuracy over the rest, exit status 0. (The
    user of the tests may be root, who can read everything, so the system's answer is made up.)"""
    from mmref.cli import main
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) in ("green", "deeper"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    pictures = read_folder(folder, NAMES)
    assert [problem.rpartition(": ")[2] for problem in pictures.problems] == ["Permission denied"] * 2
    assert sorted(set(pictures.targets.tolist())) == [0, 1, 3, 4, 5] and len(pictures) == 24
    assert pictures.limit(3).problems == pictures.problems
    other = tuple(f"colour {i}" for i in range(6))  # the folder counts where the order decides
    assert sorted(set(read_folder(folder, other).targets.tolist())) == [0, 1, 3, 4, 5]
    (tmp_path / "map.json").write_text(json.dumps({name: i for i, name in enumerate(NAMES)}))
    status = main(["eval", str(folder), "--class-map", str(tmp_path / "map.json"), "--img-size", "32", "--json"])
    out, err = capsys.readouterr()
    assert status == 2 and json.loads(out)["not_read"] == list(pictures.problems)
    assert err.count("mmref: error: ") == 2 and "green: Permission denied" in err
    assert main(["classify", str(folder / "black"), "--img-size", "32"]) == 2
    assert "deeper: Permission denied" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_linked_folders(tmp_path):
    """Catches: linked class folders, or folders linked inside of one, left out; circles of links that never end; a
    picture counted twice because two ways lead to it."""
    paint(tmp_path / "elsewhere" / "red" / "a.png", "red")
    paint(tmp_path / "elsewhere" / "more" / "b.png", "blue")
    root = tmp_path / "data"
    root.mkdir()
    (root / "red").symlink_to(tmp_path / "elsewhere" / "red")
    (root / "blue").mkdir()
    (root / "blue" / "linked").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "blue" / "again").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "blue" / "circle").symlink_to(root / "blue")
    (root / "blue" / "all").symlink_to(root)
    pictures = read_folder(root, ("blue", "red"))
    assert [os.path.basename(path) for path in pictures.paths] == ["b.png", "a.png", "a.png"]
    assert pictures.targets.tolist() == [0, 0, 1] and pictures.problems == ()
    (root / "green").symlink_to(tmp_path / "gone")
    (root / "red" / "lost").symlink_to(tmp_path / "gone")
    problems = read_folder(root, ("blue", "red")).problems
    lost = {os.path.basename(problem) for problem in problems}
    assert lost == {"green: a link to nothing", "lost: a link to nothing"}


def test_exact_names_first(tmp_path):
    """Catches: the picture x.jpg.png taken for the label of x.jpg; the last of several extensions taken for a name
    without."""
    for name in ("x.jpg", "x.jpg.png", "y.jpg", "y.png", "z.webp"):
        paint(tmp_path / name, "red")
    labels = tmp_path / "labels.txt"
    labels.write_text("x.jpg,red\ny.png,blue\nz,green\nx.jpg.png,white\n")
    pictures = read_folder(tmp_path, NAMES)
    assert dict(zip(pictures.paths, (NAMES[t] for t in pictures.targets), strict=True)) == {
        "x.jpg": "red", "y.png": "blue", "z.webp": "green", "x.jpg.png": "white"}
    labels.write_text("y,red\n")
    with pytest.raises(FolderError, match="'y' may be any of 'y.jpg', 'y.png'"):
        read_folder(tmp_path, NAMES)


@pytest.mark.parametrize("encoding, end", [("utf-8", "\n"), ("utf-8-sig", "\n"), ("utf-8-sig", "\r\n"),
                                           ("utf-8", "\r")])
def test_label_files_as_editors_write_them(tmp_path, encoding, end):
    """Catches: a byte order mark that becomes part of the first name, other line ends; hidden files and macOS's ._x.jpg
    taken for pictures."""
    for name in ("größe.png", "b\u2028.png"):
        paint(tmp_path / name, "red")
    (tmp_path / "._größe.png").write_bytes(b"\0\5\x16\7")
    labels, table = tmp_path / "labels.csv", tmp_path / "map.json"
    labels.write_bytes(end.join(["größe.png,red", "b\u2028.png,blue", ""]).encode(encoding))
    table.write_bytes(json.dumps({"red": 3, "blue": 1}).encode(encoding))
    for class_map in (None, table):
        pictures = read_folder(tmp_path, NAMES, class_map=class_map)
        assert pictures.paths == ("b\u2028.png", "größe.png") and pictures.targets.tolist() == [1, 3]
    labels.write_bytes(end.join(["blue", "red"]).encode(encoding))
    assert read_folder(tmp_path, NAMES).targets.tolist() == [1, 3]
    table.write_text('{"red": 3, "red": 1, "blue": 0}')
    with pytest.raises(FolderError, match="1 names are listed twice"):
        read_folder(tmp_path, NAMES, class_map=table)


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_label_files_of_names_that_are_no_text(tmp_path):
    """Catches: a list of files refused, or its pictures not found, because a name in it is not UTF-8."""
    paint(tmp_path / os.fsdecode(b"latin\xe9.png"), "red")
    (tmp_path / "labels.txt").write_bytes(b"latin\xe9.png red\n")
    assert read_folder(tmp_path, NAMES).targets.tolist() == [3]


def test_limit_keeps_every_class(folder):
    """Catches: the first N pictures, which are all of the first classes."""
    pictures = read_folder(folder, NAMES)
    assert np.bincount(pictures.limit(12).targets).tolist() == [2] * 6
    assert pictures.limit(30) is pictures and pictures.limit(12).digest() != pictures.digest()
    with pytest.raises(ValueProblem, match="limit"):
        pictures.limit(0)


# -- figures -------------------------------------------------------------------------------------------------

def test_figures(folder):
    """Catches: bad pictures counted as wrong, top-k counted as top-1, confusions between the wrong classes."""
    tally = evaluate(Predictor(ColourModel(), batch_size=4, topk=2), read_folder(folder, NAMES))
    assert tally.counts() == (28, 22, 27)  # green is second after yellow, red is not after blue
    assert {k: v for k, v in tally.summary().items() if "top1" in k} == EXPECTED
    classes = {c["name"]: c for c in tally.per_class()}
    assert (classes["green"]["pictures"], classes["green"]["correct"]) == (5, 0)
    assert classes["green"]["taken_for"] == [{"class": 5, "pictures": 5, "name": "yellow"}]
    assert classes["red"]["correct"] == 4 and classes["red"]["taken_for"][0]["name"] == "blue"
    assert classes["white"]["pictures"] == 4 and classes["blue"]["pictures"] == 4
    assert [c["name"] for c in tally.worst(2)] == ["green", "red"]
    assert sorted(tally.errors) == [8, 20] and "empty file" in tally.errors[20]
    assert round(tally.running_top1, 4) == tally.summary()["top1"]


@settings(max_examples=60)
@given(classes=st.integers(1, 7), count=st.integers(1, 30), topk=st.integers(1, 9), seed=st.integers(0, 999))
def test_figures_against_a_plain_count(classes, count, topk, seed):
    """Catches: any slip in the vectorised counting (tried: targets where answers belong)."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, count).astype(np.int32)
    answers = [rng.permutation(classes)[:topk].tolist() if rng.random() < 0.9 else "bad" for _ in range(count)]
    tally = Tally(targets, [f"c{i}" for i in range(classes)], topk)
    start = 0
    while start < count:
        length = int(rng.integers(1, 6))
        record = {"start": start, "top": answers[start:start + length]}
        assert tally.add(record) == len(record["top"]) and tally.add(record) == 0
        start += length
    good = [(t, a) for t, a in zip(targets.tolist(), answers, strict=True) if a != "bad"]
    first, among = sum(t == a[0] for t, a in good), sum(t in a for t, a in good)
    assert tally.counts() == (len(good), first, among)
    assert not good or topk == 1 or tally.summary()[f"top{topk}"] == round(100 * among / len(good), 4)
    for entry in tally.per_class():
        mine = [a for t, a in good if t == entry["class"]]
        assert (entry["pictures"], entry["correct"]) == (len(mine), sum(a[0] == entry["class"] for a in mine))
        assert sum(c["pictures"] for c in tally.per_class(99)[0]["taken_for"]) <= len(good) - first
    if good:
        assert tally.summary()["top1"] == round(100 * first / len(good), 4)
    else:
        with pytest.raises(MmrefError, match="no picture could be read"):
            tally.summary()


def test_results_files_have_timms_columns(tmp_path):
    """Catches: a column renamed or moved: tables of timm's results are read by position and name."""
    results = {"model": "m", "top1": 50.0, "top1_err": 50.0, "top5": 75.0, "top5_err": 25.0, "param_count": 1.79,
               "img_size": 128, "crop_pct": 0.875, "interpolation": "bicubic", "classes": [{"name": "a,b"}]}
    write_results(tmp_path / "r.csv", results)
    assert (tmp_path / "r.csv").read_text() == (
        "model,top1,top1_err,top5,top5_err,param_count,img_size,crop_pct,interpolation\n"
        "m,50.0,50.0,75.0,25.0,1.79,128,0.875,bicubic\n")
    write_results(tmp_path / "r.json", results)
    write_results(tmp_path / "r.out", results, "json")
    assert json.loads((tmp_path / "r.json").read_text()) == results == json.loads((tmp_path / "r.out").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.csv", "r.json", "r.out"]


# -- the journal ---------------------------------------------------------------------------------------------

def test_journal_survives_every_torn_end(tmp_path):
    """Catches: a torn last line that stops the resume, or is kept and doubled (every length is tried)."""
    path, subject = tmp_path / "j", {"a": 1, "b": [1, 2]}
    records = [{"start": i, "top": [[i]]} for i in range(3)]
    with Journal(path, subject, None) as journal:
        for record in records:
            journal.append(record)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = max(0, sum(end <= length for end in ends) - 1)
        first, second = [], []
        with Journal(path, subject, first.append) as journal:
            journal.append({"start": 7, "top": []})
        with Journal(path, subject, second.append):
            assert second == [*first, {"start": 7, "top": []}] and first == records[:kept]


def test_journal_refuses(tmp_path):
    """Catches: figures mixed from two evaluations, two writers, somebody's file cut to nothing."""
    path, subject = tmp_path / "j", {"model": "t2", "pictures": 9}
    with Journal(path, subject, None) as journal:
        for i in range(3):
            journal.append({"start": i, "top": [[1, 2]]})
        if os.name == "posix":
            with pytest.raises(JournalError, match="another evaluation is writing"):
                Journal(path, subject, [].append).__enter__()
    with pytest.raises(JournalError, match="model must be 't2', got 't4'"):
        Journal(path, {"model": "t4", "pictures": 9}, [].append).__enter__()
    for text in ("my thesis, one line", "my thesis\nin several\nlines\n" * 100):
        path.write_text(text)
        with pytest.raises(JournalError, match="journal of mmref eval"):
            Journal(path, subject, [].append).__enter__()
        assert path.read_text() == text


@settings(max_examples=100)
@given(seed=st.integers(0, 10**6))
def test_journal_never_believes_damage(seed, tmp_path_factory):
    """Catches: a flipped bit read as an answer, or undamaged lines lost with it."""
    path, rng = tmp_path_factory.mktemp("j") / "j", np.random.default_rng(seed)
    records = [{"start": i, "top": [[i, 7]]} for i in range(6)]
    with Journal(path, {"a": 1}, None) as journal:
        for record in records:
            journal.append(record)
    data = bytearray(path.read_bytes())
    header = data.index(b"\n") + 1
    data[rng.integers(header, len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    kept = []
    with Journal(path, {"a": 1}, kept.append):
        pass
    assert len(kept) >= 4 and all(record in records for record in kept)  # a lost line end costs two


# -- the same figures however it is done ---------------------------------------------------------------------

def same(a, b):
    return (a.answers == b.answers).all() and a.errors == b.errors and a.summary() == b.summary()


def test_processes_and_threads_agree(folder):
    """Catches: answers entered at another picture's place by whoever finishes first."""
    pictures = read_folder(folder, NAMES)
    base = evaluate(Predictor(ColourModel(), batch_size=4), pictures)
    assert same(base, evaluate(Predictor(ColourModel(), batch_size=4, workers=3), pictures))
    assert same(base, evaluate(Predictor(ColourModel(), batch_size=4), pictures, processes=2))
    assert same(base, evaluate(Predictor(ColourModel(), batch_size=50), pictures))


class DeadlyModel(ColourModel):
    """Kills its process at its third batch, once; the file remembers."""

    def __init__(self, mark):
        super().__init__()
        self.mark = mark

    def __call__(self, x):
        if self.runs == 2 and not self.mark.exists():
            self.mark.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(x)


def test_killed_process_loses_nothing(folder, tmp_path):
    """Catches: a dead worker process that ends the evaluation, or whose batches are lost or counted twice."""
    pictures, seen = read_folder(folder, NAMES), []
    tally = evaluate(Predictor(DeadlyModel(tmp_path / "mark"), batch_size=2), pictures, processes=2,
                     progress=lambda _, new: seen.append(new))
    assert (tmp_path / "mark").exists() and sum(seen) == len(pictures)
    assert same(tally, evaluate(Predictor(ColourModel(), batch_size=2), pictures))


def test_always_dying_processes_end_in_an_error(folder, tmp_path):
    """Catches: new pools for ever."""
    with pytest.raises(MmrefError, match="keep dying"):
        evaluate(Predictor(AlwaysDying(), batch_size=2), read_folder(folder, NAMES), processes=2)


class AlwaysDying(ColourModel):
    def __call__(self, x):
        os.kill(os.getpid(), signal.SIGKILL)


def test_wrong_use(folder):
    """Catches: a missing mount on a worker counted as bad pictures; impossible settings."""
    pictures, predict = read_folder(folder, NAMES), Predictor(ColourModel())
    with pytest.raises(MmrefError, match="no such folder in process"):
        run_batch(predict, Batch(f"{folder}/nowhere", ("a.png",), 0))
    with pytest.raises(ValueProblem, match="processes"):
        evaluate(predict, pictures, processes=0)
    with pytest.raises(ValueProblem, match="pass one of them"):
        evaluate(predict, pictures, processes=2, scheduler="local:2")


SLOW = """
import sys, time
from colour_model import COLOURS, ColourModel
from mmref.evaluate import evaluate, read_folder
from mmref.tasks.predictor import Predictor

class Slow(ColourModel):
    def __call__(self, x):
        time.sleep(0.05)
        return super().__call__(x)

if __name__ == "__main__":
    folder, journal, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    evaluate(Predictor(Slow(), batch_size=2), read_folder(folder, tuple(COLOURS)), processes=processes, resume=journal)
    print("finished")
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
@pytest.mark.parametrize("processes", [1, 2])
def test_kill_and_resume(folder, tmp_path, processes):
    """Catches: a kill -9 after which the figures differ, work is done again, or worker processes live on."""
    journal, script = tmp_path / "journal", tmp_path / "slow.py"
    script.write_text(SLOW)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    child = subprocess.Popen([sys.executable, script, folder, journal, str(processes)], env=environment,
                             stdout=subprocess.PIPE, start_new_session=True)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 4:
        assert child.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    child.kill()
    try:
        child.communicate(timeout=30)  # ends when the last process that holds its output has ended
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    assert child.returncode == -signal.SIGKILL
    with open(journal, "ab") as file:
        file.write(b"0123abcd {\"start\":12,\"to")  # and the line it was writing
    before = journal.read_bytes().count(b"\n") - 1
    assert 3 <= before < 15
    pictures, seen, runs = read_folder(folder, NAMES), [], ColourModel()
    tally = evaluate(Predictor(runs, batch_size=2), pictures, resume=journal,
                     progress=lambda _, new: seen.append(new))
    assert seen[0] == 2 * before and sum(seen) == len(pictures) and runs.runs == 15 - before
    assert same(tally, evaluate(Predictor(ColourModel(), batch_size=2), pictures))
    again = ColourModel()
    assert same(tally, evaluate(Predictor(again, batch_size=2), pictures, resume=journal)) and again.runs == 0
    with pytest.raises(JournalError, match="batch size must be 2, got 3"):
        evaluate(Predictor(ColourModel(), batch_size=3), pictures, resume=journal)


SCRIPT = """
import sys
sys.path[:0] = {path!r}
from colour_model import COLOURS, ColourModel
from mmref.errors import MmrefError
from mmref.evaluate import evaluate, read_folder
from mmref.tasks.predictor import Predictor
try:
    evaluate(Predictor(ColourModel(), batch_size=4), read_folder({folder!r}, tuple(COLOURS)), {way})
except MmrefError as error:
    print("error:", error)
    sys.exit(3)
"""


@pytest.mark.parametrize("how, way", [("file", "processes=2"), ("standard input", "processes=2"),
                                      ("file", "scheduler='local:2'")])
def test_script_without_main_guard(folder, tmp_path, how, way):
    """Catches: "out of memory?" as the only advice where new processes import the program that starts them, and start
    new ones."""
    if "scheduler" in way:
        pytest.importorskip("distributed")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(path=[str(Path(__file__).parent)], folder=str(folder), way=way))
    done = subprocess.run([sys.executable, script] if how == "file" else [sys.executable], capture_output=True,
                          text=True, check=False, stdin=open(script) if how != "file" else None, cwd=tmp_path)
    assert done.returncode == 3 and "__main__" in done.stdout and "standard input" in done.stdout, done
    assert "out of memory" not in done.stdout


def test_overhead_command(monkeypatch, capsys):
    """Catches: the command behind the documents' figures falling behind the code it measures."""
    import time_evaluation as overhead
    monkeypatch.setattr(sys, "argv", ["overhead", "--pictures", "120", "--batch-size", "8", "--ways", "2"])
    assert overhead.main() == 0
    assert capsys.readouterr().out.count(" us") == 3


@pytest.mark.parametrize("option", ["labels", "class_map"])
def test_a_list_without_end(tmp_path, option):
    """Catches a device, or a disk image named by mistake, that is read until the memory is full."""
    with open(tmp_path / "endless.txt", "wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing, on no disk
    with pytest.raises(FolderError, match="more than .* bytes"):
        read_folder(tmp_path, CIFAR10, **{option: tmp_path / "endless.txt"})
