"""The segmentation networks: published figures, PyTorch, every backend, checkpoints."""

from __future__ import annotations

import json
import sys
import types

import golden_files
import numpy as np
import pytest
from assertions import assert_close, of_layer, relative_error, rounding
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import lively, normal, seeds

import mmref
from mmref.engine import CompiledModel
from mmref.errors import ParameterMismatch, ShapeError, ValueProblem
from mmref.models.fpn import FPN, SemanticFPN
from mmref.models.parameters import expected_shapes, load_parameters
from mmref.models.registry import resolve
from mmref.nn.layer import recording
from mmref.nn.resize import resize
from mmref.validate.compare import compare
from mmref.validate.trace import trace_model

HEADS = ("fpn", "deeplabv3", "pspnet")
CASES = [f"seg_{head}_{shape}" for head in HEADS for shape in ("2x64x64", "1x97x131", "1x128x160")]
HEAD_CASES = [f"seg_{head}_head_1x448x38x45" for head in ("deeplabv3", "pspnet")]
LIMITS = {np.float64: 1e-10, np.float32: 5e-6}  # of the largest value, as the specification has them


@pytest.fixture(scope="module")
def nano():
    """{head: an untrained network on nano's backbone, every branch alive}."""
    return {head: lively(f"mobilemamba_nano_{head}") for head in HEADS}


# ------------------------------------------------------------------------------------------- published figures

def load(folder, name):
    """(figures, network in float32 as published, float32 input) of a golden file."""
    figures, head = np.load(folder / f"{name}.npz"), name.split("_")[1]
    shapes = json.loads((folder / f"state_dict_seg_{head}.json").read_text())
    params, seed = golden_files.synthetic(folder), int(figures["seed"])
    shape = figures["head_input_shape" if "_head_" in name else "input_shape"]
    model = load_parameters(resolve(f"mobilemamba_b4_{head}")[0], params.synthetic_state_dict(shapes, seed))
    return figures, model, params.synthetic_input(seed, tuple(shape))


def error(figures, name, array):
    """Largest error of samples, mean, deviation and maximum, over the largest magnitude."""
    assert array.shape == tuple(figures[f"{name}_shape"])
    flat, stats = array.ravel().astype(np.float64), figures[f"{name}_stats"]
    samples = flat[np.linspace(0, flat.size - 1, 32).astype(int)]
    mine = np.array([flat.mean(), flat.std(), np.abs(flat).max()])
    return max(np.abs(samples - figures[f"{name}_samples"]).max(), np.abs(mine - stats).max()) / stats[2]


@pytest.mark.parametrize("name", CASES + HEAD_CASES)
def test_published_figures(shared_golden, name):
    """Catches anything in the networks that differs from the published ones, and names the layer; dilations beyond the
    map in the cases of heads alone."""
    figures, model, x = load(shared_golden, name)
    for dtype, limit in LIMITS.items():
        for folded in (False, True):
            network = model.astype(dtype)
            network = network.fold_batchnorm() if folded else network
            taps = {}
            with recording(lambda layer, y, _, taps=taps: taps.__setitem__(layer, y)):
                result = (network.decode_head if "_head_" in name else network)(x.astype(dtype))
            wanted = [tap for tap in map(str, figures["taps"]) if not (folded and tap.endswith(".conv")
                                                                       and tap not in taps)]
            errors = {tap: golden_files.tap_error(figures, tap, taps[tap]) for tap in wanted}
            assert not {tap: value for tap, value in errors.items() if value > limit}
            assert error(figures, "logits", taps["decode_head.conv_seg"]) <= limit
            if "_head_" not in name:
                assert error(figures, "resized", result) <= limit
            if dtype == np.float64:
                assert np.array_equal(result.argmax(1), figures["argmax"])


@pytest.mark.parametrize("name", CASES + HEAD_CASES)
def test_published_figures_compiled(shared_golden, name):
    """Catches a kernel or plan of the compiled engine that computes something else, with real widths."""
    figures, model, x = load(shared_golden, name)
    compiled = CompiledModel(model, threads=2)
    if "_head_" in name:
        others = [np.zeros((1, width, 2, 2), np.float32) for width in model.config.backbone.widths[:2]]
        assert error(figures, "logits", compiled.forward_head([*others, x])) <= 1e-5
        return
    result = compiled(x)
    assert error(figures, "resized", result) <= 1e-5
    maps = compiled.forward_features(x)
    for stage, one in enumerate(maps, 1):
        assert golden_files.tap_error(figures, f"backbone.blocks{stage}", one) <= 1e-5
    assert error(figures, "logits", compiled.forward_head(maps)) <= 1e-5


@pytest.mark.parametrize("head", HEADS)
def test_parameter_names_and_shapes(shared_golden, head):
    """Catches a parameter under another name or shape than the published checkpoints have."""
    published = json.loads((shared_golden / f"state_dict_seg_{head}.json").read_text())
    published = {name: tuple(shape) for name, shape in published.items()
                 if not name.endswith("num_batches_tracked") and not name.startswith("auxiliary_head.")}
    assert expected_shapes(resolve(f"mobilemamba_b4_{head}")[0]) == published


def test_parameter_counts():
    """Catches a layer of another width: the counts that are published, fixed wavelet filters (52,224) included."""
    for head, millions in (("fpn", 19.76), ("deeplabv3", 22.99), ("pspnet", 20.56)):
        count = resolve(f"mobilemamba_b4_{head}")[0].build().parameter_count()
        assert round((count + 52_224) / 1e6, 2) == millions


# ---------------------------------------------------------------------------------------------------- PyTorch

picture_sides = st.sampled_from([1, 2, 15, 16, 17, 33, 64, 65, 97])


@given(seeds, st.sampled_from(HEADS), st.integers(1, 2), picture_sides, picture_sides)
@settings(max_examples=12)
@example(0, "fpn", 1, 1, 1)
@example(0, "deeplabv3", 1, 1, 1)
@example(0, "pspnet", 1, 1, 1)
@example(1, "fpn", 1, 33, 250)
@example(1, "pspnet", 2, 250, 33)
def test_networks_in_pytorch(nano, seed, head, batch, height, width):
    """Catches any size on which a text differs from PyTorch: rounding of sizes, maps of one pixel, exchanged sides."""
    torch = pytest.importorskip("torch")
    from torch_segmentation import Segmenter
    model = nano[head].astype(np.float64)
    twin = Segmenter("nano", head, 11).double().eval()
    state = {name: torch.from_numpy(array) for name, array in model.state_dict().items()}
    missing = twin.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    x = normal(seed, batch, 3, height, width, dtype=np.float64)
    with torch.no_grad():
        maps = twin.maps(torch.from_numpy(x))
        expected, logits = twin(torch.from_numpy(x)).numpy(), twin.decode(maps).numpy()
    assert_close(model(x), expected, 1e-11)
    assert_close(model.forward_head([one.numpy() for one in maps]), logits, 1e-11)


@given(seeds, st.sampled_from(["deeplabv3", "pspnet"]), st.integers(1, 44), st.integers(1, 44))
@settings(max_examples=8)
@example(0, "deeplabv3", 40, 44)
def test_heads_in_pytorch(nano, seed, head, height, width):
    """Catches a wrong dilation, which only maps larger than it can show."""
    torch = pytest.importorskip("torch")
    from torch_segmentation import Segmenter
    model = nano[head].astype(np.float64)
    twin = Segmenter("nano", head, 11).double().eval()
    twin.load_state_dict({name: torch.from_numpy(array) for name, array in model.state_dict().items()}, strict=False)
    x = normal(seed, 1, 160, height, width, dtype=np.float64)
    with torch.no_grad():
        expected = twin.decode_head(torch.from_numpy(x)).numpy()
    assert_close(model.decode_head(x), expected, 1e-11)


# ----------------------------------------------------------------------------------------------------- engine

@given(seeds, st.sampled_from(HEADS), st.integers(1, 5), picture_sides, picture_sides)
@settings(max_examples=12)
@example(0, "fpn", 1, 1, 1)
@example(0, "pspnet", 3, 33, 250)
@example(0, "deeplabv3", 5, 250, 33)
def test_compiled(nano, seed, head, batch, height, width):
    """Catches results that depend on the batch or the threads, to the last bit; a size that a plan was not made for."""
    model, x = nano[head], normal(seed, batch, 3, height, width)
    truth, tolerance = rounding(of_layer(model, x))
    compiled = CompiledModel(model, threads=2)
    result = compiled(x)
    assert_close(result, truth, tolerance, dtype=np.float32)
    assert np.array_equal(compiled(x[-1:]), result[-1:])
    assert np.array_equal(CompiledModel(model, threads=1)(x), result)
    alone = model(x[-1:])  # NumPy's matrix product may add up in another order
    assert_close(alone, truth[-1:], 2 * tolerance, dtype=np.float32)


def test_results_are_the_callers(nano):
    """Catches an earlier result overwritten by the next forward, and one that is kept alive: 150 MB for a picture."""
    import gc
    import weakref
    compiled, x = CompiledModel(nano["fpn"], threads=1), normal(0, 2, 3, 40, 30)
    first = compiled(x[:1])
    kept = first.copy()
    second = compiled(x[1:])
    assert np.array_equal(first, kept) and not np.shares_memory(first, second)
    gc.disable()
    try:
        gone = weakref.ref(second.base)
        del second
        assert gone() is None
    finally:
        gc.enable()


def test_empty_batch(nano):
    """Catches a batch of none that is refused or has another shape."""
    x = np.zeros((0, 3, 20, 30), np.float32)
    for model in (nano["pspnet"], CompiledModel(nano["pspnet"])):
        assert model(x).shape == (0, 11, 20, 30)


# ------------------------------------------------------------------------------------------------ the interface

@pytest.mark.parametrize("name", ["mobilemamba_nano_fpn", "mobilemamba_t4_deeplabv3", "mobilemamba_s6_pspnet"])
def test_other_backbones(name):
    """Catches a width of B's that stands where the backbone's belongs; classes and channels that are not handed on."""
    model = mmref.create_model(name, num_classes=4, in_chans=1, seed=0)
    x = normal(0, 1, 1, 40, 70)
    maps = model.forward_features(x)
    assert [one.shape[1] for one in maps] == list(model.config.backbone.widths)
    assert model(x).shape == (1, 4, 40, 70) and model(x).dtype == np.float32
    assert_close(model.fold_batchnorm()(x), model(x), 1e-4)
    intermediates = model.forward_intermediates(x, [-1], intermediates_only=True)
    assert np.array_equal(intermediates[0], maps[-1])


def test_arguments(nano):
    """Catches maps of another network, count or batch, and arrays of another dtype."""
    model = nano["fpn"]
    maps = model.forward_features(normal(0, 1, 3, 40, 70))
    for wrong, problem, message in ((maps[:2], ValueProblem, "list of 3 maps.*got list of 2"),
                                    (maps[0], ValueProblem, "got ndarray"), (maps[::-1], ShapeError, "64, height"),
                                    ([*maps[:2], np.repeat(maps[2], 2, 0)], ShapeError, "one batch")):
        with pytest.raises(problem, match=message):
            model.forward_head(wrong)
    with pytest.raises(ShapeError, match="float32"):
        model(np.zeros((1, 3, 8, 8)))
    with pytest.raises(ValueProblem, match="finite"):
        model(np.full((1, 3, 8, 8), np.inf, np.float32))


# ------------------------------------------------------------------------------------------------- checkpoints

def test_checkpoints_of_other_networks(nano):
    """Catches an error that does not say what the weights are and what they would fit."""
    classifier, segmenter = mmref.create_model("mobilemamba_nano", seed=0).state_dict(), nano["fpn"].state_dict()
    for name, weights, fits in (("mobilemamba_nano_fpn", classifier, "They fit mobilemamba_nano with num_classes=10."),
                                ("mobilemamba_nano", segmenter, "They fit mobilemamba_nano_fpn with num_classes=11."),
                                ("mobilemamba_nano_pspnet", segmenter, "They fit mobilemamba_nano_fpn with")):
        for classes in (None, 11):
            with pytest.raises(ParameterMismatch, match=fits):
                mmref.create_model(name, weights, num_classes=classes)
    with pytest.raises(ParameterMismatch, match="num_classes must be 11, which its head answers, got 7"):
        mmref.create_model("mobilemamba_nano_fpn", segmenter, num_classes=7)
    with pytest.raises(ValueProblem, match="num_classes must be an integer in 1"):
        mmref.create_model("mobilemamba_nano_fpn", segmenter, num_classes=0)
    half = {name: array for name, array in segmenter.items() if name != "decode_head.conv_seg.weight"}
    with pytest.raises(ParameterMismatch, match="missing decode_head.conv_seg.weight"):
        mmref.create_model("mobilemamba_nano_fpn", half)


def test_mmengine_files(nano, tmp_path, monkeypatch):
    """Catches a reader that needs mmengine, and the training's own head and buffers taken or dropped without a word."""
    torch = pytest.importorskip("torch")

    class HistoryBuffer:
        def __init__(self):
            self.values = np.arange(3.0)
    HistoryBuffer.__module__ = "mmengine.logging.history_buffer"
    for name in ("mmengine", "mmengine.logging", HistoryBuffer.__module__):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[HistoryBuffer.__module__].HistoryBuffer = HistoryBuffer
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    model = nano["pspnet"]
    state = {name: torch.from_numpy(array) for name, array in model.state_dict().items()}
    extra = {f"auxiliary_head.conv_seg.{name}": torch.zeros(11) for name in ("weight", "bias")}
    torch.save({"meta": {"epoch": 1, "mmengine_version": "0.10.4"}, "state_dict": state | extra,
                "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}},
                "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "param_schedulers": []}, tmp_path / "w.pth")
    for name in ("mmengine", "mmengine.logging", HistoryBuffer.__module__):
        monkeypatch.delitem(sys.modules, name)
    read = mmref.create_model("mobilemamba_nano_pspnet", tmp_path / "w.pth")
    assert all(np.array_equal(array, read.state_dict()[name]) for name, array in model.state_dict().items())
    assert "auxiliary_head.*, 2 tensors that only training needs, left alone" in read.notes


# ---------------------------------------------------------------------------------------- traces and comparisons

def planted(head, change):
    model = lively(f"mobilemamba_nano_{head}")
    change(model)
    return model


def dilation_left_out(model):
    model.decode_head.aspp_modules.children["1"].conv.dilation = 1


def bilinear_neck(model):
    class Neck(FPN):
        def forward(self, *maps):
            a, b, c = (conv(x) for conv, x in zip(self.lateral_convs.children.values(), maps, strict=True))
            b = b + resize(c, *b.shape[2:])
            a = a + resize(b, *a.shape[2:])
            return [conv(x) for conv, x in zip(self.fpn_convs.children.values(), (a, b, c), strict=True)]
    model.neck.__class__ = Neck


def another_eps(model):
    model.backbone.blocks2.children["1"].conv1.bn.eps = 1e-3


def another_final_resize(model):
    class Network(SemanticFPN):
        def forward(self, x):
            return resize(self.forward_head(self.forward_features(x)), *x.shape[2:], mode="nearest")
    model.__class__ = Network


@pytest.mark.parametrize("head, change, said", [
    ("deeplabv3", dilation_left_out, ("dilation", "decode_head.aspp_modules.1.conv")),
    ("fpn", bilinear_neck, ("resize", "neck")), ("pspnet", another_eps, ("bn-eps", "backbone.blocks2.1.conv1.bn")),
    ("fpn", another_final_resize, ("resize", "output"))])
def test_mistakes_are_found(nano, head, change, said):
    """Catches a comparison that cannot look into these networks, or blames another layer."""
    x = normal(0, 1, 3, 50, 70)
    reference = trace_model(nano[head].astype(np.float64), x)
    result = compare(reference, trace_model(planted(head, change), x), model=nano[head].astype(np.float64))
    assert said in [(found.key, found.layer) for found in result.diagnoses], result.diagnoses


def test_folded_is_the_same(nano):
    """Catches records of folded layers compared with those before their norm."""
    x = normal(0, 1, 3, 50, 70)
    reference = trace_model(nano["pspnet"].astype(np.float64), x)
    folded = trace_model(nano["pspnet"].fold_batchnorm(), x)
    result = compare(reference, folded)
    assert result.same and relative_error(folded.records["output"], reference.records["output"]) < 1e-4
    assert "decode_head.bottleneck.bn" in folded.records


def test_folding_leaves_what_a_user_changed():
    """Catches a module's own text in the place of a forward that a user gave it, without a word."""
    model, x = lively("mobilemamba_nano_pspnet"), normal(0, 1, 3, 50, 70)
    before, bottleneck = model(x), model.decode_head.bottleneck
    forward = bottleneck.forward
    bottleneck.forward = lambda x: forward(x) * 0.5
    expected = model(x)
    assert relative_error(before, expected) > 0.01
    assert relative_error(model.fold_batchnorm()(x), expected) < 1e-4


# -------------------------------------------------------------------------------------------------------- ONNX

@pytest.mark.parametrize("head", HEADS)
def test_exported(nano, head):
    """Catches a size of the traced picture in the graph, other coordinates in a runtime's resizes, and logits that are
    called otherwise for being a map."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from mmref.export.onnx import to_onnx
    proto = to_onnx(nano[head])
    output, = proto.graph.output
    dims = [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
    assert output.name == "logits" and dims == ["batch", 11, "height", "width"]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 1, 1), (2, 3, 33, 250), (1, 3, 130, 65)):
        x = normal(0, *shape)
        truth, tolerance = rounding(of_layer(nano[head], x))
        assert_close(session.run(None, {"input": x})[0], truth, tolerance, dtype=np.float32)
    options = onnxruntime.SessionOptions()       # the runtime looks otherwise at sizes that it knows beforehand
    for name, size in zip(("batch", "height", "width"), (1, 130, 65), strict=True):
        options.add_free_dimension_override_by_name(name, size)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert_close(session.run(None, {"input": x})[0], truth, tolerance, dtype=np.float32)
