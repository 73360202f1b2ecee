"""Detectors in ONNX: raw maps, every box, and the objects behind ONNX's own suppression, in two runtimes."""

from __future__ import annotations

import json
from functools import partial

import detector_files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, seeds

import mmref
from mmref.cli import main
from mmref.detection.anchors import of_ssd
from mmref.errors import ValueProblem
from mmref.models.detection import DetectionVariant, OneStage
from mmref.models.parameters import random_parameters
from mmref.models.variants import VARIANTS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from mmref.export.detection import default_results, reference, results_of  # noqa: E402
from mmref.export.onnx import export_onnx, to_onnx  # noqa: E402
from mmref.export.verify import OPENERS, verify  # noqa: E402

ONE_STAGE = ("ssdlite_1x320x320", "retinanet_1x160x224")


@pytest.mark.parametrize("name", ONE_STAGE)
def test_golden_boxes_and_objects(shared_golden, tmp_path, monkeypatch, name):
    """Catches anchors of another order or place, offsets without their spread, the background as a class, boxes that
    are not clipped, another threshold, and labels that belong to other boxes."""
    model, x = detector_files.model(shared_golden, name), detector_files.inputs(shared_golden, name)
    monkeypatch.delitem(OPENERS, "openvino fixed")
    export_onnx(model, tmp_path / "boxes.onnx", **results_of(model, "boxes"))
    for row in verify(model, tmp_path / "boxes.onnx", [(3, 3, 70, 33)],
                      partial(reference, results="boxes"), least=1.0):
        assert row.passed, row
    export_onnx(model, tmp_path / "objects.onnx", **results_of(model, "objects"))
    (expected,) = model.detect(x)
    for runtime in ("onnxruntime", "openvino"):
        boxes, scores, labels = OPENERS[runtime](tmp_path / "objects.onnx")(x)
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(labels, expected.labels)
        np.testing.assert_allclose(boxes, expected.boxes, rtol=0, atol=detector_files.PIXELS[1])
        np.testing.assert_allclose(scores, expected.scores, rtol=0, atol=1e-4)


class Given(OneStage):
    """A detector whose raw maps are the picture's values, so that drawn numbers reach what stands behind it."""

    background, spread = True, (0.1, 0.1, 0.2, 0.2)
    score, overlap, kept, candidates = 0.2, 0.5, 7, 9

    def __init__(self, config):
        super().__init__(config)
        self.anchors = [of_ssd(5, 9, 14)]
        self.name_layers()

    def forward(self, x):
        return {"cls": [x[:, :24]], "reg": [x[:, 24:]]}


class GivenVariant(DetectionVariant):
    def build(self):
        return Given(self)


@pytest.fixture(scope="module")
def given_graph(tmp_path_factory):
    path = tmp_path_factory.mktemp("given") / "given.onnx"
    config = GivenVariant("given", VARIANTS["mobilemamba_nano"], 16, 3, 6 * (3 + 1 + 4))
    model = random_parameters(config, 0, np.float32)
    export_onnx(model, path, **results_of(model, "objects"))
    return model, OPENERS["onnxruntime"](path), OPENERS["openvino"](path)


@given(seed=seeds, height=st.integers(1, 6), width=st.integers(1, 6), strength=st.sampled_from([1.0, 5.0, 40.0]))
@settings(max_examples=12)
def test_any_maps(given_graph, seed, height, width, strength):
    """Catches what golden figures do not have: fewer candidates than are kept, none at all, boxes beyond the picture or
    without area, more of a level than are let through."""
    model, *runs = given_graph
    x = normal(seed, 1, 48, height, width)
    x[:, 24:] *= strength                        # offsets
    (expected,) = model.detect(x)
    for run in runs:
        boxes, scores, labels = run(x)
        assert boxes.shape == (len(expected), 4) and scores.shape == labels.shape == (len(expected),)
        np.testing.assert_allclose(scores, expected.scores, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(labels, expected.labels)
        np.testing.assert_allclose(boxes, expected.boxes, rtol=0, atol=1e-3)


def test_what_is_refused():
    """Catches boxes promised of a network that has none in its raw maps, and a word that means nothing."""
    classifier, two_stages = (mmref.create_model(name) for name in ("mobilemamba_nano", "mobilemamba_b1_mask_rcnn"))
    for model in (classifier, two_stages):
        assert default_results(model) == "maps"
        for results in ("boxes", "objects"):
            with pytest.raises(ValueProblem, match="results must be maps for mobilemamba"):
                results_of(model, results)
    with pytest.raises(ValueProblem, match="results"):
        results_of(two_stages, "masks")


def test_mask_rcnn(tmp_path, monkeypatch):
    """Catches a dense part that cannot be written, or sizes frozen into it."""
    model = mmref.create_model("mobilemamba_b1_mask_rcnn")
    monkeypatch.delitem(OPENERS, "openvino fixed")
    export_onnx(model, tmp_path / "m.onnx")
    assert all(row.passed for row in verify(model, tmp_path / "m.onnx", [(2, 3, 33, 17)]))
    for method, channels, side in (("box_head", 256, 7), ("mask_head", 256, 14)):
        proto = to_onnx(model, function=lambda model, x, method=method: getattr(model, method)(x),
                        inputs={"regions": ("n", channels, side, side)})
        assert proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "n"


def test_command(tmp_path, capsys):
    """Catches a transform's method in the metadata, results that the file does not say, sizes of another task."""
    path = tmp_path / "s.onnx"
    command = ["export", "onnx", "mobilemamba_nano_ssdlite", "--untrained", "-o", str(path)]
    assert main([*command, "--json", "--verify"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["type"], one["shape"]) for one in found["outputs"]] == [
        ("boxes", "float32", ["batch", "anchors", 4]), ("scores", "float32", ["batch", "anchors", 10])]
    assert found["metadata"]["img_size"] == "160" and all(row["passed"] for row in found["verified"])
    assert main([*command, "--results", "objects", "--fixed", "96x64", "--img-size", "64"]) == 0
    assert "labels: int64 (objects)" in capsys.readouterr().out
    assert json.loads(onnx.load(path).metadata_props[5].value)["short"] == 64
    assert main([*command, "--results", "maps"]) == 0 and "cls_0: float32 (batch, 66, ?, ?)" in capsys.readouterr().out
    for wrong in (["--results", "objects", "--verify"], ["--crop-pct", "0.9"], ["--interpolation", "nearest"]):
        assert main([*command, *wrong]) == 2 and wrong[0] in capsys.readouterr().err
    assert main(["export", "onnx", "mobilemamba_nano", "--results", "boxes", "-o", str(path)]) == 2
    assert "results must be maps" in capsys.readouterr().err
