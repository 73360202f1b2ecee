"""Faults planted one at a time into an ONNX graph that mmref exported: its initialisers, attributes and nodes edited.

The graph's batch norms are folded, so these are the mistakes of converters, of folding scripts and of hand-written
graphs. A mutation is as in mutations.py; `plant` is called with a Graph.
"""

from __future__ import annotations

import numpy as np
import onnx
from mutations import BLOCK, GLOBAL, LOCAL, MIX, NORM, SCAN, Mutation, bfloat16
from onnx import helper, numpy_helper


class Graph:
    """A copy of an exported graph that can be edited, and the unfolded model it was made from."""

    def __init__(self, proto, model):
        self.proto, self.model = onnx.ModelProto(), model
        self.proto.CopyFrom(proto)
        self.nodes = {node.name: node for node in self.proto.graph.node}
        self.tensors = {tensor.name: tensor for tensor in self.proto.graph.initializer}

    def get(self, name):
        return numpy_helper.to_array(self.tensors[name]).copy()

    def set(self, name, array):
        self.tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))

    def change(self, name, function):
        before = self.get(name)
        after = np.asarray(function(before), before.dtype).reshape(before.shape)
        assert not np.array_equal(before, after), f"{name}: the mutation changes nothing"
        self.set(name, after)

    def constant(self, name, array):
        self.proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def replace(self, name, op, inputs=None, **attributes):
        """The node computes something else from (some of) the same inputs; its value keeps its name."""
        node = self.nodes[name]
        new = helper.make_node(op, inputs or list(node.input), list(node.output), name=name, **attributes)
        node.CopyFrom(new)

    def before(self, name, op, inputs, output, **attributes):
        """A new node in front of the one called `name`."""
        position = [node.name for node in self.proto.graph.node].index(name)
        self.proto.graph.node.insert(position, helper.make_node(op, inputs, [output], name=output, **attributes))
        self.nodes = {node.name: node for node in self.proto.graph.node}
        return output

    def attribute(self, name, **attributes):
        node = self.nodes[name]
        for key, value in attributes.items():
            kept = [a for a in node.attribute if a.name != key]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute(key, value)])

    def layer(self, path):
        """The unfolded layer of that name."""
        return next(layer for found, layer in self.model.walk() if found == path)


def op(name, kind, keep=None, **attributes):
    """Another operation in a node's place, on the inputs at the positions `keep`."""
    def plant(g):
        inputs = list(g.nodes[name].input)
        g.replace(name, kind, [inputs[i] for i in keep] if keep else None, **attributes)
    return plant


def tensor(name, function):
    return lambda g: g.change(name, function)


def attribute(name, **attributes):
    return lambda g: g.attribute(name, **attributes)


def exchanged(name, order):
    """A node's outputs in another order."""
    def plant(g):
        outputs = list(g.nodes[name].output)
        del g.nodes[name].output[:]
        g.nodes[name].output.extend([outputs[i] for i in order])
    return plant


def several(*plants):
    def plant(g):
        for one in plants:
            one(g)
    return plant


def folded_as(path, **wrong):
    """Batch norm folded with a mistake: `wrong` gives another eps, or what becomes of weight, bias, mean, var."""
    def plant(g):
        conv, bn = g.layer(path).c, g.layer(path).bn
        values = {"weight": bn.weight, "bias": bn.bias, "mean": bn.running_mean, "var": bn.running_var, "eps": 1e-5}
        values |= {key: value(values[key]) if callable(value) else value for key, value in wrong.items()}
        scale = values["weight"] / np.sqrt(values["var"] + values["eps"])
        if not set(wrong) <= {"mean", "bias"}:
            g.change(f"{path}/weight", lambda _: conv.weight * scale[:, None, None, None])
        g.change(f"{path}/bias", lambda _: values["bias"] - values["mean"] * scale)
    return plant


def unfolded(path):
    """Batch norm left out."""
    def plant(g):
        g.change(f"{path}/weight", lambda _: g.layer(path).c.weight)
        g.change(f"{path}/bias", lambda b: b * 0)
    return plant


def misread(array):
    """Values read as if the two first axes were exchanged, as a framework with (in, out) weights would."""
    return array.reshape(array.shape[1], array.shape[0], *array.shape[2:]).swapaxes(0, 1)


def banded(order):
    return lambda filters: filters.reshape(-1, 4, *filters.shape[1:])[:, order].reshape(filters.shape)


def odd_maps_padded_top_left(g):
    g.attribute(f"{GLOBAL}/Conv", pads=[1, 1, 0, 0])
    node = g.nodes[f"{GLOBAL}/Slice"]
    one, far = g.constant("ones", np.array([1, 1])), g.constant("far", np.array([2 ** 40] * 2))
    g.replace(f"{GLOBAL}/Slice", "Slice", [node.input[0], one, far, node.input[3]])


def samples_mixed_in_squeeze(g):
    pooled, name = "blocks2.1.se/GlobalAveragePool", "blocks2.1.se.fc1/Conv"
    zero = g.before(name, "Sub", [pooled, pooled], "mixed/zero")
    mean = g.before(name, "ReduceMean", [pooled], "mixed/mean", axes=[0], keepdims=1)
    g.nodes[name].input[0] = g.before(name, "Add", [zero, mean], "mixed/sum")


def state_carried_over(g):
    """Samples laid one after another along the sequence, as a scan written for one sample would take them."""
    scan, width = f"{SCAN}/Scan", 2 * g.get(f"{SCAN}.Ds[0]").size
    _, *values = g.nodes[scan].input
    flat, inputs = g.constant("carried/flat", np.array([-1, 1, width])), []
    for i, value in enumerate(values):
        turned = g.before(scan, "Transpose", [value], f"carried/turned{i}", perm=[1, 0, 2])
        inputs.append(g.before(scan, "Reshape", [turned, flat], f"carried/flat{i}"))
    shape = g.before(scan, "Shape", ["carried/turned0"], "carried/shape")
    zero = g.constant("carried/zero", np.zeros((1, width), np.float32))
    for i, value in enumerate((zero, *inputs)):
        g.nodes[scan].input[i] = value
    result, g.nodes[scan].output[1] = g.nodes[scan].output[1], "carried/result"
    g.before(f"{SCAN}/Split_4", "Reshape", ["carried/result", shape], "carried/apart")
    g.before(f"{SCAN}/Split_4", "Transpose", ["carried/apart"], result, perm=[1, 0, 2])


def delayed(g):
    """Step l answers with the state before it."""
    body = next(a.g for a in g.nodes[f"{SCAN}/Scan"].attribute if a.name == "body")
    identity = next(node for node in body.node if node.op_type == "Identity")
    identity.input[0] = body.input[0].name


def directions_exchanged(g):
    for name in (".x_proj_weight", ".dt_projs_weight", ".dt_projs_bias", "/A", ".Ds"):
        first, second = f"{SCAN}{name}[0]", f"{SCAN}{name}[1]"
        a, b = g.get(first), g.get(second)
        g.set(first, b), g.set(second, a)


def both(name, function):
    return several(*(tensor(f"{SCAN}.{name}[{k}]", function) for k in range(2)))


def a_logs(function):
    """A made otherwise from A_logs."""
    def plant(g):
        logs = g.layer(SCAN).A_logs.reshape(2, -1)
        for k in range(2):
            g.change(f"{SCAN}/A[{k}]", lambda _, k=k: function(logs[k]))
    return plant


M, FFN0, FFN1 = Mutation, f"{BLOCK}.ffn0.m", f"{BLOCK}.ffn1.m"
PW = f"{FFN0}.pw1"
ONNX = [M(name, "", first, key, plant) for name, first, key, plant in (
    ("stem pads at the bottom right only", "patch_embed.0", "padding-side",
     attribute("patch_embed.0/Conv", pads=[0, 0, 2, 2])),
    ("stem pads at the top left only", "patch_embed.4", "padding-side",
     attribute("patch_embed.4/Conv", pads=[2, 2, 0, 0])),
    ("stem with auto_pad SAME_UPPER", "patch_embed.2", "padding-side",
     op("patch_embed.2/Conv", "Conv", auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[3, 3])),
    ("stem kernel flipped", "patch_embed.2", "kernel-flipped",
     tensor("patch_embed.2/weight", lambda w: w[:, :, ::-1, ::-1])),
    ("stem kernel transposed", "patch_embed.0", "kernel-transposed",
     tensor("patch_embed.0/weight", lambda w: w.swapaxes(2, 3))),
    ("stem reads BGR", "patch_embed.0", "channels", tensor("patch_embed.0/weight", lambda w: w[:, ::-1])),
    ("stem ReLU missing", "patch_embed.1", "activation", op("patch_embed.1/Relu", "Identity")),
    ("stem leaky ReLU", "patch_embed.3", "activation", op("patch_embed.3/Relu", "LeakyRelu")),
    ("batch norm folded with eps 1e-3", PW, "bn-eps", folded_as(PW, eps=1e-3)),
    ("batch norm folded with eps 0", f"{BLOCK}.dw0.m", "bn-eps", folded_as(f"{BLOCK}.dw0.m", eps=0.0)),
    ("batch norm folded without mean", PW, "bn-folding", folded_as(PW, mean=lambda v: v * 0)),
    ("batch norm folded without bias", f"{SCAN}.in_proj", "bn-folding",
     folded_as(f"{SCAN}.in_proj", bias=lambda v: v * 0)),
    ("batch norm folded without weight", f"{MIX}.proj.1", "bn-folding",
     folded_as(f"{MIX}.proj.1", weight=np.ones_like)),
    ("variance not rooted", "blocks2.1.conv1", "bn-folding",
     folded_as("blocks2.1.conv1", var=lambda v: (v + 1e-5) ** 2 - 1e-5)),
    ("batch norm left out", f"{SCAN}.out_proj", "bn-folding", unfolded(f"{SCAN}.out_proj")),
    ("folded bias lost", f"{FFN1}.pw2", "bias-missing", tensor(f"{FFN1}.pw2/bias", lambda b: b * 0)),
    ("shortcut missing", f"{BLOCK}.dw0", "shortcut", op(f"{BLOCK}.dw0/Add", "Identity", [1])),
    ("outer shortcut missing", BLOCK, "shortcut", op(f"{BLOCK}/Add", "Identity", [1])),
    ("shortcut multiplied", f"{BLOCK}.ffn0", "shortcut", op(f"{BLOCK}.ffn0/Add", "Mul")),
    ("FFN without ReLU", f"{FFN0}.pw2", "activation", op(f"{FFN0}/Relu", "Identity")),
    ("FFN with ReLU6", "blocks3.0.1.m.pw2", "activation",
     lambda g: g.replace("blocks3.0.1.m/Relu", "Clip", [g.nodes["blocks3.0.1.m/Relu"].input[0], *(
         g.constant(f"clip{n}", np.float32(n)) for n in (0, 6))])),
    ("FFN with hard swish", f"{FFN1}.pw2", "activation", op(f"{FFN1}/Relu", "HardSwish")),
    ("merging without second ReLU", "blocks3.1.se.fc1", "activation", op("blocks3.1/Relu_2", "Identity")),
    ("hard sigmoid as ONNX has it", "blocks2.1.se.gate", "activation", op("blocks2.1.se.gate/Sigmoid", "HardSigmoid")),
    ("hard sigmoid as PyTorch has it", "blocks3.1.se.gate", "activation",
     op("blocks3.1.se.gate/Sigmoid", "HardSigmoid", alpha=1 / 6, beta=0.5)),
    ("squeeze takes the maximum", "blocks2.1.se.fc1", "squeeze", op("blocks2.1.se/GlobalAveragePool", "GlobalMaxPool")),
    ("squeeze left out", "blocks3.1.se", "squeeze", op("blocks3.1.se/Mul", "Identity", [0])),
    ("squeeze mixes samples", "blocks2.1.se.fc1", "batch-mixed", samples_mixed_in_squeeze),
    ("channels split local first", f"{SCAN}.in_proj", "channel-order", several(
        lambda g: g.replace(f"{MIX}/Split", "Split", [f"{BLOCK}.ffn0/Add", g.constant("split", np.array([25, 96, 7]))],
                            axis=1), exchanged(f"{MIX}/Split", [1, 0, 2]))),
    ("channels joined local first", f"{MIX}.proj.0", "channel-order", op(f"{MIX}/Concat", "Concat", [1, 0, 2], axis=1)),
    ("local ReLU missing", LOCAL, "activation", op(f"{LOCAL}/Relu", "Identity")),
    ("sub-bands swapped in analysis", f"{GLOBAL}.wavelet_convs.0", "sub-bands",
     tensor(f"{GLOBAL}.wt_filter", banded([0, 2, 1, 3]))),
    ("sub-bands swapped in synthesis", GLOBAL, "sub-bands", tensor(f"{GLOBAL}.iwt_filter", banded([0, 2, 1, 3]))),
    ("sub-bands swapped in both", f"{GLOBAL}.wavelet_convs.0", "sub-bands",
     several(*(tensor(f"{GLOBAL}.{bank}", banded([0, 1, 3, 2])) for bank in ("wt_filter", "iwt_filter")))),
    ("filters without their half", f"{GLOBAL}.wavelet_convs.0", "wavelet",
     tensor(f"{GLOBAL}.wt_filter", lambda f: f * 2)),
    ("odd maps padded top left", f"{GLOBAL}.wavelet_convs.0", "padding-side", odd_maps_padded_top_left),
    ("wavelet scale missing", f"{GLOBAL}.wavelet_scale.0", "scale-missing",
     op(f"{GLOBAL}.wavelet_scale.0/Mul", "Identity", [0])),
    ("wavelet branch missing", GLOBAL, "wavelet", op(f"{GLOBAL}/Add", "Identity", [0])),
    ("Ds missing", NORM, "Ds-missing", both("Ds", lambda v: v * 0)),
    ("dt bias missing", NORM, "dt-bias-missing", both("dt_projs_bias", lambda v: v * 0)),
    ("softplus missing", NORM, "softplus-missing",
     several(*(op(f"{SCAN}/{name}", "Identity") for name in ("Softplus", "Softplus_2")))),
    ("exp instead of softplus", NORM, "softplus",
     several(*(op(f"{SCAN}/{name}", "Exp") for name in ("Softplus", "Softplus_2")))),
    ("backward result not turned back", NORM, "direction", op(f"{SCAN}/Slice_2", "Identity", [0])),
    ("backward reads forwards", NORM, "direction", op(f"{SCAN}/Slice", "Identity", [0])),
    ("parameters of the directions exchanged", NORM, "direction", directions_exchanged),
    ("state carried to the next sample", NORM, "scan-reset", state_carried_over),
    ("A positive", NORM, "decay", a_logs(np.exp)),
    ("A without exp", NORM, "decay", a_logs(np.negative)),
    ("B without delta", NORM, "discretisation",
     several(*(op(f"{SCAN}/{name}", "Identity", [1]) for name in ("Mul_3", "Mul_6")))),
    ("B and C exchanged", NORM, "projection-order",
     several(*(exchanged(f"{SCAN}/{name}", [0, 2, 1]) for name in ("Split_2", "Split_3")))),
    ("x and z exchanged", f"{SCAN}.conv2d", "gate", exchanged(f"{SCAN}/Split", [1, 0])),
    ("gate without SiLU", f"{SCAN}.out_proj", "gate", op(f"{SCAN}/Mul_12", "Identity", [0])),
    ("SiLU after conv2d missing", NORM, "activation", op(f"{SCAN}/Mul", "Identity", [0])),
    ("conv2d bias missing", f"{SCAN}.conv2d", "bias-missing", tensor(f"{SCAN}.conv2d.bias", lambda b: b * 0)),
    ("layer norm eps 1e-3", NORM, "layer-norm", attribute(f"{NORM}/LayerNormalization", epsilon=1e-3)),
    ("layer norm eps 1e-12", NORM, "layer-norm", attribute(f"{NORM}/LayerNormalization", epsilon=1e-12)),
    ("in_proj transposed", f"{SCAN}.in_proj", "transposed-projection", tensor(f"{SCAN}.in_proj/weight", misread)),
    ("proj transposed", f"{MIX}.proj.1", "transposed-projection",
     tensor(f"{MIX}.proj.1/weight", lambda w: w.swapaxes(0, 1))),
    ("x_proj transposed", NORM, "transposed-projection", both("x_proj_weight", lambda w: misread(w.T).T)),
    ("classifier transposed", "head.l", "transposed-projection", tensor("head.l/weight", misread)),
    ("classifier bias lost", "head.l", "bias-missing", tensor("head.l/bias", lambda b: b * 0)),
    ("maximum instead of mean pooling", "head.l", "pooling", op("GlobalAveragePool", "GlobalMaxPool")),
    ("one weight in float16", f"{FFN1}.pw1", "weights-rounded",
     tensor(f"{FFN1}.pw1/weight", lambda w: w.astype(np.float16))),
    ("one weight in bfloat16", f"{BLOCK}.dw1.m", "weights-rounded", tensor(f"{BLOCK}.dw1.m/weight", bfloat16)),
    # subtler, without a signature
    ("one weight off by 1 %", PW, "", tensor(f"{PW}/weight", lambda w: w * (1 + 0.01 * (np.arange(w.size) == 5)
                                                                            .reshape(w.shape)))),
    ("two channels exchanged", f"{SCAN}.conv2d", "",
     tensor(f"{SCAN}.conv2d.weight", lambda w: w[[1, 0, *range(2, len(w))]])),
    ("state answers one step late", NORM, "", delayed),
    ("shortcut from another layer", f"{BLOCK}.dw1", "",
     lambda g: g.replace(f"{BLOCK}.dw1/Add", "Add", [f"{BLOCK}.ffn0/Add", f"{BLOCK}.dw1.m/Conv"])),
    ("map rounded to float16 on its way", f"{BLOCK}.ffn1.m.pw1", "", lambda g: (
        g.before(f"{FFN1}.pw1/Conv", "Cast", [f"{BLOCK}.dw1/Add"], "half/down", to=10),
        g.before(f"{FFN1}.pw1/Conv", "Cast", ["half/down"], "half/up", to=1),
        g.nodes[f"{FFN1}.pw1/Conv"].input.__setitem__(0, "half/up"))),
)]
