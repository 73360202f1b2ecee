"""The exported graph equals the network, in two runtimes, at every size; what cannot be exported is refused."""

from __future__ import annotations

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from assertions import assert_close, of_layer, relative_error, rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import enliven, lively, seeds, variants
from test_graph import ODDITIES, Odd, OneLayer

import mmref
from mmref.cli import main
from mmref.errors import MissingBackend, NotTraceable, ShapeError, ValueProblem
from mmref.graph.trace import trace
from mmref.models.network import Network
from mmref.models.parameters import random_parameters
from mmref.models.variants import VARIANTS, Variant
from mmref.nn import functional as F
from mmref.nn import resize as R
from mmref.nn import tokens
from mmref.nn.layer import Conv2d, ConvBN, LayerNorm, Linear, Sequential, Sigmoid
from mmref.nn.operation import OPERATIONS, operation
from mmref.nn.paths import BACKWARDS, ORDERS
from mmref.nn.recurrence import selective_scan
from mmref.nn.scan_order import cross_merge, cross_scan
from mmref.nn.ss2d import SS2D, project
from mmref.nn.transposed import conv_transpose2d
from mmref.nn.wavelet import add_to_low_low, analysis, low_low, synthesis

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from mmref.export.onnx import export_onnx, metadata, to_onnx  # noqa: E402
from mmref.export.verify import OPENERS, ROUNDING, TOLERANCE, verify  # noqa: E402

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


def shape(value):
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


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


def newest_opset():
    """The newest operation set up to 23 that the packages at hand write and run: 21 with the oldest that pip takes."""
    for opset in range(min(onnx.defs.onnx_opset_version(), 23), 17, -1):
        value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", value[:1], value[1:])
        proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
        try:
            onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:  # onnxruntime's own kinds of error
            continue
        return opset
    raise AssertionError("no operation set beyond 17 runs")


NEWEST = newest_opset()


@pytest.mark.parametrize("opset", [18, 20, 21, NEWEST])
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
    again, first = to_onnx(model.fold_batchnorm()), onnx.load(path)
    assert [node.op_type for node in again.graph.node] == [node.op_type for node in first.graph.node]
    x = picture(2, 3, 40, 33)
    assert all(np.array_equal(a, b) for a, b in zip(run(again, x), run(first, x), strict=True))
    assert not model.folded
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


def test_names_and_types(nano):
    """Parameters lost under invented names, or computed ones under parameters' names; float64 in the graph, symbols for
    the free sizes gone; a value named after a layer whose result it is not."""
    model, path = nano
    graph, folded = onnx.load(path).graph, model.fold_batchnorm()
    scan = ("A_logs", "Ds", "x_proj_weight", "dt_projs_weight", "dt_projs_bias")  # kept transposed, a direction each
    parameters = {t.name: onnx.numpy_helper.to_array(t) for t in to_onnx(folded).graph.initializer}
    assert {name for name in folded.state_dict() if not name.endswith(scan)} <= set(parameters)
    parameters = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    kept = [name for name in parameters if name in model.state_dict()]
    assert len(kept) > 50 and all(np.array_equal(parameters[name], model.state_dict()[name]) for name in kept)
    assert {f"{block}.local_op.bn1/weight" for block in ("blocks1.0.mixer.m.attn", "blocks3.4.mixer.m.attn")} \
        | {"blocks1.0.dw0.m/weight", "head.l/bias", "blocks2.3.mixer.m.attn.global_op.global_atten.Ds[1]"} \
        <= set(parameters)
    values = {node.name for node in graph.node}
    assert {"blocks1.0.dw0.m/Conv", "blocks1.0.mixer.m.attn.local_op.bn1/Conv", "blocks1.0.mixer.m.attn.local_op/Conv",
            "blocks3.1.conv1/Conv", "head.l/Gemm"} <= values
    assert {t.data_type for t in graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert [(v.name, shape(v)) for v in graph.input] == [("input", ["batch", 3, "height", "width"])]
    assert [(v.name, shape(v)) for v in graph.output] == [("logits", ["batch", 10])]
    assert {node.op_type for node in graph.node} >= {"Scan", "LayerNormalization", "ConvTranspose"}


@pytest.mark.parametrize("name, side", [("mobilemamba_b1_ssdlite", "320"), ("mobilemamba_nano_fpn", None)])
def test_metadata_of_dense_networks(name, side):
    """Catches metadata that only a classifier's transform has: an AttributeError, or a method written as a size."""
    model = mmref.create_model(name)
    props = metadata(model)
    assert props["img_size"] == (side or str(model.config.img_size))
    assert type(model.transform).from_dict(json.loads(props["transform"])) == model.transform


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


# ------------------------------------------------------------------------------------- any network, any operation

CALLS = {  # each operation by itself, on a map (B, 8, H, W); `a` makes parameters
    "conv2d": lambda x, a: F.conv2d(x, a(6, 4, 3, 5), a(6), stride=2, padding=2, groups=2),
    "depthwise_conv2d": lambda x, a: F.depthwise_conv2d(x, a(8, 1, 2, 3), padding=1),
    "depthwise_conv_transpose2d": lambda x, a: F.depthwise_conv_transpose2d(x, a(8, 1, 3, 2), groups=2, stride=2,
                                                                            padding=1),
    "batch_norm": lambda x, a: F.batch_norm(x, a(8), a(8), a(8), a(8) ** 2, 1e-3),
    "layer_norm_channels": lambda x, a: F.layer_norm_channels(x, a(8), a(8), 1e-3),
    "linear": lambda x, a: F.linear(F.global_average_pool(x), a(5, 8), a(5)),
    "relu": lambda x, a: F.relu(x), "sigmoid": lambda x, a: F.sigmoid(x), "silu": lambda x, a: F.silu(x),
    "softplus": lambda x, a: F.softplus(30 * x), "add": lambda x, a: x + a(8, 1, 1),
    "multiply": lambda x, a: x * F.global_average_pool(x, keep_axes=True),
    "global_average_pool": lambda x, a: F.batch_norm(F.global_average_pool(x), a(8), a(8), a(8), a(8) ** 2),
    "slice_axis": lambda x, a: [x[:, 1:6:2], x[:, :3], x[:, 3:], x[:, 5:], x[:, :, 1:], x[:, ::3, ::2, 2:]],
    "concatenate": lambda x, a: [F.concatenate(x, F.relu(x), axis=axis) for axis in (1, 2, 3)],
    "analysis": lambda x, a: analysis(x, a(32, 1, 4, 4)),
    "synthesis": lambda x, a: synthesis(analysis(x, a(32, 1, 2, 2)), a(32, 1, 6, 6), *x.shape[2:]),
    "low_low": lambda x, a: low_low(x),
    "add_to_low_low": lambda x, a: add_to_low_low(x, F.relu(low_low(x))),
    "cross_scan": lambda x, a: cross_scan(x, ("rows", "windows 3 backwards", "columns")),
    "cross_merge": lambda x, a: cross_merge(cross_scan(x, "atrous") * a(4, 8, 1), "atrous", *x.shape[2:]),
    "project": lambda x, a: project(a(2, 3, 8), cross_scan(x)),
    "selective_scan": lambda x, a: scanned(cross_scan(x, "cross"), a, 5),
    "gelu": lambda x, a: [tokens.gelu(3 * x), tokens.gelu(cross_scan(x))],
    "rms_norm_channels": lambda x, a: tokens.rms_norm_channels(x, a(8), 1e-3),
    "causal_conv": lambda x, a: tokens.causal_conv(cross_scan(x, ("rows", "windows 3")), a(2, 8, 4), a(2, 8)),
    "rotary": lambda x, a: tokens.rotary(F.global_average_pool(x, keep_axes=True), a(1, 8, 1, 1), a(1, 8, 1, 1)),
    "pad_to_multiple": lambda x, a: tokens.pad_to_multiple(x, 3),
    "relu6": lambda x, a: F.relu6(8 * x),
    "resize": lambda x, a: [R.resize(y, *x.shape[2:], mode=mode) for mode in ("bilinear", "nearest")
                            for y in (x, R.resize(x, 5, 17), F.conv2d(x, a(3, 8, 3, 3), stride=2, padding=1))],
    "upsample": lambda x, a: [R.upsample(x, 2), R.upsample(x, 3, mode="nearest"), R.upsample(x, 1)],
    "adaptive_average_pool": lambda x, a: [R.adaptive_average_pool(x, 2, 6), R.adaptive_average_pool(
        R.resize(x, 7, 9), 3, 4), R.adaptive_average_pool(F.conv2d(x, a(3, 8, 3, 3), dilation=1, stride=3), 6, 1)],
    "conv_transpose2d": lambda x, a: [conv_transpose2d(x, a(8, 3, 2, 3), a(3), stride=2, padding=1),
                                      conv_transpose2d(x, a(8, 5, 2, 2), stride=2)],
    "flatten": lambda x, a: F.flatten(F.relu(x)),
    "max_pool2d": lambda x, a: [R.max_pool2d(x - 9.0, 3, stride=2, padding=1), R.max_pool2d(x, 1, stride=2)],
}


def scanned(u, a, states):
    """Sequences of 8 channels scanned with coefficients of their own."""
    K, u = u.shape[1], F.sigmoid(u)
    delta = F.softplus(project(a(K, 8, 8), u))
    return selective_scan(u, delta, -np.exp(a(K, 8, states)), *(project(a(K, states, 8), u) for _ in range(2)), a(K, 8))


class Written(Network):
    """A network whose layer's text is `call(x, a)`; a(*shape) are parameters of a seed."""

    def __init__(self, call, seed=0):
        super().__init__(SimpleNamespace(name="written", img_size=8, in_chans=8, num_classes=0))
        self.call, self.seed, self.layer = call, seed, Odd(self.text)
        self.name_layers()

    def forward(self, x):
        return self.layer(x)

    def text(self, x):
        rng = np.random.default_rng(self.seed)
        return self.call(x, lambda *shape: rng.standard_normal(shape).astype(x.dtype))


def run(proto, *arrays):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], arrays, strict=True)))


def check_same(model, proto, *pictures):
    """The graph's results are the text's, as near as float32 comes to float64, in one session for all pictures."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in pictures:
        truths, own = (flat(each(x.astype(dtype))) for each, dtype in ((model.astype(np.float64), np.float64),
                                                                      (model, np.float32)))
        results = session.run(None, {session.get_inputs()[0].name: x})
        for result, truth, mine in zip(results, truths, own, strict=True):
            assert_close(result, truth, max(TOLERANCE, ROUNDING * relative_error(mine, truth)), dtype=np.float32)


def flat(result):
    return [part for inner in result for part in flat(inner)] if isinstance(result, (list, tuple)) else [result]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation(name):
    """An operation that has no emitter, or one that is right only in the company that MobileMamba gives it; a size that
    was fixed as the text was traced."""
    model = Written(CALLS[name])
    assert name in {node.name for node in trace(model.forward, model, (1, 8, 8, 8))}
    check_same(model, to_onnx(model), picture(3, 8, 9, 6), picture(1, 8, 16, 21), picture(2, 8, 7, 4))


def test_one_value_in_two_layouts():
    """Parts that were split off in one layout handed on as if they stood in another."""
    def read_twice(x, a):
        u = cross_scan(x, "cross")
        first, normed, rest = u[:, :, :3], F.batch_norm(u, a(4), a(4), a(4), np.abs(a(4))), u[:, :, 3:]
        return [first, normed, rest, F.concatenate(F.relu(rest), first, axis=2)]
    model = Written(read_twice)
    check_same(model, to_onnx(model), picture(2, 8, 4, 5))


def test_what_is_empty_is_left_out():
    """Values without elements, which many runtimes refuse: those of a block whose channels leave no identity."""
    config = Variant(**{**vars(SMALL), "global_ratio": (0.8,) * 3, "local_ratio": (0.5,) * 3})
    model = enliven(random_parameters(config))
    proto = to_onnx(model)
    lengths = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    splits = [lengths[node.input[1]] for node in proto.graph.node if node.op_type == "Split"]
    assert len(splits) > 15 and all(split.min() > 0 for split in splits)
    check_same(model, proto, picture(2, 3, 40, 33))


class AnyDtype(OneLayer):
    """One that does not look at its input's dtype: without parameters it has none of its own."""

    def forward(self, x):
        return self.layer(x)


FOR_ONE_SIZE = ("slices of pixels", "constant map", "sequences and maps", "maps and sequences", "linear of a whole map",
                "linear of a joined map")        # they compute with sizes, or have a constant that goes with one only


@pytest.mark.parametrize("name", ODDITIES)
def test_oddities(name):
    """Operations in other company than MobileMamba's: shared results, broadcasting, joins of joins."""
    layer, rng = ODDITIES[name](), np.random.default_rng(1)
    for _, owner, parameter in layer.named_parameters():
        value = owner.initial(parameter, rng) + 0.3 * rng.standard_normal(owner.shapes[parameter])
        setattr(owner, parameter, (np.abs(value) if parameter == "running_var" else value).astype(np.float32))
    model, fixed = AnyDtype(layer), name in FOR_ONE_SIZE
    model.config.img_size = 9
    if fixed:
        with pytest.raises((NotTraceable, ShapeError),
                           match="'layer' computes with the size.*fixed|to go with x|equal shapes"):
            to_onnx(model)
    check_same(model, to_onnx(model, fixed=(9, 6) if fixed else None), picture(2, 8, 9, 6),
               *() if fixed else (picture(1, 8, 4, 17),))


DIRECTIONS = ["rows", "columns", "windows 1", "windows 2", "windows 3", "windows 7", *ORDERS["atrous"]]
orders = st.sampled_from([*ORDERS]) | st.lists(
    st.tuples(st.sampled_from(DIRECTIONS), st.sampled_from(["", BACKWARDS])).map("".join), min_size=1, max_size=5,
    ).map(tuple)


sizes = st.lists(st.tuples(*[st.integers(1, 20)] * 2), min_size=2, max_size=3)


@given(seeds, orders, st.sampled_from((1, 2, 16)), sizes)
@settings(max_examples=15)
def test_scans_in_any_order(seed, order, states, sizes):
    """A direction read off or laid back in another order than paths.py says; windows and rows that end elsewhere than
    the map; states or directions mixed up."""
    def scan(x, a):
        u = cross_scan(x, order)
        return cross_merge(scanned(u, a, states), order, *x.shape[2:])
    model = Written(scan, seed)
    check_same(model, to_onnx(model), *(picture(1 + i, 8, *size, seed=seed) for i, size in enumerate(sizes)))


ORDER = ("rows", "columns backwards", "windows 2")
MAPS = [lambda y, z, u, a: F.silu(y), lambda y, z, u, a: y + z * a(1, 8, 1, 1), lambda y, z, u, a: y,
        lambda y, z, u, a: F.concatenate(y[:, 3:], z[:, :3]), lambda y, z, u, a: F.layer_norm_channels(y, a(8), a(8)),
        lambda y, z, u, a: y * F.sigmoid(F.global_average_pool(z, True)),
        lambda y, z, u, a: cross_merge(u, ORDER, *y.shape[2:])]
SEQUENCES = [lambda u, v, a: F.sigmoid(u), lambda u, v, a: u + a(1, 3, 8, 1) * v, lambda u, v, a: scanned(u, a, 2),
             lambda u, v, a: F.concatenate(u[:, :, 5:], v[:, :, :5], axis=2), lambda u, v, a: project(a(3, 8, 8), u),
             lambda u, v, a: F.concatenate(u[:, 1:], v[:, :1])]


def random_text(x, a, rng, steps=14):
    """A text of random operations on maps and sequences, whatever is at hand; all that it makes is its result."""
    maps, sequences = [x], [cross_scan(x, ORDER)]

    def some(values):
        return values[rng.integers(len(values))]
    for _ in range(steps):
        if rng.integers(2):
            maps.append(some(MAPS)(some(maps), some(maps), some(sequences), a))
        else:
            sequences.append(some(SEQUENCES)(some(sequences), some(sequences), a))
            sequences.append(cross_scan(some(maps), ORDER))
    return maps[1:] + sequences


@given(seeds)
@settings(max_examples=12)
def test_random_texts(seed):
    """A value that another reader has in another layout; a split that is used by two layouts; shared constants."""
    model = Written(lambda x, a: random_text(x, a, np.random.default_rng(seed)), seed)
    check_same(model, to_onnx(model), picture(2, 8, 5, 6, seed=seed), picture(1, 8, 8, 3, seed=seed))


@given(seeds, variants(), st.lists(st.tuples(st.integers(1, 4), *[st.integers(1, 90)] * 2), min_size=2, max_size=2))
@settings(max_examples=8)
def test_any_small_network(seed, config, shapes):
    """A width, order, number of states, wavelet or number of levels that is exported otherwise than the text has it."""
    model = enliven(random_parameters(config, seed))
    check_same(model, to_onnx(model), *(picture(batch, config.in_chans, *size, seed=seed) for batch, *size in shapes))


class Tiny(Network):
    """A network of one's own: a scan over the pixels beside a convolution, twice, and a head."""

    def __init__(self):
        super().__init__(SimpleNamespace(name="tiny", img_size=24, in_chans=2, num_classes=3))
        self.stem, self.norm, self.head = ConvBN(2, 16, 3, 2), LayerNorm(16), Linear(16, 3)
        self.scans = Sequential(*(SS2D(16, d_state=n, order=order) for n, order in ((1, "cross"), (3, ("windows 4",)))))
        self.conv = Conv2d(16, 16, 5, groups=16, bias=True)
        self.name_layers()
        rng = np.random.default_rng(3)
        for _, layer, name in self.named_parameters():
            setattr(layer, name, layer.initial(name, rng).astype(np.float32))

    def forward(self, x):
        self.check_input(x)
        x = F.relu(self.stem(x))
        for scan in self.scans.children.values():
            x = x + scan(self.norm(x)) * F.sigmoid(self.conv(x))
        return self.head(F.global_average_pool(x))


def test_a_network_of_ones_own():
    """A network that is not MobileMamba refused, or called otherwise; numbers of its own fixed into the graph."""
    model = Tiny()
    for opset in (17, NEWEST):
        proto = to_onnx(model, opset)
        check_same(model, proto, picture(2, 2, 24, 24), picture(1, 2, 13, 50), picture(3, 2, 1, 1))
    assert [(value.name, *shape(value)) for value in proto.graph.output] == [("logits", "batch", 3)]
    assert {prop.key for prop in proto.metadata_props} == {"model", "mmref_version"}


def test_a_changed_model_is_exported_as_changed():
    """A layer exchanged by the user, or a subclass's text, passed over for what the configuration or the class says."""
    class Bounded(ConvBN):
        def forward(self, x):
            return F.sigmoid(super().forward(x))
    model, x = lively(), picture(2, 3, 40, 70)
    before = model(x)
    setattr(model.patch_embed, "1", Sigmoid())
    model.blocks1.children["0"].ffn0.m.pw1.__class__ = Bounded
    assert np.abs(model(x) - before).max() > 0.1 * np.abs(before).max()
    assert_close(run(to_onnx(model), x)[0], *rounding(of_layer(model, x)), dtype=np.float32)


def test_several_results_and_inputs():
    """Results in another order or of other sizes than the text returns them; inputs mistaken for each other."""
    model, x = lively(), picture(2, 3, 70, 45)
    proto = to_onnx(model, function=lambda model, x: model.forward_intermediates(x))
    assert [value.name for value in proto.graph.output] == [f"output_{i}" for i in range(5)]
    assert [shape(value) for value in proto.graph.output][:2] == [["batch", 160, 0, 0], ["batch", 64, 0, 0]]
    assert [array.shape for array in run(proto, x)] == [array.shape for array in flat(model.forward_intermediates(x))]
    for result, expected in zip(run(proto, x), flat(model.forward_intermediates(x)), strict=True):
        assert_close(result, expected, TOLERANCE)
    features = to_onnx(model, function=type(model).forward_features)
    assert_close(run(features, x)[0], model.forward_features(x), TOLERANCE)
    two = to_onnx(model, inputs={"a": ("n", 3, "height", "width"), "features": ("n", 3, "height", "width")},
                  function=lambda model, a, b: (a + 2 * b, b))
    results = run(two, x, x + 1)
    assert np.array_equal(results[0], 3 * x + 2) or np.allclose(results[0], x + 2 * (x + 1))
    assert np.array_equal(results[1], x + 1)
    assert [shape(value) for value in two.graph.output] == [["n", 3, "height", "width"]] * 2


@pytest.mark.parametrize("call", [
    lambda x, a: x[:, :, :x.shape[2] // 2], lambda x, a: x + a(1, 8, *x.shape[2:]), lambda x, a: x[:, :, :-1],
    lambda x, a: F.depthwise_conv2d(x, a(8, 1, 1, 1), padding=x.shape[2]),
    lambda x, a: x if x.shape[3] > 100 else F.relu(x), lambda x, a: synthesis(x, a(8, 1, 2, 2), 2 * x.shape[2], 16)])
def test_sizes_that_the_text_computes_with(call):
    """A size of the traced picture fixed into a graph whose sizes are called free: other pictures would come out wrong
    without a word."""
    model = Written(call)
    with pytest.raises(NotTraceable, match=r"layer 'layer' computes with the size.*fixed=\(height, width\)"):
        to_onnx(model)
    proto = to_onnx(model, fixed=(8, 8))
    check_same(model, proto, picture(1, 8, 8, 8), picture(3, 8, 8, 8))
    assert shape(proto.graph.input[0]) == ["batch", 8, 8, 8]


def test_what_cannot_be_exported():
    """A silent fall-back for what ONNX is not told of; an error that does not say which operation and which layer."""
    @operation(lambda x: x.shape, registry={})
    def relu(x):  # not mmref's, though of the same name
        return np.cbrt(x)

    @operation(lambda x: x.shape, registry={})
    def cube(x):
        return x * x * x
    for function, match in ((relu, "patch_embed.1.*'relu', a name that backends"), (np.tanh, "patch_embed.1.*tanh"),
                            (cube, "'cube', which layer 'patch_embed.1' uses")):
        model = lively()
        setattr(model.patch_embed, "1", Odd(function))
        with pytest.raises(NotTraceable, match=match):
            to_onnx(model)
    with pytest.raises(ValueProblem, match="create_model"):
        to_onnx(lambda x: x)
    model = Written(lambda x, a: F.relu(x))
    with pytest.raises(NotTraceable, match="computes 'A' of operation 'selective_scan' from the network's input"):
        to_onnx(model, inputs={"u": (2, 1, 8, 5), "A": (1, 8, 2)}, function=lambda model, u, A: selective_scan(
            u, u, A, u[:, :, :2], u[:, :, :2], np.ones((1, 8), np.float32)))
    for options in (dict(fixed=(0, 3)), dict(fixed=5), dict(fixed=(3, 3), inputs={"x": ("n", 8, 3, 3)}),
                    dict(inputs={"x": ("n", "channels", 3, 3)}), dict(inputs={"x": ("n", 8, -3, 3)}),
                    dict(inputs={}), dict(inputs=[("n", 8, 3, 3)]), dict(inputs={"": ("n", 8, 3, 3)}),
                    dict(inputs={"x": 3}), dict(function=3), dict(function=lambda model, x: [])):
        with pytest.raises(ValueProblem, match=" must "):
            to_onnx(model, **options)


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


@pytest.mark.skipif(tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 22),
                    reason="float16 tools of ONNX Runtime 1.20 leave constants of two types beside each other")
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
