"""The exported graph equals the network, in two runtimes, at every size; what cannot be exported is refused."""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import pytest
from assertions import assert_close, of_layer, relative_error, rounding
from strategies import enliven, lively

import mmref
from mmref.cli import main
from mmref.errors import MissingBackend, ValueProblem
from mmref.models.parameters import random_parameters
from mmref.models.variants import VARIANTS, Variant
from mmref.nn.layer import Layer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from mmref.export.onnx import export_onnx, to_onnx  # noqa: E402
from mmref.export.verify import OPENERS, verify  # noqa: E402

SMALL = Variant("small", 64, (48, 64, 80), num_classes=7)
STRUCTURES = {
    "bidirectional": {}, "one direction": {"scan_order": "unidirectional"}, "cross": {"scan_order": "cross"},
    "3 states": {"d_state": 3}, "cross, 2 states": {"scan_order": "cross", "d_state": 2},
    "db2": {"wavelet": "db2"}, "3 levels": {"wavelet_levels": 3},
    "db3, 2 levels": {"wavelet": "db3", "wavelet_levels": 2}, "no head": {"num_classes": 0},
    "1 channel": {"in_chans": 1},
}


def picture(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """(model, file) of the nano network."""
    model = lively()
    path = tmp_path_factory.mktemp("onnx") / "nano.onnx"
    export_onnx(model, path)
    return model, path


@pytest.mark.parametrize("runtime", OPENERS)
def test_one_session_takes_every_size_and_batch(nano, runtime):
    """A size or batch frozen into the graph; padding or crop wrong for one parity of the maps of some stage; a Scan
    body that OpenVINO computes wrongly once shapes are fixed (it did, for decay * h in place of h * decay)."""
    model, path = nano
    run = OPENERS[runtime](path)
    sides = (1, 17, 63, 100) if "fixed" in runtime else (1, 2, 17, 33, 48, 63, 80, 100)  # first maps of 1 to 7 pixels
    for batch, height, width in [(1 + i % 3, h, w) for i, h in enumerate(sides) for w in (h, 65, 16)]:
        x = picture(batch, 3, height, width, seed=height)
        assert_close(run(x), *rounding(of_layer(model, x)), dtype=np.float32)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "mobilemamba_nano"])
def test_variants(name, tmp_path):
    """A variant with other splits (no identity channels, say) exported wrongly; an error that grows with depth, or with
    the number of steps of the scan: at each one's own size, an odd one and a strip."""
    model, side = lively(name), VARIANTS[name].img_size
    path = tmp_path / "m.onnx"
    export_onnx(model, path)
    for row in verify(model, path, [(1, 3, side, side), (3, 3, side // 2 + 1, side // 3), (2, 3, side + 1, 7)]):
        assert row.passed, row


@pytest.mark.parametrize("changes", STRUCTURES.values(), ids=STRUCTURES)
def test_other_structures(changes, tmp_path):
    """Directions merged in the wrong order, states mixed up, levels or longer filters forgotten, a missing head."""
    config = Variant(**{**vars(SMALL), **changes})
    model = enliven(random_parameters(config))
    path = tmp_path / "m.onnx"
    export_onnx(model, path)
    for row in verify(model, path, [(2, config.in_chans, 65, 97), (1, config.in_chans, 64, 50)]):
        assert row.passed, row


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
def test_newer_opsets(nano, opset, tmp_path):
    """An operation whose signature changed after opset 17."""
    model, _ = nano
    proto = export_onnx(model, tmp_path / "m.onnx", opset)
    assert proto.opset_import[0].version == opset
    x = picture(2, 3, 33, 20)
    assert_close(OPENERS["onnxruntime"](tmp_path / "m.onnx")(x), *rounding(of_layer(model, x)), dtype=np.float32)


def test_folded_models_export_too(nano):
    """A folded checkpoint treated as unfolded; the exporter folding the caller's model in place."""
    model, path = nano
    before = {name: array.copy() for name, array in model.state_dict().items()}
    again = to_onnx(model.fold_batchnorm())
    assert again.graph == onnx.load(path).graph
    assert not model.folded
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


def test_names_and_types(nano):
    """Parameters lost under invented names, float64 in the graph, symbols for the free sizes gone."""
    model, path = nano
    graph = onnx.load(path).graph
    names = {tensor.name for tensor in graph.initializer}
    scan = ("A_logs", "Ds", "x_proj_weight", "dt_projs_weight", "dt_projs_bias")  # kept transposed, a direction each
    assert {name for name in model.fold_batchnorm().state_dict() if not name.endswith(scan)} <= names
    assert {t.data_type for t in graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    def shape(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
    assert [(v.name, shape(v)) for v in graph.input] == [("input", ["batch", 3, "height", "width"])]
    assert [(v.name, shape(v)) for v in graph.output] == [("logits", ["batch", 10])]
    assert {node.op_type for node in graph.node} >= {"Scan", "LayerNormalization", "ConvTranspose"}


def test_metadata(tmp_path):
    """A file from which nobody can tell the class names or how a picture must be prepared."""
    model = mmref.create_model("mobilemamba_nano")
    model.class_names = tuple(f"Klasse {i} \u00e4" for i in range(10))
    props = {p.key: p.value for p in export_onnx(model, tmp_path / "m.onnx").metadata_props}
    assert props["model"] == "mobilemamba_nano" and props["img_size"] == "128"
    assert json.loads(props["mean"]) == list(model.transform.mean)
    assert json.loads(props["std"]) == list(model.transform.std)
    assert type(model.transform).from_dict(json.loads(props["transform"])) == model.transform
    assert json.loads(props["class_names"]) == list(model.class_names)


def test_failed_export_leaves_the_old_file(nano, tmp_path, monkeypatch):
    """Half a file under the final name, or a temporary one left behind, when writing fails."""
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        export_onnx(nano[0], path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("opset", [16, 1000, 17.5, True, "17"])
def test_opsets_refused(nano, opset):
    """LayerNormalization in an opset that has none: only the runtime would complain, much later."""
    with pytest.raises(ValueProblem, match="opset must be an integer in 17"):
        to_onnx(nano[0], opset)


def test_foreign_layers_refused(nano):
    """A layer of the user's own silently left out, or a traceback from deep inside."""
    class Doubled(Layer):
        def forward(self, x):
            return 2 * x
    model = nano[0].fold_batchnorm()
    model.blocks1.children["0"].ffn0.m = Doubled()
    with pytest.raises(ValueProblem, match="Doubled at 'blocks1.0.ffn0.m'"):
        to_onnx(model)
    with pytest.raises(ValueProblem, match="create_model"):
        to_onnx(lambda x: x)


def test_missing_onnx_names_the_command(monkeypatch):
    """A bare ImportError for who has not installed the extra."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "mmref.export.onnx")
    with pytest.raises(MissingBackend, match=r'pip install "mmref\[onnx\]"'):
        importlib.import_module("mmref.export.onnx")


def test_command(tmp_path, capsys):
    """The command line writing something else than the function, or passing a bad graph."""
    path = tmp_path / "m.onnx"
    assert main(["export", "onnx", "mobilemamba_nano", "--untrained", "-o", str(path), "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bytes"] == path.stat().st_size
    assert [row["passed"] for row in report["verified"]] == [True] * 9
    assert path.read_bytes() == to_onnx(mmref.create_model("mobilemamba_nano")).SerializeToString()
    assert main(["export", "onnx", "mobilemamba_nano", "--untrained", "-o", str(tmp_path / "no" / "m.onnx")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no/m.onnx" in error


def test_tools_of_onnx_runtime(nano, tmp_path):
    """Catches a graph that ONNX Runtime's float16 and quantisation tools no longer take with the switches that
    docs/onnx.md names."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    model, path = nano
    x = picture(4, 3, 64, 64)
    expected = model(x)

    class Reader(CalibrationDataReader):
        inputs = iter([{"input": sample[None]} for sample in x])

        def get_next(self):
            return next(self.inputs, None)

    half = convert_float_to_float16(onnx.load(path), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, "Scan"])
    onnx.save(half, tmp_path / "half.onnx")
    quant_pre_process(path, tmp_path / "p.onnx", skip_symbolic_shape=True)
    quantize_static(tmp_path / "p.onnx", tmp_path / "static.onnx", Reader(), per_channel=True)
    quantize_dynamic(path, tmp_path / "dynamic.onnx")
    for name in ("half", "static", "dynamic"):  # how good 8 bits are is a question to trained weights: see the page
        answer = OPENERS["onnxruntime"](tmp_path / f"{name}.onnx")(x)
        assert answer.shape == expected.shape and np.isfinite(answer).all()
        assert name != "half" or relative_error(answer, expected) < 0.1
