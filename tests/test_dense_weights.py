"""The included weights for segmentation and detection: what they are, PyTorch, and the commands that take them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from assertions import assert_close, of_layer, rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, seeds

import mmref
from mmref.cli import main
from mmref.data.frame import to_frame
from mmref.data.keep_ratio import to_map
from mmref.data.label_map import read_label_map
from mmref.data.labels import CIFAR10
from mmref.data.picture import open_picture
from mmref.data.samples import sample_picture
from mmref.detection.boxes import overlap
from mmref.models.create import pretrained_weights
from mmref.weights.store import sha256

FPN, SSDLITE = "mobilemamba_nano_fpn", "mobilemamba_nano_ssdlite"
CARDS = {FPN: "MODEL_CARD_FPN.md", SSDLITE: "MODEL_CARD_SSDLITE.md"}
DATA = Path(__file__).parents[2] / "shared" / "data" / "cifar10_jpeg.tar.xz"
# What was pasted where: {sample: (its number among the scenes of SEED, {class: (x1, y1, x2, y2)})}.
SEED = 1
SCENES = {"scene1": (75, {"ship": (86, 94, 145, 143), "airplane": (87, 24, 150, 76)}),
          "scene2": (38, {"airplane": (77, 8, 134, 47), "deer": (49, 85, 90, 147)})}


@pytest.fixture(scope="module")
def models():
    return {name: mmref.create_model(name, pretrained=True) for name in (FPN, SSDLITE)}


@pytest.mark.parametrize("name, names", [(FPN, ("background", *CIFAR10)), (SSDLITE, CIFAR10)])
def test_they_are_small_and_described(models, name, names):
    """Catches a wheel that grows, a model card of other weights, and weights that lost their transform or names."""
    path, model = pretrained_weights(name), models[name]
    assert path.stat().st_size <= 8_000_000
    assert sha256(path) in (path.parent / CARDS[name]).read_text("utf-8")
    assert model.class_names == names and model.config.num_classes == len(names)
    assert model.transform.short == model.config.img_size == 160
    assert model.transform.mean == mmref.create_model("mobilemamba_nano", pretrained=True).transform.mean


def test_anchors_cover_the_picture(models):
    """Catches anchors whose centres are another map's: each map's cells together are the picture."""
    model = models[SSDLITE]
    for anchors, raw in zip(model.anchors, model(np.zeros((1, 3, 160, 160), np.float32))["cls"], strict=True):
        assert anchors.stride * raw.shape[2] == pytest.approx(160)


def twin(name, model):
    """The module that was trained, with the model's parameters."""
    torch = pytest.importorskip("torch")
    import train_fpn
    import train_ssdlite
    module = (train_fpn if name == FPN else train_ssdlite).create().to(getattr(torch, str(model.dtype)))
    state = {key: torch.from_numpy(np.array(value)) for key, value in model.state_dict().items()}
    problems = module.load_state_dict(state, strict=False)
    assert not problems.unexpected_keys and all(key.endswith("num_batches_tracked") for key in problems.missing_keys)
    return module.eval()


def outputs_of(model, x):
    """(B, values): what the module answers, one after the other."""
    raw = model(x) if model.config.name == SSDLITE else {"": [model.forward_head(model.forward_features(x))]}
    return np.concatenate([one.reshape(len(x), -1) for maps in raw.values() for one in maps], axis=1)


def outputs_in_torch(name, model, x):
    import torch
    with torch.no_grad():
        raw = twin(name, model)(torch.from_numpy(x))
    maps = [*raw[0], *raw[1]] if name == SSDLITE else [raw]
    return np.concatenate([one.numpy().reshape(len(x), -1) for one in maps], axis=1)


@pytest.mark.parametrize("name", [FPN, SSDLITE])
@given(seeds, st.integers(1, 2), st.integers(1, 170), st.integers(1, 170))
@settings(max_examples=6)
def test_the_trained_module_in_numpy(models, name, seed, batch, height, width):
    """Catches a network that is not the one that was trained: an epsilon, a stride, an order of levels, widths."""
    model = models[name].astype(np.float64)
    x = normal(seed, batch, 3, height, width, dtype=np.float64)
    assert_close(outputs_of(model, x), outputs_in_torch(name, model, x), 1e-10)


@pytest.mark.parametrize("name", [FPN, SSDLITE])
def test_on_a_scene(models, name):
    """Catches a picture prepared in another way than in training, weights that did not survive float16, and backends
    that disagree about trained weights."""
    model, scene = models[name], sample_picture("scene1")
    x = (to_map(scene, model.transform) if name == FPN else to_frame(scene, model.transform)[0])[None]
    truth, tolerance = rounding(of_layer(model, x, outputs_of))
    assert_close(outputs_of(model, x), truth, tolerance, dtype=np.float32)
    assert_close(outputs_of(mmref.create_model(name, pretrained=True, backend="numba"), x), truth, tolerance,
                 dtype=np.float32)
    assert_close(outputs_in_torch(name, model, x), truth, tolerance, dtype=np.float32)
    from dense_training import to_input
    assert_close(x, to_input([np.asarray(scene)]).contiguous().numpy(), 1e-6)


# --------------------------------------------------------------------------------------------------- the commands

def test_segment(tmp_path, capsys):
    """Catches `mmref segment` without weights, and pixels whose class is not what lies there."""
    assert main(["segment", "--sample", "scene1", "--sample", "scene2", "-o", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "mobilemamba_nano_fpn knows ten classes only (airplane, auto" in err
    names = ("background", *CIFAR10)
    for answer, (sample, (_, objects)) in zip(json.loads(out), SCENES.items(), strict=True):
        assert answer["picture"] == f"sample {sample}"
        labels = read_label_map(answer["labels"])
        for name, (x1, y1, x2, y2) in objects.items():
            found = labels == names.index(name)
            assert found[y1:y2, x1:x2].sum() > 0.5 * found.sum()            # where it lies, and hardly elsewhere
            assert found[y1:y2, x1:x2].mean() > 0.4                         # most of it: a patch does not fill its box
        assert np.isin(labels, [0, *map(names.index, objects)]).mean() > 0.9


def test_detect(tmp_path, capsys):
    """Catches `mmref detect` without weights, boxes that lie elsewhere, and names of other objects."""
    assert main(["detect", "--sample", "scene1", "--sample", "scene2", "-o", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "mobilemamba_nano_ssdlite knows ten classes only (airplane, auto" in err
    for answer, (sample, (_, objects)) in zip(json.loads(out), SCENES.items(), strict=True):
        assert answer["picture"] == f"sample {sample}" and Path(answer["drawn"]).is_file()
        assert sorted(found["label"] for found in answer["objects"]) == sorted(objects)
        for found in answer["objects"]:
            assert overlap(np.array(found["box"]), np.array([objects[found["label"]]], float))[0] > 0.7


def test_in_python():
    """Catches defaults of the functions that are not those of the commands."""
    assert set(mmref.detect(sample_picture("scene1"), score=0.3).labels) == set(SCENES["scene1"][1])
    assert {one.name for one in mmref.segment(sample_picture("scene1")).classes()} >= {"background", "ship"}


# ------------------------------------------------------------------------------------------ where they come from

def test_the_samples_are_test_scenes(tmp_path, capsys):
    """Catches a composer that gives other scenes than those that were measured, and figures far below the model
    cards': on the first eighty scenes of test pictures, from which the samples come. (A thousand: see the cards.)"""
    if not DATA.exists():
        pytest.skip(f"CIFAR-10 not at {DATA}")
    pytest.importorskip("pycocotools", reason="pip install 'mmref[coco]'")
    from compose import main as compose
    with tarfile.open(DATA) as archive:
        archive.extractall(tmp_path, [one for one in archive if "test" in Path(one.name).parts], filter="data")
    compose(["--data", str(tmp_path), "--count", "80", "--seed", str(SEED), "--out", str(tmp_path / "out")])
    annotated = json.loads((tmp_path / "out" / "instances.json").read_text())
    for sample, (number, objects) in SCENES.items():
        scene = open_picture(tmp_path / "out" / "pictures" / f"{number:05d}.png")[0]
        difference = np.abs(np.asarray(sample_picture(sample)).astype(int) - np.asarray(scene))
        assert difference.max() <= 8 and difference.mean() < 0.3            # JPEG decoders differ by a grey level
        boxes = {CIFAR10[one["category_id"] - 1]: one["bbox"] for one in annotated["annotations"]
                 if one["image_id"] == number}
        assert {name: (x, y, x + w, y + h) for name, (x, y, w, h) in boxes.items()} == objects
    common = ["eval", str(tmp_path / "out" / "pictures"), "--backend", "numba", "--results-file"]
    assert main([*common, str(tmp_path / "s.json"), "--task", "segment", "--labels", str(tmp_path / "out/labels")]) == 0
    assert main([*common, str(tmp_path / "d.json"), "--task", "detect", "--annotations",
                 str(tmp_path / "out/instances.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["mIoU"] > 40    # 52.4 on all
    assert json.loads((tmp_path / "d.json").read_text())["AP"] > 30      # 41.1 on all
