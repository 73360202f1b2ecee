"""From a picture to a label map: the segmenter, its windows, its files."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc

import golden_files
import numpy as np
import pytest
from colour_model import COLOURS, ColourModel, PixelColourModel, patches
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_resize import synthetic_picture

import mmref
from mmref.data.colours import class_colours
from mmref.data.keep_ratio import KeepRatio, to_map
from mmref.data.label_map import read_label_map, write_label_map
from mmref.data.labels import CIFAR10, ade20k_names, load_class_names
from mmref.errors import CheckpointError, PictureError, ShapeError, ValueProblem
from mmref.nn.resize import resize
from mmref.show.overlay import overlay, with_legend
from mmref.tasks import task as task_module
from mmref.tasks.labelling import labels_at, spans
from mmref.tasks.segmenter import Segmenter


class Kept:
    """A model whose last logits can be seen."""

    def __init__(self, model):
        self.model, self.config, self.transform, self.class_names = model, model.config, model.transform, None
        self.dtype = model.dtype

    def __call__(self, x):
        self.logits = self.model(x)
        return self.logits


# --------------------------------------------------------------------------------------------- from file to input

@pytest.mark.parametrize("head", ["fpn", "deeplabv3", "pspnet"])
def test_published_picture_cases(shared_golden, head):
    """Catches another preparation than the published one (mean and std exchanged, channels reversed, another resize)
    and labels that are taken before the logits have the picture's size: every label must agree."""
    figures = np.load(shared_golden / f"seg_{head}_picture.npz")
    seed, (height, width, _) = int(figures["seed"]), figures["picture_shape"].tolist()
    shapes = json.loads((shared_golden / f"state_dict_seg_{head}.json").read_text())
    state = golden_files.synthetic(shared_golden).synthetic_state_dict(shapes, seed)
    image = Image.fromarray(np.ascontiguousarray(synthetic_picture(shared_golden, seed, height, width)))
    x = to_map(image, KeepRatio())
    assert x.shape == tuple(figures["input_shape"][1:]) and x.dtype == np.float32
    samples = x.ravel()[np.linspace(0, x.size - 1, 32).astype(int)]
    assert np.abs(samples - figures["input_samples"]).max() < 5e-7
    model = Kept(mmref.create_model(f"mobilemamba_b4_{head}", state, dtype=np.float64))
    answer = mmref.segment(image, model)
    assert answer.labels.dtype == np.uint8 and (answer.labels == figures["argmax"]).all()
    # in float32 rounding may decide where two classes are level: which pixels these are, the margin says
    logits = resize(model.logits, height, width)[0]
    second, first = np.partition(logits, -2, axis=0)[-2:]
    compiled = mmref.segment(image, f"mobilemamba_b4_{head}", state, backend="numba")
    clear = first - second > 1e-5 * np.abs(logits).max()
    assert clear.mean() > 0.99 and (compiled.labels == figures["argmax"])[clear].all()


def test_transforms():
    """Catches a transform that does not survive the metadata it is kept in, takes what it does not understand, or
    changes the ratio of sides with the size."""
    transform = KeepRatio(128, 500, (0.1, 0.2, 0.3), (1, 2, 3))
    assert KeepRatio.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform
    assert transform.with_size(64) == KeepRatio(64, 250, (0.1, 0.2, 0.3), (1, 2, 3))
    grey = to_map(Image.new("RGB", (4, 2), (255, 255, 255)), KeepRatio(2, 8, (0.5,), (0.25,)))
    assert grey.shape == (1, 2, 4) and (grey == 2).all()
    for bad in ({"short": 128}, {**transform.to_dict(), "size": 3}, [], {**transform.to_dict(), "std": [1, 0, 1]},
                {**transform.to_dict(), "long": 100}, {**transform.to_dict(), "short": 128.0}):
        with pytest.raises(ValueProblem, match="transform"):
            KeepRatio.from_dict(bad)


# --------------------------------------------------------------------------------------------- from logits to labels

@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 30), st.integers(1, 30), st.integers(1, 5),
       st.integers(0, 2 ** 32 - 1))
@settings(max_examples=60)
def test_labels_at_another_size(height, width, new_height, new_width, classes, seed):
    """Catches labels that are enlarged instead of logits, neighbours or shares of the wrong axis, blocks that do not
    meet. Smooth values, so that whole regions agree and the short cut is taken."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((classes, 1, 1)) + rng.choice([0.2, 2]) * rng.standard_normal((classes, height, width))
    at_size = resize(logits[None], new_height, new_width)[0]
    labels = labels_at(logits, new_height, new_width)
    assert labels.shape == (new_height, new_width) and labels.dtype == np.uint8
    chosen = np.take_along_axis(at_size, labels[None].astype(int), 0)[0]
    assert (chosen >= at_size.max(0) - 1e-12).all()  # of equal ones rounding may prefer another


def test_labels_in_blocks(monkeypatch):
    """Catches a block's rows taken from the wrong place of the map, enlarging and shrinking."""
    import mmref.tasks.labelling as module
    logits = np.random.default_rng(0).standard_normal((3, 40, 7))
    whole = [labels_at(logits, height, 11) for height in (97, 13)]
    monkeypatch.setattr(module, "_VALUES", 100)
    monkeypatch.setattr(module, "_PIXELS", 50)
    assert all((labels_at(logits, len(labels), 11) == labels).all() for labels in whole)


def test_memory_of_a_large_answer():
    """Catches logits at the picture's size: here 600 MB of them, and 4 MB of labels."""
    logits = np.random.default_rng(0).standard_normal((150, 16, 16)).astype(np.float32)
    logits[7] += 3  # so that not every pixel lies on a border
    tracemalloc.start()
    try:
        labels = labels_at(logits, 1000, 1000)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert labels.shape == (1000, 1000)


@given(st.integers(1, 500), st.integers(16, 90), st.integers(0, 45))
def test_windows_cover_an_axis(size, window, overlap):
    """Catches pixels that no window answers for, or two do, and windows that reach beyond the picture or share less
    than they should."""
    overlap = min(overlap, window // 2)
    found = spans(size, window, overlap)
    assert found[0][0] == found[0][2] == 0 and found[-1][1] == found[-1][3] == size
    for (start, stop, first, last), after in zip(found, [*found[1:], None], strict=True):
        assert 0 <= start <= first < last <= stop <= size and stop - start == min(size, window)
        if after is not None:
            assert after[2] == last and stop - after[0] >= overlap
            assert min(last - after[0], stop - last) >= overlap // 2  # context on both sides of the cut


# --------------------------------------------------------------------------------------------- the segmenter

def test_answers_stay_with_their_pictures(tmp_path):
    """Catches answers shifted by a bad picture, of another size than their picture, and shares of the wrong class."""
    truth = patches(tmp_path / "0.png", ["red blue blue", "green white blue"])
    (tmp_path / "1.jpg").write_text("<html>")
    Image.new("RGB", (5000, 1), "red").save(tmp_path / "2.png")
    other = patches(tmp_path / "3.png", ["yellow", "black"], side=21)
    paths = [tmp_path / name for name in ("0.png", "1.jpg", "2.png", "3.png", "4.png")]
    for workers in (0, 2):
        first, html, slender, last, missing = Segmenter(PixelColourModel(), workers=workers)(paths)
        assert (first.labels == truth).mean() > 0.9 and last.labels.shape == other.shape
        assert (first.labels[::8, ::8][:, 1:] == truth[::8, ::8][:, 1:]).all() and first.image is None
        assert html.error.startswith(f"{paths[1]}: expected JPEG") and html.labels is None and html.classes() == []
        assert slender.error.startswith(f"{paths[2]}: too slender: 5000 x 1 pixels would be resized to 64 x 0")
        assert missing.error == f"{paths[4]}: No such file or directory"
    shares = first.classes()
    assert shares[0].name == "blue" and shares[0].number == 1 and abs(shares[0].share - 1 / 2) < 0.05
    assert sum(c.pixels for c in shares) == truth.size and abs(sum(c.share for c in shares) - 1) < 1e-12
    with pytest.raises(PictureError, match="expected JPEG"):
        html.save(tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_exif_is_applied(tmp_path):
    """Catches pictures that are segmented lying on their side: the published pipeline turns them."""
    image = Image.new("RGB", (20, 10), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    turned, = Segmenter(PixelColourModel())([tmp_path / "a.jpg"])
    assert turned.labels.shape == (20, 10) and turned.notes == ("EXIF orientation 6 applied",)
    assert mmref.segment(tmp_path / "a.jpg", PixelColourModel(), exif=False).labels.shape == (10, 20)


def test_windows(tmp_path):
    """Catches windows put back at the wrong place, pictures scaled before, and windows larger than asked for."""
    rng = np.random.default_rng(0)
    rows = [" ".join(rng.choice(list(COLOURS), 13)) for _ in range(9)]
    truth = patches(tmp_path / "a.png", rows, side=7)
    for tile, overlap in ((16, None), (16, 0), (33, 16), (500, None)):
        model = PixelColourModel()
        answer = mmref.segment(tmp_path / "a.png", model, tile=tile, overlap=overlap)
        assert (answer.labels == truth).all()
        assert set(model.sizes) == {(min(tile, 63), min(tile, 91))} and len(model.sizes) > (tile < 91)
    Image.new("RGB", (300, 1), "red").save(tmp_path / "b.png")
    assert mmref.segment(tmp_path / "b.png", PixelColourModel(), tile=64).labels.shape == (1, 300)


def test_real_network_and_pickle(tmp_path, monkeypatch):
    """Catches settings that are lost on the way to another process, or a second copy of the weights there."""
    patches(tmp_path / "a.png", ["red blue", "green white"], side=20)
    state = mmref.create_model("mobilemamba_nano_fpn", seed=1).state_dict()
    here = Segmenter("mobilemamba_nano_fpn", state, img_size=64, backend="numba", class_names=("background", *CIFAR10))
    there = pickle.loads(pickle.dumps(here))
    monkeypatch.setattr(task_module, "_loaded", type(task_module._loaded)())
    a, b = here([tmp_path / "a.png"])[0], there([tmp_path / "a.png"])[0]
    assert (a.labels == b.labels).all() and a.class_names[1] == "airplane" and len(task_module._loaded) == 1
    assert (a.colours[0] == 0).all()


def test_settings_are_checked():
    """Catches a classifier taken for a segmenter and the reverse, and settings that would have no effect."""
    with pytest.raises(ValueProblem, match="mobilemamba_b1_fpn.*got mobilemamba_b1, which classifies whole pictures"):
        Segmenter("mobilemamba_b1")
    with pytest.raises(ValueProblem, match="got mobilemamba_b1_fpn, which gives every pixel a class"):
        mmref.Predictor("mobilemamba_b1_fpn")
    with pytest.raises(ValueProblem, match="got colours, which classifies"):
        Segmenter(ColourModel())
    with pytest.raises(ValueProblem, match="got pixels, which gives every pixel"):
        mmref.Predictor(PixelColourModel())
    for wrong in ({"tile": 8}, {"tile": 64.0}, {"overlap": 3}, {"tile": 64, "overlap": 33},
                  {"tile": 64, "img_size": 32}, {"exif": 1}, {"keep_images": "no"}, {"img_size": 0},
                  {"transform": ColourModel().transform}):
        with pytest.raises(ValueProblem):
            Segmenter(PixelColourModel(), **wrong)
    with pytest.raises(ValueProblem, match="write \\[picture\\]"):
        Segmenter(PixelColourModel())("a.jpg")
    with pytest.raises(CheckpointError, match="mobilemamba_b4_pspnet.*--weights"):
        mmref.segment("a.jpg", "mobilemamba_b4_pspnet")


def test_not_finite():
    """Catches NaN that becomes class 0."""
    model = PixelColourModel()
    model.__class__ = type("Broken", (PixelColourModel,), {"__call__": lambda self, x: np.full((1, 6, 4, 4), np.nan)})
    answer, = Segmenter(model)([Image.new("RGB", (4, 4))])
    assert answer.labels is None and "NaN or infinity" in answer.error


# --------------------------------------------------------------------------------------------- label maps as files

def test_label_maps_keep_every_value(tmp_path):
    """Catches indices that are written by colour (two of ADE20K's classes share one), packed to fewer bits than readers
    expect, or stretched."""
    labels = np.arange(150, dtype=np.uint8).reshape(10, 15)
    write_label_map(tmp_path / "a.png", labels, class_colours(ade20k_names()))
    assert (read_label_map(tmp_path / "a.png") == labels).all()
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P" and (np.asarray(image) == labels).all()
        assert image.convert("RGB").getpixel((6, 0)) == (140, 140, 140)  # road, as its data set shows it
    write_label_map(tmp_path / "b.png", labels[:1, :2], class_colours(["a", "b"]))
    assert (tmp_path / "b.png").read_bytes()[24:26] == b"\x08\x03"  # eight bits, a palette
    Image.fromarray(labels).save(tmp_path / "grey.png")
    assert (read_label_map(tmp_path / "grey.png") == labels).all()
    for wrong, error in ((labels.astype(int), ShapeError), (labels[0], ShapeError),
                         (labels + np.uint8(1), ValueProblem)):
        with pytest.raises(error, match="labels must be"):
            write_label_map(tmp_path / "c.png", wrong, class_colours(ade20k_names()))
    with pytest.raises(ValueProblem, match="256 classes"):
        write_label_map(tmp_path / "c.png", labels, class_colours([str(i) for i in range(257)]))
    assert not (tmp_path / "c.png").exists()


def test_label_files_that_are_refused(tmp_path):
    """Catches values that a decoder changes: grey of few bits is stretched, of many cut; colours are no classes."""
    grey = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    wrong = {"rgb": grey.convert("RGB"), "rgba": grey.convert("RGBA"), "la": grey.convert("LA"),
             "one": grey.convert("1"), "sixteen": Image.fromarray(np.array([[0, 300]], np.uint16))}
    for name, image in wrong.items():
        image.save(tmp_path / f"{name}.png")
    grey.save(tmp_path / "jpeg.png", "JPEG")
    (tmp_path / "empty.png").write_bytes(b"")
    buffer = io.BytesIO()
    grey.save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:50])
    for name in (*wrong, "jpeg", "empty", "cut", "missing"):
        with pytest.raises(PictureError, match=f"{name}.png: "):
            read_label_map(tmp_path / f"{name}.png")
    palette = grey.convert("P")
    palette.save(tmp_path / "bits.png", bits=1)
    assert read_label_map(tmp_path / "bits.png").tolist() == [[0, 1], [1, 0]]


def test_colours_and_names():
    """Catches classes of one's own that look alike, and names of ADE20K that are not the data set's."""
    colours = class_colours([f"class {i}" for i in range(256)])
    assert len(set(map(tuple, colours.tolist()))) == 256
    assert class_colours(["background", "x"])[0].tolist() == [0, 0, 0] and class_colours([]).shape == (0, 3)
    names = load_class_names("ade20k")
    assert len(names) == 150 and names[0] == "wall" and names[149] == "flag"
    assert len({tuple(c) for c in class_colours(names).tolist()}) == 149


def test_published_classes(shared_golden):
    """Catches a name or colour that was mistyped; mmsegmentation's "bed " has a space that ours lacks."""
    published = json.loads((shared_golden / "ade20k_classes.json").read_text())
    assert [name.strip() for name in published["classes"]] == list(ade20k_names())
    assert class_colours(ade20k_names()).tolist() == published["palette"]


def test_overlay_and_legend():
    """Catches colours and picture that are exchanged in mixing, and a legend that hides or cuts the picture."""
    image, labels = Image.new("RGB", (8, 6), (200, 100, 0)), np.zeros((6, 8), np.uint8)
    labels[:, 4:] = 1
    colours = np.array([[0, 0, 0], [0, 200, 100]], np.uint8)
    mixed = np.asarray(overlay(image, labels, colours, 0.25))
    assert mixed[0, 0].tolist() == [150, 75, 0] and mixed[0, 7].tolist() == [150, 125, 25]
    assert (np.asarray(overlay(image, labels, colours, 0)) == np.asarray(image)).all()
    shown = with_legend(image, [(colour, f"class {i} \N{SNOWMAN}") for i, colour in enumerate(colours)])
    assert shown.height > 6 and (np.asarray(shown)[:6, :8] == np.asarray(image)).all()
    assert (0, 200, 100) in {color for _, color in shown.getcolors(1 << 16)}
    for bad in (-0.1, 1.1, "half", float("nan")):
        with pytest.raises(ValueProblem, match="opacity"):
            overlay(image, labels, colours, bad)
    with pytest.raises(ShapeError, match="picture's size"):
        overlay(image, labels.T.copy(), colours)
