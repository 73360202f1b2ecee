"""A network's graph: traced from its text, rewritten by passes, and what the compiled engine makes of any network."""

from __future__ import annotations

import io
import operator
import tokenize
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from assertions import assert_close, of_layer, rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import enliven, lively, normal, seeds, variants

import mmref
from mmref.engine import CompiledModel
from mmref.errors import NotTraceable, ShapeError, ValueProblem
from mmref.graph import passes
from mmref.graph.fused import FUSED
from mmref.graph.graph import Constant
from mmref.graph.trace import Constants, Extent, plain, resized, trace
from mmref.models.mobilemamba import Block
from mmref.models.network import Network
from mmref.models.parameters import expected_shapes, random_parameters
from mmref.models.variants import VARIANTS
from mmref.nn import functional as F
from mmref.nn import tokens
from mmref.nn.layer import Conv2d, ConvBN, Layer, Linear, Residual, Sequential, Sigmoid
from mmref.nn.operation import OPERATIONS, operation
from mmref.nn.resize import adaptive_average_pool, max_pool2d, resize, upsample
from mmref.nn.scan_order import cross_merge, cross_scan
from mmref.nn.transposed import conv_transpose2d
from mmref.nn.wavelet import analysis, filter_bank, synthesis

ROOT = Path(mmref.__file__).parent


# ---------------------------------------------------------------------------------------------------- tracing

@pytest.mark.parametrize("options", [{}, dict(scan_order="cross", d_state=4, wavelet="db2", wavelet_levels=2),
                                     dict(scan_order="atrous", num_classes=0, in_chans=1)])
@pytest.mark.parametrize("folded", [False, True])
def test_the_graph_is_the_text(options, folded):
    """Catches an operation recorded with other operands, attributes or order than it was called with."""
    model = mmref.create_model("mobilemamba_nano", **options)
    model = model.fold_batchnorm() if folded else model
    x = normal(0, 2, model.config.in_chans, 45, 70)
    graph = trace(model.forward, model, x.shape)
    assert np.array_equal(graph.run(x), model(x))
    assert {node.name for node in graph} <= {"input", *OPERATIONS}
    assert all(node.layer for node in graph if node.operation and node.name != "global_average_pool")


def test_structure_of_the_result():
    """Catches outputs in another order or nesting than the text returns them."""
    model = lively()
    x = normal(1, 1, 3, 64, 64)
    last, maps = trace(model.forward_intermediates, model, x.shape).run(x)
    expected, expected_maps = model.forward_intermediates(x)
    assert np.array_equal(last, expected) and len(maps) == 4
    assert all(np.array_equal(a, b) for a, b in zip(maps, expected_maps, strict=True))


def test_constants_are_known_again():
    """Catches parameters that get another key in the trace of another shape: they would be packed twice."""
    model = lively(scan_order="cross", d_state=3)
    constants = Constants(model)
    keys = [[constant.key for node in passes.fused(trace(model.forward, model, shape, constants=constants))
             for constant in node.constants()] for shape in ((1, 3, 64, 64), (1, 3, 33, 80))]
    assert keys[0] == keys[1] and len(set(keys[0])) > 150
    names = {constant.name for node in trace(model.forward, model, (1, 3, 32, 32)) for constant in node.constants()}
    reshaped = ("A_logs", "Ds", "dt_projs_bias")  # by the text, on its way into the graph
    assert all(name.endswith(reshaped) for name in set(model.state_dict()) - names)


def test_sizes_remember_where_they_come_from():
    """Catches a height or width that enters an attribute as a mere number: an export with free sizes would fix it."""
    model = lively()
    graph = trace(model.forward, model, (1, 3, 70, 90))
    for node in graph:
        if node.name in ("cross_merge", "synthesis"):
            height, width = node.attributes["height"], node.attributes["width"]
            assert isinstance(height, Extent) and isinstance(width, Extent)
            assert (height.axis, width.axis) == (2, 3) and height.node.shape[2:] == (height.value, width.value)


def described(graph):
    """What a graph is, in plain values that can be compared."""
    number = {node: i for i, node in enumerate(graph)}
    return [(node.name, node.layer, node.shape, plain(node.attributes),
             {name: value.key if isinstance(value, Constant) else number[value] for name, value in
              node.operands.items()}) for node in graph], [number[node] for node in graph.outputs]


@given(variants(), *[st.tuples(st.integers(1, 400), st.integers(1, 99))] * 2)
@settings(max_examples=15)
def test_resized_is_traced_anew(config, first, second):
    """Catches a size that stays that of the first trace: plans of other shapes are made from it."""
    model = random_parameters(config)
    constants = Constants(model)
    graph, other = (trace(model.forward, model, (1, config.in_chans, *size), constants=constants)
                    for size in (first, second))
    assert graph.fixed_by is None
    for prepare in (lambda graph: graph, passes.fused):
        assert described(resized(prepare(graph), (1, config.in_chans, *second))) == described(prepare(other))


@pytest.mark.parametrize("text", [
    lambda x: x * float(x.shape[2]), lambda x: x + np.zeros((1, 1, *x.shape[2:]), np.float32),
    lambda x: x if x.shape[2] > 20 else x * 2.0, lambda x: x * float(sum(1 for _ in range(x.shape[3]))),
    lambda x: x * {15: 1.0}.get(x.shape[2], 3.0), lambda x: x + np.linspace(0, 1, x.shape[3], dtype=np.float32),
    lambda x: x[:, :, :x.shape[2] // 2]])
def test_text_that_computes_with_the_size(text):
    """Catches a graph of one size that is used for another, because the text looked at the size unnoticed."""
    model = lively()
    setattr(model.patch_embed, "1", Odd(text))
    compiled = CompiledModel(model)
    for size in ((30, 44), (61, 40), (30, 90)):
        x = normal(1, 2, 3, *size)
        truth, tolerance = rounding(of_layer(model, x))
        assert_close(compiled(x), truth, tolerance, dtype=np.float32)
    frozen = model.frozen()
    assert trace(frozen.forward, frozen, (1, 3, 64, 64)).fixed_by == "patch_embed.1"


@pytest.mark.parametrize("text", [lambda x: x * float(len(x)), lambda x: x * float(x.shape[0]), lambda x: x[:1],
                                  lambda x: F.concatenate(x, x, axis=0)])
def test_text_that_mixes_the_batch(text):
    """Catches samples that an engine, which runs them one by one, would compute otherwise than the text."""
    model = lively()
    setattr(model.patch_embed, "1", Odd(text))
    with pytest.raises(NotTraceable, match="patch_embed.1.*batch"):
        CompiledModel(model)(normal(1, 2, 3, 30, 30))


class Odd(Layer):
    """A layer whose forward is whatever it is given."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("function, what", [
    (np.tanh, "numpy.tanh"), (lambda x: np.concatenate([x, x], 1), "numpy.concatenate"), (np.asarray, "NumPy"),
    (lambda x: x if x.mean() > 0 else -x, ".mean"), (lambda x: x[:, ::-1], "slice"), (lambda x: x[:, 0], "index 0"),
    (lambda x: x * (x > 0), ">"), (lambda x: x * 2.0 if x == 0 else x, "=="), (lambda x: x / 2, "/"),
    (lambda x: x ** 2, "\\*\\*"), (lambda x: operator.iadd(x, 1.0), "\\+="), (lambda x: sum(x), "iteration"),
    (lambda x: operator.setitem(x, 0, 1.0), "assignment")])
def test_what_cannot_be_traced(function, what):
    """Catches a backend that computes something else than a text it does not understand, and an error that does not say
    which layer it is."""
    model = lively()
    setattr(model.patch_embed, "1", Odd(function))
    with pytest.raises(NotTraceable, match=f"patch_embed.1.*{what}"):
        CompiledModel(model)(normal(0, 1, 3, 32, 32))


def test_an_operation_without_a_kernel_is_named():
    """Catches a silent fall-back for operations that the engine does not have."""
    @operation(lambda x: x.shape, registry={})
    def cube(x):
        return x * x * x
    model = lively()
    setattr(model.patch_embed, "1", Odd(cube))
    with pytest.raises(NotTraceable, match="'numba'.*'cube'.*patch_embed.1"):
        CompiledModel(model)(normal(0, 1, 3, 32, 32))


def test_the_names_of_our_operations_are_ours():
    """Catches a user's operation computed as ours of that name, by passes and kernels that go by names."""
    def relu(x):
        return -x
    with pytest.raises(ValueProblem, match="'relu' is there already, that of mmref.nn.functional"):
        operation(lambda x: x.shape)(relu)
    assert OPERATIONS["relu"] is F.relu
    for name in ("relu", "gate", "input"):
        model = lively()
        setattr(model.patch_embed, "1", Odd(operation(lambda x: x.shape, name, registry={})(relu)))
        with pytest.raises(NotTraceable, match=f"patch_embed.1.*'{name}'.*choose another"):
            CompiledModel(model)(normal(0, 1, 3, 32, 32))


def test_a_definition_may_be_run_again():
    """Catches a notebook's cell that fails the second time."""
    for _ in range(2):
        @operation(lambda x: x.shape, "of a cell")
        def cell(x):
            return x
    assert OPERATIONS.pop("of a cell") is cell


@pytest.mark.parametrize("call", [
    lambda x: F.conv2d(cross_scan(x, "cross"), np.zeros((2, 4, 1, 1), np.float32)),
    lambda x: cross_merge(x, ("rows",) * 8, 2, 3), lambda x: F.global_average_pool(cross_scan(x, "cross")),
    lambda x: F.concatenate(x, cross_scan(x[:, :, :1], ("rows",) * 8))])
def test_sequences_are_no_maps(call):
    """Catches rows of one thing read as if they were another's: results of the right shape, and wrong."""
    model = OneLayer(Odd(call))
    with pytest.raises(NotTraceable, match="'numba'.*sequences.*layer 'layer'"):
        CompiledModel(model)(normal(0, 1, 8, 8, 6))


@pytest.mark.parametrize("call", [
    lambda x: F.conv2d(x, np.zeros((2, 4, 1, 1), np.float32)), lambda x: F.linear(x, np.zeros((2, 3), np.float32)),
    lambda x: x + np.zeros((1, 2, 1, 1), np.float32), lambda x: F.concatenate(x, x[:, :, :1]),
    lambda x: F.conv2d(x, np.zeros((2, 3, 1, 1), np.float64))])
def test_shapes_are_checked_while_tracing(call):
    """Catches a graph of arrays that do not fit together: NumPy refuses them, and kernels would read elsewhere."""
    model = lively()
    with pytest.raises(ShapeError):
        trace(call, model, (1, 3, 8, 8))


@given(seeds, st.integers(0, 2), st.sampled_from([1, 2, 5]), st.sampled_from([1, 2, 7]), st.sampled_from([1, 4, 9]))
@settings(max_examples=25)
def test_every_shape_rule_is_the_shape_of_the_result(seed, batch, channels, height, width):
    """Catches a shape rule that promises another shape than the operation gives: traces believe it."""
    def a(*shape):
        return normal(seed, *shape)
    x, C = a(batch, channels, height, width), channels
    bank = np.tile(filter_bank("db2")[0][:, None], (C, 1, 1, 1))
    vector, K = a(C), 2
    u, L = a(batch, K, C, height * width), height * width
    calls = [(F.conv2d, (x, a(3, C, 3, 3), a(3)), dict(padding=1, stride=2)), (F.relu, (x,), {}), (F.silu, (x,), {}),
             (F.depthwise_conv2d, (x, a(C, 1, 3, 3)), dict(padding=2)), (F.sigmoid, (x,), {}), (F.softplus, (x,), {}),
             (F.batch_norm, (x, vector, vector, vector, np.abs(vector)), {}), (F.add, (x, a(1, C, 1, 1)), {}),
             (F.layer_norm_channels, (x, vector, vector), {}), (F.multiply, (a(batch, C, 1, 1), x), {}),
             (F.linear, (a(batch, C), a(4, C), a(4)), {}), (F.global_average_pool, (x,), dict(keep_axes=True)),
             (F.global_average_pool, (x,), {}), (F.slice_axis, (x, 2, 0, height, 2), {}), (analysis, (x, bank), {}),
             (F.concatenate, (x, x), dict(axis=3)), (synthesis, (analysis(x, bank), bank, height, width), {}),
             (OPERATIONS["low_low"], (analysis(x, bank),), {}), (OPERATIONS["cross_scan"], (x, "atrous"), {}),
             (OPERATIONS["add_to_low_low"], (analysis(x, bank), analysis(x, bank)[:, ::4]), {}),
             (OPERATIONS["cross_merge"], (u, "bidirectional", height, width), {}),
             (OPERATIONS["project"], (a(K, 3, C), u), {}),
             (OPERATIONS["selective_scan"], (u, np.abs(u), a(K, C, 2), *[a(batch, K, 2, L)] * 2, a(K, C)), {}),
             (F.depthwise_conv_transpose2d, (x, a(C, 1, 2, 2)), dict(groups=C, stride=2)), (F.relu6, (x,), {}),
             (F.conv2d, (x, a(3, C, 3, 3)), dict(padding=7, dilation=6)), (resize, (x, 4, 11), dict(mode="nearest")),
             (resize, (x, 4, 11), {}), (OPERATIONS["upsample"], (x, 3), {}),
             (OPERATIONS["adaptive_average_pool"], (x, 2, 3), {}),
             (OPERATIONS["max_pool2d"], (x, 3), dict(stride=2, padding=1)), (F.flatten, (x,), {}),
             (conv_transpose2d, (x, a(C, 3, 2, 3)), dict(stride=3)),
             (tokens.gelu, (x,), {}), (tokens.rms_norm_channels, (x, vector), {}), (tokens.pad_to_multiple, (x, 4), {}),
             (tokens.causal_conv, (u, a(K, C, 4), a(K, C)), {}),
             (tokens.rotary, (a(batch, 2 * C, height, width), *[a(1, 2 * C, height, width)] * 2), {})]
    seen = set()
    for call, arrays, options in calls:
        model = lively_once()
        arrays = [array.astype(np.float32) if isinstance(array, np.ndarray) else array for array in arrays]
        alike = [i for i, array in enumerate(arrays) if np.shape(array)[:1] == (batch,)]  # activations, not parameters
        graph = trace(lambda *symbols, call=call, arrays=arrays, options=options, alike=alike: call(
            *(symbols[alike.index(i)] if i in alike else array for i, array in enumerate(arrays)), **options),
            model, *(arrays[i].shape for i in alike))
        result = call(*arrays, **options)
        assert graph.outputs[0].shape == result.shape and result.dtype == np.float32
        seen |= {node.name for node in graph}
    assert seen == {"input", *OPERATIONS}


_kept = []


def lively_once():
    if not _kept:
        _kept.append(lively())
    return _kept[0]


# ----------------------------------------------------------------------------------------------------- passes

def kinds(graph) -> dict[str, int]:
    return dict(Counter(node.name for node in graph if node.operation))


def before_and_after(one, layer, channels=8, size=(9, 6)):
    """({operation: count} before and after a pass, nodes after it), which must compute the same."""
    holder = lively_once().frozen()
    holder.patch_embed = layer
    holder.name_layers()
    rng = np.random.default_rng(5)
    for _, owner, name in layer.named_parameters():
        if getattr(owner, name) is None:
            setattr(owner, name, owner.initial(name, rng) + 0.1 * rng.standard_normal(owner.shapes[name]))
    x = normal(6, 2, channels, *size).astype(np.float64)
    exact = holder.astype(np.float64)
    graph = trace(exact.patch_embed, exact, x.shape)
    after = one(graph)
    assert_close(after.run(x), exact.patch_embed(x), 1e-12)
    return kinds(graph), kinds(after), after


def depthwise(bias=False, kernel=3):
    return Conv2d(8, 8, kernel, groups=8, bias=bias)


class Text(Layer):
    """Layers, and a text over them: `Text(lambda self, x: ..., a=Layer(), ...)`."""

    def __init__(self, text, **layers):
        super().__init__()
        self.text = text
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.text(self, x)


def test_fold_batch_norm():
    """Catches a norm that stays, and one that is folded where somebody else reads the convolution's result."""
    before, after, _ = before_and_after(passes.fold_batch_norm, ConvBN(8, 5, 3))
    assert before == {"conv2d": 1, "batch_norm": 1} and after == {"conv2d": 1}
    head = lively_once().head
    _, after, _ = before_and_after(passes.fold_batch_norm, Text(
        lambda self, x: self.l(self.bn(F.global_average_pool(x))), bn=type(head.bn)(8), l=Linear(8, 3)))
    assert after == {"global_average_pool": 1, "linear": 1}
    twice = Text(lambda self, x: self.bn(self.c(x)) + self.c(x), c=Conv2d(8, 8), bn=type(head.bn)(8))
    assert before_and_after(passes.fold_batch_norm, twice)[1] == {"conv2d": 2, "add": 1}
    shared = Text(lambda self, x: (lambda y: self.bn(y) + y)(self.c(x)), c=Conv2d(8, 8), bn=type(head.bn)(8))
    assert before_and_after(passes.fold_batch_norm, shared)[1] == {"conv2d": 1, "batch_norm": 1, "add": 1}


def test_shortcut_into_centre_tap():
    """Catches a shortcut folded into a filter of stride 2, of another input, or read by others."""
    one = passes.shortcut_into_centre_tap
    assert before_and_after(one, Residual(depthwise()))[1] == {"depthwise_conv2d": 1}
    other = Text(lambda self, x: F.relu(x) + self.c(x), c=depthwise())
    assert before_and_after(one, other)[1] == {"relu": 1, "depthwise_conv2d": 1, "add": 1}
    both = Text(lambda self, x: (lambda y: (x + y) * y)(self.c(x)), c=depthwise())
    assert before_and_after(one, both)[1] == {"depthwise_conv2d": 1, "add": 1, "multiply": 1}


def test_relu_before_concatenation():
    """Catches parts that are not clipped, or clipped for somebody who reads the whole unclipped."""
    one = passes.relu_before_concatenation
    joined = Text(lambda self, x: F.relu(F.concatenate(x[:, :3], x[:, 3:])))
    assert before_and_after(one, joined)[1] == {"slice_axis": 2, "relu": 2, "concatenate": 1}
    read = Text(lambda self, x: (lambda y: F.relu(y) + y)(F.concatenate(x[:, :3], x[:, 3:])))
    assert before_and_after(one, read)[1] == {"slice_axis": 2, "concatenate": 1, "relu": 1, "add": 1}


def test_epilogues():
    """Catches shortcuts beyond two, one added after the ReLU, an activation of a result that others read."""
    one = passes.epilogues
    text = Text(lambda self, x: F.relu(x + (self.a(x) + F.sigmoid(x))), a=Conv2d(8, 8))
    _, after, graph = before_and_after(one, text)
    assert after == {"sigmoid": 1, "convolution": 1}
    node = graph.outputs[0]
    assert node.attributes["activation"] == "relu" and {"shortcut", "shortcut2"} <= set(node.operands)
    after_relu = Text(lambda self, x: F.relu(self.a(x)) + x, a=Conv2d(8, 8))
    assert before_and_after(one, after_relu)[1] == {"convolution": 1, "add": 1}
    three = Text(lambda self, x: self.a(x) + x + F.relu(x) + F.silu(x), a=Conv2d(8, 8))
    assert before_and_after(one, three)[1] == {"convolution": 1, "relu": 1, "silu": 1, "add": 1}
    silu = Text(lambda self, x: F.silu(self.a(F.silu(self.b(x)))), a=depthwise(), b=Conv2d(8, 8))
    assert before_and_after(one, silu)[1] == {"convolution": 1, "silu": 1, "depthwise": 1}
    grouped = Text(lambda self, x: F.relu(self.a(x)), a=Conv2d(8, 4, groups=2))
    assert before_and_after(one, grouped)[1] == {"conv2d": 1, "relu": 1}


def _fused_without(*left_out):
    def several(graph):
        for one in passes.PASSES:
            if one not in left_out:
                graph = one(graph)
        return graph
    return several


def test_pointwise_depthwise():
    """Catches a scale and shift that are lost, and a fold where no ReLU stands between or behind."""
    local = Sequential(depthwise(True, 5), Odd(F.relu), depthwise(True, 1), Odd(F.relu))
    _, after, graph = before_and_after(_fused_without(), local)
    assert after == {"depthwise": 1} and {"scale", "shift"} <= set(graph.outputs[0].operands)
    assert before_and_after(_fused_without(), Sequential(depthwise(True, 5), depthwise(True, 1)))[1] == {"depthwise": 2}


def test_whole_branches():
    """Catches a branch of the network that no pass knows any more, and one fused though it only looks like one."""
    expected = {"wavelet_branch": 1, "path_scan": 1, "norm_gate": 1}
    block = lively_once().blocks1.children["0"]
    graph = passes.fused(trace(block, lively_once(), (1, 64, 8, 8)))
    assert expected.items() <= kinds(graph).items() and set(kinds(graph)) <= {
        *FUSED, "slice_axis", "relu", "concatenate", "global_average_pool"}
    for change in (dict(wavelet="db2"), dict(wavelet_levels=2)):
        other = lively(**change)
        graph = passes.fused(trace(other.blocks1, other, (1, 64, 8, 8)))
        assert "wavelet_branch" not in kinds(graph) or change.get("wavelet_levels") == 2
        assert kinds(graph)["analysis"] == 1
    merging = lively_once().blocks2.children["1"]
    assert kinds(passes.fused(trace(merging, lively_once(), (1, 64, 8, 8))))["gate"] == 1


def test_every_fused_operation_is_what_it_stands_for():
    """Catches a pass, or the text of a fused operation, that computes something else than the network does."""
    for options in ({}, dict(scan_order="cross", d_state=3, wavelet="db2", wavelet_levels=2)):
        model = lively(**options).astype(np.float64)
        x = normal(8, 2, 3, 61, 44).astype(np.float64)
        graph, expected = trace(model.forward, model, x.shape), model(x)
        for one in passes.PASSES:
            graph = one(graph)
            assert_close(graph.run(x), expected, 1e-11)


# ------------------------------------------------------------------------- any network on the compiled engine

@given(seeds, variants(), st.integers(1, 5), st.integers(1, 90), st.integers(1, 90), st.integers(1, 3))
@settings(max_examples=25)
def test_any_small_network(seed, config, batch, height, width, threads):
    """Catches an order, number of states, wavelet, number of levels or width that the engine computes otherwise."""
    model = enliven(random_parameters(config, seed))
    x = normal(seed, batch, config.in_chans, height, width)
    truth, tolerance = rounding(of_layer(model, x))
    compiled = CompiledModel(model, threads=threads)
    assert_close(compiled(x), truth, tolerance, dtype=np.float32)
    assert np.array_equal(compiled(x[-1:]), compiled(x)[-1:])


BN = type(lively_once().head.bn)
ODDITIES = {
    "batch norm of its own": lambda: Text(lambda self, x: F.relu(self.bn(F.silu(x))), bn=BN(8)),
    "groups": lambda: Conv2d(8, 12, 3, groups=4, bias=True),
    "depthwise stride 2": lambda: Conv2d(8, 8, 5, 2, groups=8),
    "depthwise without padding": lambda: Text(lambda self, x: F.depthwise_conv2d(x, self.c.weight, stride=2),
                                              c=Conv2d(8, 8, 2, groups=8)),
    "1x1 stride 2": lambda: Conv2d(8, 5, 1, 2),
    "3x3 stride 1, twice": lambda: Sequential(Conv2d(8, 24, 3, bias=True), Odd(F.relu), Conv2d(24, 8, 3)),
    "window with shortcut": lambda: Text(lambda self, x: F.relu(self.c(F.relu(x)) + x), c=Conv2d(8, 8, 3)),
    "shortcut of a wider map": lambda: Text(lambda self, x: F.relu(self.c(x) + self.d(x)[:, 3:11]), c=Conv2d(8, 8),
                                            d=Conv2d(8, 20)),
    "sigmoid and softplus": lambda: Text(lambda self, x: F.sigmoid(x) * F.softplus(x)),
    "broadcasting": lambda: Text(lambda self, x: x * F.global_average_pool(x, keep_axes=True) + x[:, :1]),
    "numbers": lambda: Text(lambda self, x: 2.0 * x - 1.0 + (1.0 - x)),
    "slices of pixels": lambda: Text(lambda self, x: x[:, 1:7:2, ::2, 1:] + x[:, 2:5, ::2, :-1]),
    "rows joined": lambda: Text(lambda self, x: F.concatenate(x, F.relu(x), axis=2)),
    "channels joined": lambda: Text(lambda self, x: F.concatenate(x[:, :3], self.c(x), x[:, 2:7], F.silu(x)),
                                    c=Conv2d(8, 5)),
    "joined twice": lambda: Text(lambda self, x: (lambda y: F.concatenate(y, F.concatenate(x, y)))(self.c(x)),
                                 c=Conv2d(8, 16)),
    "a gate read elsewhere": lambda: Text(lambda self, x: (lambda y: y * F.sigmoid(
        F.global_average_pool(y, keep_axes=True)) + y)(self.c(x)), c=Conv2d(8, 16)),
    "layer norm of 8": lambda: Text(lambda self, x: F.silu(x) * F.layer_norm_channels(x, *[self.c.bias] * 2, 1e-3),
                                    c=Conv2d(8, 8, bias=True)),
    "identity": lambda: Text(lambda self, x: x),
    "scan and merge": lambda: Text(lambda self, x: cross_merge(F.relu(cross_scan(x, "atrous")), "atrous",
                                                               *x.shape[2:])),
    "sequences and maps": lambda: Text(lambda self, x: cross_scan(x, "cross") + F.relu(self.c(x))[:, :, :8, :1]
                                       * cross_scan(x, "cross")[:, :, :, 3:4], c=Conv2d(8, 4)),
    "maps and sequences": lambda: Text(lambda self, x: F.sigmoid(self.c(x))[:, :, :8] * cross_scan(x, ("rows",))
                                       [:, :, :, ::9], c=Conv2d(8, 1)),
    "no channels": lambda: Text(lambda self, x: F.concatenate(F.relu(x[:, :0]), x)),
    "dilated": lambda: Text(lambda self, x: F.relu(self.c(x) + x), c=Conv2d(8, 8, 3, dilation=4, bias=True)),
    "dilated, stride 2, bare": lambda: Text(lambda self, x: F.conv2d(x, self.c.weight, stride=2, padding=1, dilation=2),
                                            c=Conv2d(8, 5, 3)),
    "dilated, two shortcuts": lambda: Text(lambda self, x: F.relu(self.c(x) + F.silu(x) + x),
                                           c=Conv2d(8, 8, 3, dilation=2)),
    "dilated groups": lambda: Conv2d(8, 8, 3, groups=8, dilation=3),
    "many channels": lambda: Sequential(Conv2d(8, 72, 3), Odd(F.relu), Conv2d(72, 20, 3, bias=True), Odd(F.relu),
                                        Conv2d(20, 70, 1), Conv2d(70, 8, 3, 2)),
    "sizes of another map": lambda: Text(lambda self, x: x + resize(self.c(x), *x.shape[2:])
                                         + resize(self.c(x), *x.shape[2:], mode="nearest"), c=Conv2d(8, 8, 3, 2)),
    "upsampled": lambda: Text(lambda self, x: upsample(F.relu(x), 3) + upsample(x, 3, mode="nearest")),
    "resized last": lambda: Text(lambda self, x: resize(F.relu6(3.0 * x[:, :5]), 13, 4)),
    "pooled": lambda: Text(lambda self, x: resize(adaptive_average_pool(x, 2, 5), *x.shape[2:])
                           + max_pool2d(x, 3, stride=1, padding=1)),
    "pooled to more": lambda: Text(lambda self, x: adaptive_average_pool(max_pool2d(x, 2, stride=2), 6, 6)),
    "doubled": lambda: Text(lambda self, x: F.relu(conv_transpose2d(x, self.c.weight, self.c.bias, stride=2)),
                            c=Conv2d(8, 8, 2, bias=True)),
    "tripled, few channels": lambda: Text(lambda self, x: self.d(conv_transpose2d(x, self.c.weight, stride=3)),
                                          c=Conv2d(5, 8, 3), d=Conv2d(5, 3, 3)),
    "flattened": lambda: Text(lambda self, x: F.flatten(F.relu(x[:, :5]))),
    "linear of a whole map": lambda: Text(lambda self, x: F.relu(self.l(F.flatten(self.c(x)))), c=Conv2d(8, 5),
                                          l=Linear(270, 17)),
    "linear of a joined map": lambda: Text(lambda self, x: self.l(F.flatten(F.concatenate(x, F.relu(x))[:, 3:11])),
                                           l=Linear(432, 5)),
    "constant map": lambda: Text(lambda self, x: x + np.linspace(0, 1, 54, dtype=x.dtype).reshape(1, 1, 9, 6)),
}


class OneLayer(Network):
    """A network of eight channels that is one layer."""

    def __init__(self, layer):
        super().__init__(SimpleNamespace(name="one layer", img_size=8, in_chans=8, num_classes=0))
        self.layer = layer
        self.name_layers()

    def forward(self, x):
        self.check_input(x)
        return self.layer(x)


def odd_network(name) -> OneLayer:
    """One of ODDITIES, with parameters."""
    layer, rng = ODDITIES[name](), np.random.default_rng(1)
    for _, owner, parameter in layer.named_parameters():
        value = owner.initial(parameter, rng) + 0.3 * rng.standard_normal(owner.shapes[parameter])
        setattr(owner, parameter, (np.abs(value) if parameter == "running_var" else value).astype(np.float32))
    return OneLayer(layer)


@pytest.mark.parametrize("name", ODDITIES)
def test_what_no_fused_kernel_covers(name):
    """Catches operations that run only in the company that MobileMamba gives them."""
    model, x = odd_network(name), normal(3, 3, 8, 9, 6)
    truth, tolerance = rounding(of_layer(model.layer, x))
    for threads in (1, 2, 5):
        assert_close(CompiledModel(model, threads=threads)(x), truth, tolerance, dtype=np.float32)


def test_layer_norm_of_values_far_from_zero():
    """Catches a variance from which the square of the mean is subtracted: here it would be lost in rounding."""
    x = np.where(np.arange(8) % 2, 99999, 100001).astype(np.float32).reshape(1, 8, 1, 1)  # the mean is exact
    model = OneLayer(Odd(lambda x: F.layer_norm_channels(x, *np.float32([np.ones(8), np.zeros(8)]), 1e-5)))
    result = CompiledModel(model)(np.tile(x, (1, 1, 2, 3)))
    assert_close(result, np.tile(x - 100000.0, (1, 1, 2, 3)), 1e-4, dtype=np.float32)


# ---------------------------------------------------------------------------------- what users do to a model

def exchanged_activation():
    model = lively()
    setattr(model.patch_embed, "1", Sigmoid())
    return model


class BlockWithoutShortcut(Block):
    def forward(self, x):
        return self.ffn1(self.dw1(self.mixer(self.ffn0(self.dw0(x)))))


def subclassed_block():
    model = lively()
    block = model.blocks1.children["0"]
    block.__class__ = BlockWithoutShortcut
    return model


def exchanged_blocks():
    model = lively()
    blocks = model.blocks3
    blocks.__dict__["3"], blocks.__dict__["4"] = blocks.__dict__["4"], blocks.__dict__["3"]
    return model


def forward_of_an_instance():
    model = lively()
    layer = model.blocks2.children["1"].se
    layer.forward = lambda x: x * 0.5
    return model


def other_epsilon():
    model = lively()
    model.blocks1.children["0"].dw0.m.bn.eps = 0.5
    return model


@pytest.mark.parametrize("change", [exchanged_activation, subclassed_block, exchanged_blocks, forward_of_an_instance,
                                    other_epsilon])
def test_a_changed_model_is_computed_as_changed(change):
    """Catches an engine that rebuilds the network from its configuration and names (off by 62 % without a word)."""
    model, x = change(), normal(7, 2, 3, 64, 64)
    truth, tolerance = rounding(of_layer(model, x))
    assert_close(CompiledModel(model)(x), truth, tolerance, dtype=np.float32)
    assert np.abs(truth - lively()(x)).max() > 100 * tolerance * np.abs(truth).max()


def replaced_forward(find):
    def change():
        model = lively()
        layer = find(model.blocks1.children["0"], model)
        forward = layer.forward
        layer.forward = lambda x: forward(x) * 0.5
        return model
    return change


def relu_behind_a_convolution():
    model = lively()
    model.blocks1.children["0"].dw0.m.__class__ = type("ConvBNReLU", (ConvBN,), {
        "forward": lambda self, x: F.relu(self.bn(self.c(x)))})
    return model


def convolution_with_a_bias():
    model = lively()
    model.blocks1.children["0"].dw0.m.c.bias = np.full(64, 0.5, np.float32)
    return model


@pytest.mark.parametrize("change", [
    exchanged_activation, subclassed_block, forward_of_an_instance, other_epsilon, relu_behind_a_convolution,
    convolution_with_a_bias, replaced_forward(lambda block, model: block.dw0.m),
    replaced_forward(lambda block, model: block.dw0.m.bn), replaced_forward(lambda block, model: block.dw0.m.c),
    replaced_forward(lambda block, model: block.mixer.m.attn.local_op),
    replaced_forward(lambda block, model: block.mixer.m.attn.local_op.bn2),
    replaced_forward(lambda block, model: model.head), replaced_forward(lambda block, model: model.head.l)])
def test_a_changed_model_is_folded_as_changed(change):
    """Catches folding that puts the text of the class in the place of what a user made of it, without a word."""
    model, x = change(), normal(7, 1, 3, 64, 64)
    truth, tolerance = rounding(of_layer(lively(), x))
    expected = model(x)
    assert np.abs(expected - lively()(x)).max() > 100 * tolerance * np.abs(truth).max()
    assert_close(model.fold_batchnorm()(x), expected, 2 * tolerance, dtype=np.float32)


def test_a_parameter_taken_away():
    """Catches a bare AttributeError of the tracer for a bias that is None, which NumPy's text allows."""
    model = lively()
    model.head.l.bias = None
    graph = trace(model.forward, model, (1, 3, 64, 64))
    assert "bias" not in graph.nodes[-1].operands
    x = normal(7, 1, 3, 64, 64)
    assert_close(model.fold_batchnorm()(x), model(x), 1e-4, dtype=np.float32)


def test_a_compiled_model_stays_as_it_was():
    """Catches plans of one model that mix its layers before and after an exchange."""
    model, x, y = lively(), normal(7, 1, 3, 64, 64), normal(7, 1, 3, 48, 80)
    compiled = CompiledModel(model)
    first, expected = compiled(x), CompiledModel(lively())(y)
    setattr(model.patch_embed, "1", Sigmoid())
    assert np.array_equal(compiled(x), first) and np.array_equal(compiled(y), expected)


def test_parameters_edited_in_place_are_the_models_own():
    """Catches an engine that sees some edits of the model it was made of (those before its first forward, or those of
    weights that another size packs anew) and not others."""
    model, x, y = lively(), normal(7, 1, 3, 64, 64), normal(7, 1, 3, 48, 80)
    compiled, expected = CompiledModel(model), [CompiledModel(lively())(part) for part in (x, y)]
    for edit in (0.0, 3.0):
        for array in model.state_dict().values():
            array *= np.float32(edit)
        assert all(np.array_equal(compiled(part), was) for part, was in zip((x, y), expected, strict=True))


# ------------------------------------------------------------------------------------------------------ names

def test_no_backend_knows_a_layer_by_name():
    """Catches a second description of the network: a checkpoint's layer or parameter name outside the text."""
    parts = {part for name in VARIANTS for key in expected_shapes(VARIANTS[name]) for part in key.split(".")}
    parts |= {part for key in expected_shapes(VARIANTS["mobilemamba_nano"], folded=True) for part in key.split(".")}
    operands = {name for call in (*OPERATIONS.values(), *FUSED.values())
                for name in call.compute.__code__.co_varnames[:call.compute.__code__.co_argcount
                                                              + call.compute.__code__.co_kwonlyargcount]}
    parts -= operands | {*OPERATIONS, *FUSED} | {part for part in parts if part.isdigit() or len(part) == 1}
    assert {"in_proj", "ffn0", "mixer", "wavelet_convs", "A_logs", "dwconv3x3"} <= parts
    rooms = [ROOT / "engine", ROOT / "export", ROOT / "graph", Path(mmref.kernels.__file__).parent]
    found = []
    for path in (path for room in rooms for path in sorted(room.rglob("*.py"))):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
            if token.type in (tokenize.NAME, tokenize.STRING) and not token.string.startswith(('"""', 'r"""')):
                words = token.string.strip("\"'rbf").replace("{", ".").replace("}", ".").replace(":", ".").split(".")
                found += [f"{path.name}:{token.start[0]}: {word}" for word in words if word in parts]
    assert not found, found


def test_no_constant_is_computed_twice_for_one_plan():
    """Catches constants that a plan evaluates anew for each of several forms or shapes."""
    model, count = lively(), Counter()
    compiled = CompiledModel(model, threads=1)
    compiled(normal(0, 1, 3, 64, 64))
    value = Constant.value

    def counted(self):
        count[self.name] += 1
        return value(self)
    try:
        Constant.value = counted
        compiled(normal(0, 2, 3, 40, 64))
    finally:
        Constant.value = value
    assert not {name: times for name, times in count.items() if "filter" not in name}
