"""From somebody's weights to a network: what is taken, what it is called, how it sees pictures, what does not fit."""

from __future__ import annotations

import json
import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from assertions import assert_close
from PIL import Image

import mmref
from mmref.cli import main
from mmref.data.labels import CIFAR10, imagenet_ids, imagenet_names
from mmref.data.picture import Transform, open_picture, to_array
from mmref.errors import CheckpointError, MmrefError, ParameterMismatch, ValueProblem
from mmref.models.create import pretrained_weights
from mmref.weights import convert, safetensors_file, store
from mmref.weights.pth_writer import write_pth

NANO = "mobilemamba_nano"


def state(seed=1, **options):
    """An untrained nano's state dict."""
    return mmref.create_model(NANO, seed=seed, **options).state_dict()


def to_torch(arrays, prefix=""):
    return OrderedDict((prefix + name, torch.from_numpy(np.array(array))) for name, array in arrays.items())


def is_of(model, arrays):
    """Whether a network has just these parameters."""
    own = model.state_dict()
    return own.keys() == arrays.keys() and all(np.array_equal(own[name], arrays[name]) for name in own)


@pytest.fixture
def picture(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)).save(tmp_path / "p.png")
    return tmp_path / "p.png"


@pytest.fixture
def both(tmp_path):
    """A trainer's file with raw weights of seed 1 and an average of seed 2."""
    torch.save({"model": to_torch(state(1), "module."), "ema": to_torch(state(2), "module.")}, tmp_path / "both.pth")
    return tmp_path / "both.pth"


def run(capsys, *argv):
    try:
        status = main([str(a) for a in argv])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return status, out, err


# ------------------------------------------------------------------------------------------ which of two

def test_prefer_in_python(both):
    """Catches raw weights taken where an average is there, or no way to ask for them, and a model that cannot say which
    it has; an engine and a pickle must say it, too."""
    model = mmref.create_model(NANO, both)
    assert is_of(model, state(2)) and model.source == str(both)
    assert model.notes == ("took ema; also there: model (prefer, --prefer); prefix module. cut from every name",)
    assert is_of(mmref.create_model(NANO, both, prefer="raw"), state(1))
    assert is_of(mmref.create_model(NANO, torch_free(both), prefer="model"), state(1))
    fast = mmref.create_model(NANO, both, backend="numba")
    assert (fast.source, fast.notes) == (model.source, model.notes) == (
        pickle.loads(pickle.dumps(fast)).source, pickle.loads(pickle.dumps(fast)).notes)
    with pytest.raises(CheckpointError, match="prefer must be one of model, ema, got 'net'"):
        mmref.create_model(NANO, both, prefer="net")
    assert mmref.create_model(NANO, state()).notes == mmref.create_model(NANO, pretrained=True).notes == ()


def torch_free(path):
    """The file's dict with arrays for tensors, as somebody passes it who has loaded it with PyTorch."""
    return {entry: {name: tensor.numpy() for name, tensor in tensors.items()}
            for entry, tensors in torch.load(path, weights_only=True).items()}


def test_prefer_on_the_command_line(both, tmp_path, picture, capsys):
    """Catches a command that has no --prefer, ignores it, or takes an average without a word."""
    (tmp_path / "data" / "a").mkdir(parents=True)
    picture.rename(tmp_path / "data" / "a" / "p.png")
    picture = tmp_path / "data" / "a" / "p.png"
    labels = tmp_path / "map.txt"
    labels.write_text("\n".join(["a", *"bcdefghij"]))
    commands = {"classify": ["classify", picture, "--topk", 10], "info": ["info", NANO, "--depth", 1],
                "eval": ["eval", tmp_path / "data", "--class-map", labels, "--workers", 0, "--json"],
                "trace": ["trace", picture, "-o", tmp_path / "t.safetensors", "--filter", "output"],
                "export": ["export", "onnx", NANO, "-o", tmp_path / "m.onnx"],
                "convert": ["convert", both, tmp_path / "c.safetensors"],
                "show": ["show", picture, "--what", "features", "--layer", "blocks1", "--size", 32, "-o",
                         tmp_path / "s.png"]}
    for name, command in commands.items():
        weights = [] if name == "convert" else ["--weights", both]
        answers = {}
        for prefer in ("auto", "raw", "ema", "nonsense"):
            status, out, err = run(capsys, *command, *weights, "--prefer", prefer)
            if prefer == "nonsense":
                assert status == 2 and "prefer must be one of model, ema, got 'nonsense'" in err
                continue
            assert status == 0, err
            taken = {"raw": "model", "ema": "ema", "auto": "ema"}[prefer]
            where = out if name == "convert" else err
            assert (f"entry {taken} " if name == "convert" else f"took {taken}; also there") in where
            assert len([line for line in err.splitlines() if "took" in line]) == (name != "convert")
            file = {"trace": "t.safetensors", "export": "m.onnx", "convert": "c.safetensors"}.get(name)
            answers[prefer] = (tmp_path / file).read_bytes() if file else out
        if name in ("classify", "export", "convert"):  # the others print no numbers, or say which
            assert answers["auto"] == answers["ema"] != answers["raw"]


# ------------------------------------------------------------------------------------------ heads and channels

def test_a_head_that_is_wanted_and_missing(tmp_path):
    """Catches a network without head for who asked for seven classes, and half a head dropped."""
    headless = {name: array for name, array in state().items() if not name.startswith("head.")}
    write_pth(tmp_path / "headless.pth", headless)
    for weights in (tmp_path / "headless.pth", headless):
        with pytest.raises(ParameterMismatch, match="num_classes=7 needs a head, and the weights have none"):
            mmref.create_model(NANO, weights, num_classes=7)
        for asked in (None, 0):
            assert mmref.create_model(NANO, weights, num_classes=asked).config.num_classes == 0
    with pytest.raises(ValueProblem, match="must have a head"):
        mmref.Predictor(NANO, tmp_path / "headless.pth").load()
    for missing in ("head.l.weight", "head.l.bias", "head.bn.running_var"):
        with pytest.raises(ParameterMismatch, match=f"missing {missing}"):
            mmref.create_model(NANO, {name: array for name, array in state().items() if name != missing})


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_input_channels(tmp_path, channels, picture, capsys):
    """Catches channels that have to be given although the file says them, and a command line that cannot."""
    arrays = state(in_chans=channels)
    write_pth(tmp_path / "w.pth", arrays)
    for weights in (tmp_path / "w.pth", arrays, mmref.create_model(NANO, arrays).fold_batchnorm().state_dict()):
        for asked in (None, channels):
            model = mmref.create_model(NANO, weights, in_chans=asked)
            assert model.config.in_chans == channels
            assert model(np.zeros((1, channels, 20, 20), np.float32)).shape == (1, 10)
        with pytest.raises(ParameterMismatch, match=f"in_chans must be {channels}, .*got 3"):
            mmref.create_model(NANO, weights, in_chans=3)
    np.save(tmp_path / "x.npy", np.zeros((1, channels, 20, 20), np.float32))
    options = ["--weights", tmp_path / "w.pth", "--in-chans", channels]
    for command in (["info", NANO, *options], ["info", NANO, "--in-chans", channels],
                    ["export", "onnx", NANO, *options, "-o", tmp_path / "m.onnx", "--verify"],
                    ["trace", tmp_path / "x.npy", *options, "-o", tmp_path / "t.safetensors"]):
        status, _, err = run(capsys, *command)
        assert status == 0, err
    status, out, err = run(capsys, "classify", picture, *options)
    if channels == 1:
        assert status == 0 and "class " in out
    else:
        assert status == 2 and f"must have the {channels} channels that the network takes" in err
    status, _, err = run(capsys, "info", NANO, "--weights", tmp_path / "w.pth", "--in-chans", 3)
    assert status == 2 and f"in_chans must be {channels}" in err


def test_pictures_in_grey(picture):
    """Catches a network of one channel that is shown one colour of three."""
    rgb = open_picture(picture)[0]
    x = to_array(rgb, Transform(64, mean=(0.5,), std=(0.25,)))
    grey = to_array(Image.merge("RGB", [rgb.convert("L")] * 3), Transform(64, mean=(0.5,) * 3, std=(0.25,) * 3))
    assert x.shape == (1, 64, 64)
    assert_close(x[0], grey[0], 0)
    model = mmref.create_model(NANO, state(in_chans=1))
    assert model.transform.channels == 1


# ------------------------------------------------------------------------------------------ names of classes

def test_nobody_elses_names(tmp_path, picture, capsys):
    """Catches CIFAR-10's names on ten classes of one's own, ImageNet's on a thousand, by number or by file name."""
    write_pth(tmp_path / "mobilemamba_nano.pth", state())
    for weights in (tmp_path / "mobilemamba_nano.pth", state()):
        assert mmref.create_model(NANO, weights).class_names is None
        answer, = mmref.Predictor(NANO, weights, topk=10)([picture])
        assert sorted(answer.labels) == sorted(f"class {i}" for i in range(10))
    thousand = mmref.create_model("mobilemamba_t2", seed=0)
    assert thousand.class_names is None
    write_pth(tmp_path / "mobilemamba_t2.pth", thousand.state_dict())
    status, out, err = run(capsys, "classify", picture, "--model", "mobilemamba_t2", "--weights",
                           tmp_path / "mobilemamba_t2.pth")
    assert status == 0 and out.count("class ") == 3 and err.count("\n") == 1 and "--class-names" in err
    assert mmref.create_model(NANO, pretrained=True).class_names == CIFAR10


def test_names_that_are_given(tmp_path, picture, capsys):
    """Catches --class-names ignored, wrong in number or order, and names lost by convert."""
    write_pth(tmp_path / "w.pth", state())
    (tmp_path / "names.txt").write_text("\n".join(f"kind {i}" for i in range(10)))
    for given, first in ((tmp_path / "names.txt", "kind 0"), ("cifar10", "airplane")):
        model = mmref.create_model(NANO, tmp_path / "w.pth", class_names=given)
        assert model.class_names[0] == first
        status, out, err = run(capsys, "classify", picture, "--weights", tmp_path / "w.pth", "--class-names", given,
                               "--topk", 10)
        assert status == 0 and err == "" and first in out and "class 0" not in out
    status, _, err = run(capsys, "classify", picture, "--weights", tmp_path / "w.pth", "--class-names", "imagenet")
    assert status == 2 and "must be 10, one per output, got 1000" in err and err.count("\n") == 1
    status, _, err = run(capsys, "classify", picture, "--class-names", tmp_path / "none.txt")
    assert status == 2 and "none.txt: No such file" in err and err.count("\n") == 1
    target = tmp_path / "n.safetensors"
    assert run(capsys, "convert", tmp_path / "w.pth", target, "--class-names", tmp_path / "names.txt")[0] == 0
    assert mmref.create_model(NANO, target).class_names[9] == "kind 9"
    assert mmref.create_model(NANO, target, num_classes=0).class_names is None
    assert run(capsys, "convert", tmp_path / "w.pth", tmp_path / "x.safetensors", "--class-names", "imagenet")[0] == 2
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("metadata, message", [
    ({"class_names": "["}, "class_names is not JSON"), ({"class_names": '["a"]'}, "must be 10, one per output, got 1"),
    ({"class_names": json.dumps(["a\u001b[2J"] * 10)}, "printable"), ({"class_names": "[" * 100_000}, "not JSON"),
    ({"class_names": json.dumps([1] * 10)}, "list of text"), ({"transform": "3"}, "transform must be a dict"),
    ({"transform": '{"size": -1}'}, "size must be"), ({"transform": '{"size": 32, "blur": 1}'}, "transform must be"),
    ({"transform": "\ud800"}, "JSON")])
def test_metadata_from_strangers(tmp_path, metadata, message):
    """Catches metadata that ends in a traceback or in a terminal, or is believed."""
    try:
        safetensors_file.write(tmp_path / "a.safetensors", state(), metadata)
    except UnicodeEncodeError:
        return  # the library cannot write it: nobody meets it
    with pytest.raises(MmrefError, match=f"a.safetensors: metadata: .*{message}"):
        mmref.create_model(NANO, tmp_path / "a.safetensors")


def test_published_weights_are_known_by_their_bytes(tmp_path, monkeypatch):
    """Catches class names lost for who has the very file that was fetched, or its conversion."""
    monkeypatch.setenv("MMREF_HOME", str(tmp_path / "home"))
    model = mmref.create_model("mobilemamba_t2", seed=0)
    write_pth(tmp_path / "copy.pth", model.state_dict())
    assert mmref.create_model("mobilemamba_t2", tmp_path / "copy.pth").class_names is None
    source, converted = store.cached("mobilemamba_t2")
    source.parent.mkdir(parents=True)
    source.write_bytes((tmp_path / "copy.pth").read_bytes())
    store.record_sha256(source, store.sha256(source))
    assert mmref.create_model("mobilemamba_t2", tmp_path / "copy.pth").class_names == imagenet_names()
    convert(source, converted, metadata={"source": store.published("mobilemamba_t2").url})
    assert mmref.create_model("mobilemamba_t2", converted).class_names == imagenet_names()
    assert mmref.create_model("mobilemamba_t2", pretrained=True).class_names == imagenet_names()


# ------------------------------------------------------------------------------------------ config.json

def with_config(folder, config, **options):
    """A folder with nano's weights (seed 1) and a config.json; returns the weights' path."""
    folder.mkdir(exist_ok=True)
    write_pth(folder / "w.pth", state(**options))
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder / "w.pth"


TIMM = {"architecture": "mobilemamba_nano", "num_classes": 10, "num_features": 160, "global_pool": "avg",
        "label_names": [f"kind {i}" for i in range(10)],
        "pretrained_cfg": {"tag": "", "custom_load": False, "input_size": [3, 96, 96], "fixed_input_size": False,
                           "interpolation": "bilinear", "crop_pct": 0.95, "crop_mode": "center",
                           "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.5, 1.0], "num_classes": 1000, "pool_size": None,
                           "first_conv": "patch_embed.0.c", "classifier": "head.l"}}


def test_a_timm_style_config_is_read(tmp_path, capsys):
    """Catches the published networks' mean and size applied to weights whose own stand beside them, and silence."""
    path = with_config(tmp_path / "a", TIMM)
    expected = Transform(96, 0.95, (0.5, 0.4, 0.3), (0.25, 0.5, 1.0), interpolation="bilinear")
    for weights in (path, path.parent, str(path)):
        model = mmref.create_model(NANO, weights)
        assert model.transform == expected and model.class_names == tuple(TIMM["label_names"])
        assert model.notes == ("size, crop_ratio, mean, std, interpolation, class names from config.json beside them",)
        assert mmref.Predictor(NANO, weights).load().transform == expected
    assert mmref.create_model(NANO, path, class_names="cifar10").class_names == CIFAR10
    flat = {"architecture": "MobileMamba_Nano.in1k", **TIMM["pretrained_cfg"], "num_classes": 10,
            "label_names": [f"n{i:08}" for i in range(10)],
            "label_descriptions": {f"n{i:08}": f"thing {i}" for i in range(10)}}
    model = mmref.create_model(NANO, with_config(tmp_path / "b", flat))
    assert model.transform == expected and model.class_names[3] == "thing 3"
    thousand = tmp_path / "c"
    thousand.mkdir()
    write_pth(thousand / "w.pth", mmref.create_model("mobilemamba_t2").state_dict())
    (thousand / "config.json").write_text(json.dumps({"architecture": "mobilemamba_t2s", "num_classes": 1000,
                                                      "label_names": list(imagenet_ids())}))
    assert mmref.create_model("mobilemamba_t2", thousand).class_names == imagenet_names()


def test_flags_win_over_the_config(tmp_path, picture, capsys):
    """Catches flags that a config.json overrides, and what was taken going unsaid on the command line."""
    path = with_config(tmp_path / "a", TIMM)
    command = ["export", "onnx", NANO, "--weights", path, "-o", tmp_path / "m.onnx", "--json"]
    status, out, err = run(capsys, *command)
    written = json.loads(json.loads(out)["metadata"]["transform"])
    assert status == 0 and "from config.json beside them" in err and err.count("\n") == 1
    assert Transform.from_dict(written) == mmref.create_model(NANO, path).transform
    flags = ["--mean", 0.1, 0.2, 0.3, "--std", 1, 1, 1, "--crop-pct", 0.5, "--img-size", 64,
             "--interpolation", "nearest"]
    status, out, err = run(capsys, *command, *flags)
    written = Transform.from_dict(json.loads(json.loads(out)["metadata"]["transform"]))
    assert status == 0 and written == Transform(64, 0.5, (0.1, 0.2, 0.3), (1, 1, 1), interpolation="nearest")
    x = to_array(open_picture(picture)[0], written)[None]
    logits = mmref.create_model(NANO, path)(x)[0]
    status, out, err = run(capsys, "classify", picture, "--weights", path, *flags, "--json", "--topk", 1)
    best, = json.loads(out)[0]["predictions"]
    assert best["class"] == int(logits.argmax()) and best["label"] == f"kind {best['class']}"
    chances = np.exp(logits - logits.max())
    assert abs(best["probability"] - (chances / chances.sum()).max()) < 1e-5
    for wrong, message in ((["--std", 0, 1, 1], "std[0] must be a finite"), (["--crop", 7], "crop_ratio must be"),
                           (["--interpolation", "cubic"], "interpolation must be one of")):
        status, _, err = run(capsys, "classify", picture, "--weights", path, *wrong)
        assert status == 2 and message in err
    status, _, err = run(capsys, "classify", picture, "--crop", 0.5)
    assert status == 2 and "--crop-pct must be left out" in err


@pytest.mark.parametrize("change, message", [
    ({"architecture": "resnet50"}, "its architecture is resnet50"),
    ({"num_classes": 7}, "it has 7 classes, the weights 10"),
    ({"input_size": [1, 96, 96]}, "it has 1 input channels, the weights 3"),
    ({"label_names": ["a"]}, "its 1 label_names are not used")])
def test_a_config_of_other_weights(tmp_path, change, message):
    """Catches another network's config believed, and its being passed over without a word."""
    model = mmref.create_model(NANO, with_config(tmp_path / "a", {**TIMM, **change}))
    assert message in "; ".join(model.notes) and model.class_names is None
    if "label_names" not in change:
        assert model.transform == Transform(128)


def test_other_configs_are_left_alone(tmp_path):
    """Catches a web project's or transformers' config.json taken for timm's."""
    for config in ({"architectures": ["X"], "model_type": "vit", "mean": "?"}, [], 3, {"compilerOptions": {}}, {}):
        model = mmref.create_model(NANO, with_config(tmp_path / "a", config))
        assert model.notes == () and model.transform == Transform(128)


@pytest.mark.parametrize("change, message", [
    ({"mean": [0.5, "x", 1]}, "mean must be"), ({"mean": [0.5, 0.5]}, "mean must be 3 numbers"),
    ({"mean": float("nan")}, "mean must be"), ({"std": [0, 1, 1]}, "must be a finite number in 1e-06"),
    ({"std": []}, "std must be"),
    ({"input_size": [3, 96, 64]}, "square"), ({"input_size": "big"}, "input_size must be"),
    ({"input_size": [3, 1 << 70, 1 << 70]}, "input_size must be"), ({"crop_pct": 3}, "crop_ratio must be"),
    ({"crop_pct": [1]}, "crop_pct must be"), ({"crop_mode": "squash"}, "crop_mode must be center"),
    ({"interpolation": "random"}, "interpolation must be one of"), ({"interpolation": 3}, "interpolation must be"),
    ({"num_classes": "ten"}, "num_classes must be"), ({"label_names": [1] * 10}, "label_names must be"),
    ({"label_names": ["a\u001b"] * 10}, "printable"), ({"label_descriptions": [1]}, "label_descriptions must be"),
    ({"architecture": 3}, "architecture must be a name")])
def test_bad_configs_are_refused(tmp_path, change, message):
    """Catches values that are believed, or end in a traceback, or leave the user with the wrong transform."""
    path = with_config(tmp_path / "a", {**TIMM, **change})
    with pytest.raises(MmrefError, match=f"config.json: .*{message}"):
        mmref.create_model(NANO, path)


@pytest.mark.parametrize("text", ["{", "", "\ufeff{", '{"a": 1, "a": 2}', "[" * 100_000, '{"a":' + "9" * 5000 + "}",
                                  " " * (5 << 20)])
def test_configs_that_are_no_json(tmp_path, text):
    """Catches a broken or endless config.json that ends in a traceback or in all of the memory."""
    with pytest.raises(CheckpointError, match="config.json: "):
        mmref.create_model(NANO, with_config(tmp_path / "a", text))


def test_what_travels_with_a_predictor(tmp_path):
    """Catches a worker that finds another config.json, or no file of names, and answers otherwise."""
    path = with_config(tmp_path / "a", TIMM)
    (tmp_path / "names").write_text("\n".join("abcdefghij"))
    predictor = mmref.Predictor(NANO, path, class_names=tmp_path / "names")
    predictor.load()
    (tmp_path / "names").unlink()
    there = pickle.loads(pickle.dumps(predictor))
    assert there.load().labels == tuple("abcdefghij")
    (path.parent / "config.json").write_text(json.dumps({**TIMM, "crop_pct": 0.5}))
    import mmref.tasks.task as module
    module._loaded.clear()
    with pytest.raises(CheckpointError, match="other weights than this Predictor began with"):
        there.load()


# ------------------------------------------------------------------------------------------ dicts

def test_dicts_have_the_checks_of_files():
    """Catches prefixes that stay, NaN accepted, and arrays of other libraries or kinds in a state dict in memory."""
    good = state()
    name = "blocks1.0.dw0.m.c.weight"
    for prefix in ("module.", "_orig_mod.module.", "model."):
        model = mmref.create_model(NANO, {prefix + n: a for n, a in good.items()})
        assert is_of(model, good) and f"prefix {prefix} cut" in model.notes[0] and model.source == "weights (a dict)"
    counted = {"n_averaged": np.int64(3), "module.total_ops": np.zeros(1),
               **{f"module.{n}": a for n, a in good.items()}}
    assert is_of(mmref.create_model(NANO, counted), good)
    assert is_of(mmref.create_model(NANO, {"net": good, "net_E": state(2), "epoch": 3}), state(2))
    half = {n: a.astype(np.float16) for n, a in good.items()}
    assert mmref.create_model(NANO, half).dtype == np.float32
    exact = {n: a.astype(np.float64) / 3 for n, a in good.items()}
    assert is_of(mmref.create_model(NANO, exact, dtype=np.float64), exact)
    nan = good[name].copy()
    nan.flat[3] = np.nan
    for value, message in ((nan, "has NaN"), (np.full_like(nan, np.inf), "infinity"),
                           (nan.tolist(), "must be a tensor, got list"),
                           (torch.from_numpy(good[name]), r"NumPy array, got torch.Tensor; pass tensor.detach.*numpy"),
                           (good[name].astype(np.complex64), "real numbers, got complex64"),
                           (good[name].astype(object), "real numbers, got object"),
                           (np.ma.masked_array(good[name]), "NumPy array, got numpy.ma"),
                           (None, "must be a tensor, got None"),
                           (good[name].astype(np.float64) * 1e300, "beyond float32"),
                           (good[name].astype(np.int32), "must be of floating point, got int32")):
        with pytest.raises(CheckpointError, match=rf"weights \(a dict\): {name}:? .*{message}"):
            mmref.create_model(NANO, {**good, name: value})
    with pytest.raises(CheckpointError, match="variance must not be negative"):
        mmref.create_model(NANO, {**good, "head.bn.running_var": -good["head.bn.running_var"]})
    tensors = to_torch(good)
    with pytest.raises(CheckpointError, match="got torch.Tensor; pass"):
        mmref.create_model(NANO, tensors)
    before = {n: a.copy() for n, a in good.items()}
    mmref.create_model(NANO, good)(np.ones((1, 3, 8, 8), np.float32))
    assert all(np.array_equal(good[n], before[n]) for n in good)


def test_advice_where_a_prefix_is_in_the_way():
    """Catches an error that lists hundreds of unexpected names where one word before each is all that is wrong."""
    good = state()
    with pytest.raises(ParameterMismatch, match="They would fit mobilemamba_nano with num_classes=10 without 'net2.'"):
        mmref.create_model(NANO, {f"net2.{n}": a for n, a in good.items()})
    with pytest.raises(ParameterMismatch, match="without 'visual.trunk.' before every name"):
        mmref.create_model(NANO, {f"visual.trunk.{n}": a for n, a in good.items()})
    with pytest.raises(CheckpointError, match="only an empty dict"):
        mmref.create_model(NANO, {})
    detector = {**{f"backbone.{n}": a for n, a in good.items()}, "neck.w": np.ones((2, 2), np.float32)}
    with pytest.raises(ParameterMismatch, match="below 'backbone.' fit mobilemamba_nano .*the other 1 belong"):
        mmref.create_model(NANO, detector)


# ------------------------------------------------------------------------------------------ convert

def test_convert_says_what_fits(tmp_path, capsys):
    """Catches a file written in silence that no network here can use, and --model that lets it pass."""
    target = tmp_path / "out.safetensors"
    good = state()
    write_pth(tmp_path / "good.pth", good)
    status, out, _ = run(capsys, "convert", tmp_path / "good.pth", target, "--model", NANO)
    assert status == 0 and "fits mobilemamba_nano with num_classes=10\n" in out
    torch.save(to_torch(good, "module."), tmp_path / "module.pth")
    status, out, _ = run(capsys, "convert", tmp_path / "module.pth", target)
    assert status == 0 and "prefix module. cut from every name" in out and "fits mobilemamba_nano" in out
    target.unlink()
    lacking = {name: array for name, array in good.items() if name != "head.l.bias"}
    write_pth(tmp_path / "lacking.pth", lacking)
    write_pth(tmp_path / "other.pth", {"x": np.ones(3, np.float32)})
    for name, message in (("lacking", "nearest mobilemamba_nano: 1 of its parameters do not fit .*missing head.l.bias"),
                          ("other", "fits no variant mmref knows: no tensor in it")):
        status, _, err = run(capsys, "convert", tmp_path / f"{name}.pth", target, "--model", NANO)
        assert status == 2 and err.count("\n") == 1 and not target.exists()
        status, out, _ = run(capsys, "convert", tmp_path / f"{name}.pth", target)
        assert status == 0 and re.search(message, out)
        status, out, _ = run(capsys, "convert", tmp_path / f"{name}.pth", target, "--json")
        assert json.loads(out)["fits"] == []
        target.unlink()
    write_pth(tmp_path / "headless.pth", {name: a for name, a in good.items() if not name.startswith("head.")})
    headless = ["convert", tmp_path / "headless.pth", target, "--model", NANO]
    status, _, err = run(capsys, *headless)
    assert status == 2 and "wants a head, and the file has none" in err and not target.exists()
    assert run(capsys, "convert", tmp_path / "good.pth", target, "--model", NANO, "--num-classes", 7)[0] == 2
    status, out, _ = run(capsys, *headless, "--num-classes", 0)
    assert status == 0 and "fits mobilemamba_nano without head\n" in out
    target.unlink()
    status, _, err = run(capsys, "convert", tmp_path / "good.pth", target, "--model", "mobilemamba_t2")
    assert status == 2 and "They fit mobilemamba_nano" in err and not target.exists()
    status, out, _ = run(capsys, "weights", "verify", tmp_path / "lacking.pth")
    assert status == 0 and "missing head.l.bias" in out
    assert pretrained_weights(NANO).exists()
