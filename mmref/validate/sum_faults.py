"""Mistakes between layers, as in faults.py: activations, gates, shortcuts, learned scales, pooling."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erf

from mmref.graph.graph import Constant
from mmref.nn import functional as F
from mmref.nn.operation import apply
from mmref.validate.faults import gives, plants, result_is
from mmref.validate.layer_faults import along_channels

# -------------------------------------------------------------------------------------------------- activations


def gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def _elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


ACTIVATIONS = {
    "left out": lambda x: x, "ReLU": F.relu, "ReLU6": lambda x: np.clip(x, 0, 6), "SiLU": F.silu, "GELU": gelu,
    "leaky ReLU": lambda x: np.where(x > 0, x, 0.01 * x), "ELU": _elu,
    "GELU (tanh)": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))),
    "GELU (sigmoid of 1.702 x)": lambda x: x * F.sigmoid(1.702 * x),
    "hard swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1), "sigmoid": F.sigmoid, "tanh": np.tanh,
    "softplus": F.softplus, "Mish": lambda x: x * np.tanh(F.softplus(x)),
    "hard sigmoid (slope 1/6)": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard sigmoid (slope 0.2)": lambda x: np.clip(0.2 * x + 0.5, 0, 1)}
MEANT = {"relu": "ReLU", "relu6": "ReLU6", "silu": "SiLU", "gelu": "GELU", "sigmoid": "sigmoid"}


def gate(graph, node) -> bool:
    """Whether a value is multiplied with another that depends on the input."""
    return any(user.name == "multiply" and len(user.sources) == 2 for user in graph.users[node])


for _op, _meant in MEANT.items():
    for _name, _function in ACTIVATIONS.items():
        if _name == _meant:
            continue
        _text = f"{_meant} left out" if _name == "left out" else f"{_name} where {_meant} is meant"
        gives(_op, "activation", _text, lambda result, o, a, f=_function: f(o["x"]),
              lambda g, n, op=_op: op != "silu" or not gate(g, n))
for _name in ("left out", "sigmoid", "ReLU", "GELU", "hard swish", "tanh"):
    _text = "SiLU of the gate left out" if _name == "left out" else f"{_name} instead of SiLU on the gate"
    gives("silu", "gate", _text, lambda result, o, a, f=ACTIVATIONS[_name]: f(o["x"]), gate)
for _key, _text, _function in (
        ("softplus-missing", "softplus left out", lambda x: x),
        ("softplus", "exp instead of softplus", lambda x: np.exp(np.minimum(x, 700))),
        ("softplus", "ReLU instead of softplus", F.relu), ("softplus", "sigmoid instead of softplus", F.sigmoid),
        ("softplus", "softplus applied twice", lambda x: F.softplus(F.softplus(x))),
        ("softplus", "softplus to base 2", lambda x: F.softplus(x * math.log(2)) / math.log(2)),
        ("softplus", "step sizes clipped at 0.1", lambda x: np.minimum(F.softplus(x), 0.1)),
        ("softplus", "step sizes no smaller than 0.001", lambda x: np.maximum(F.softplus(x), 1e-3))):
    gives("softplus", _key, _text, lambda result, o, a, f=_function: f(o["x"]))


def is_output(graph, node) -> bool:
    return node in graph.outputs


def _softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


for _text, _function in (("softmax", _softmax), ("log-softmax", lambda x: np.log(_softmax(x))), ("sigmoid", F.sigmoid)):
    result_is("linear", "softmax", f"{_text} applied to the logits", _function, is_output)

# --------------------------------------------------------------------------------------------- sums and products


def constant(node) -> str | None:
    """The name of an operand that is a constant, of a sum or product of two."""
    return next((name for name, value in node.operands.items() if isinstance(value, Constant)), None)


def feeds(graph, node, operation) -> bool:
    return any(user.name == operation for user in graph.users[node])


def _sum(key, text, function, when=lambda graph, node: True):
    """A fault of a sum of two values: function(earlier, later), the earlier being the shortcut around the later."""
    def plant(graph, node):
        if constant(node) or len(node.sources) != 2 or not when(graph, node):
            return None
        earlier, later = sorted(node.operands, key=lambda name: graph.index[node.operands[name]])
        return {node: lambda o, a: function(o[earlier], o[later])}
    plants("add", key, text)(plant)


def _around(graph, node):
    """Whether the earlier summand is what the later one was computed from: a shortcut."""
    order = graph.index
    earlier, later = sorted(node.sources, key=order.get)
    pending, seen = [later], set()
    while pending:
        for source in pending.pop().sources:
            if source is earlier:
                return True
            if source not in seen and order[source] > order[earlier]:
                seen.add(source)
                pending.append(source)
    return False


def _bands(graph, node):
    return any(source.name == "synthesis" for source in node.sources)


_sum("shortcut", "shortcut left out", lambda x, y: y, _around)
_sum("shortcut", "shortcut added twice", lambda x, y: 2 * x + y, _around)
_sum("shortcut", "shortcut multiplied instead of added", lambda x, y: x * y, _around)
_sum("shortcut", "shortcut subtracted", lambda x, y: y - x, _around)
_sum("shortcut", "shortcut and branch averaged", lambda x, y: (x + y) / 2, _around)
_sum("shortcut", "branch left out, shortcut alone", lambda x, y: x, _around)
_sum("wavelet", "wavelet branch left out", lambda x, y: x, _bands)
_sum("wavelet", "wavelet branch alone", lambda x, y: y, _bands)
_sum("wavelet", "wavelet branch multiplied instead of added", lambda x, y: x * y, _bands)
_sum("branch-missing", "first summand left out", lambda x, y: y, lambda g, n: not _around(g, n) and not _bands(g, n))
_sum("branch-missing", "second summand left out", lambda x, y: x, lambda g, n: not _around(g, n) and not _bands(g, n))


@plants("add", "bn-folding", "shortcut added before batch norm, which then scales it too")
def _shortcut_before_norm(graph, node):
    norm = next((source for source in node.sources if source.name == "batch_norm"), None)
    if constant(node) or norm is None or len(node.sources) != 2 or norm.operands["x"].shape != node.shape:
        return None
    held = {}

    def scaled(operands, attributes):
        held.update(operands=operands, attributes=attributes)
        return apply(norm.operation, operands, attributes)

    def change(operands, attributes):
        other = next(operands[name] for name, value in node.operands.items() if value is not norm)
        o = held["operands"]
        scale = o["weight"] / np.sqrt(o["running_var"] + held["attributes"]["eps"])
        return apply(norm.operation, o, held["attributes"]) + other * along_channels(scale, other)
    return {norm: scaled, node: change}


def _constant_sum(key, text, factor, when):
    def plant(graph, node):
        name = constant(node)
        if not name or not when(graph, node):
            return None
        return {node: lambda o, a: apply(node.operation, {**o, name: o[name] * factor}, a)}
    plants("add", key, text)(plant)


_constant_sum("dt-bias-missing", "bias of the step size (dt_projs_bias) left out", 0,
              lambda g, n: feeds(g, n, "softplus"))
_constant_sum("dt-bias", "bias of the step size (dt_projs_bias) added twice", 2, lambda g, n: feeds(g, n, "softplus"))
_constant_sum("bias-missing", "bias left out", 0, lambda g, n: not feeds(g, n, "softplus"))


@plants("multiply", "scale-missing", "learned scale left out")
def _unscaled(graph, node):
    name = constant(node)
    return name and {node: lambda o, a: next(np.broadcast_to(v, node.shape) for n, v in o.items() if n != name)}


@plants("multiply", "scale-missing", "learned scale applied twice")
def _scaled_again(graph, node):
    name = constant(node)
    return name and {node: lambda o, a: apply(node.operation, {**o, name: o[name] ** 2}, a)}


def _gate_of(graph, node):
    """The operand of a product that is a gate: what a sigmoid or SiLU made."""
    if constant(node) or len(node.sources) != 2:
        return None
    return next((name for name, value in node.operands.items() if value.name in ("sigmoid", "silu")), None)


for _kind, _key, _words in (("sigmoid", "squeeze", ("squeeze-and-excitation's gate left out",
                                                     "gate not multiplied with its input")),
                            ("silu", "gate", ("gate z left out", "gate alone, without what it gates"))):
    @plants("multiply", _key, _words[0])
    def _ungated(graph, node, kind=_kind):
        name = _gate_of(graph, node)
        if not name or node.operands[name].name != kind:
            return None
        return {node: lambda o, a: next(v for n, v in o.items() if n != name)}

    @plants("multiply", _key, _words[1])
    def _only_gate(graph, node, kind=_kind):
        name = _gate_of(graph, node)
        if not name or node.operands[name].name != kind:
            return None
        return {node: lambda o, a: np.broadcast_to(o[name], node.shape)}


@plants("multiply", "gate", "gate multiplied before the norm")
def _early_gate(graph, node):
    name = _gate_of(graph, node)
    other = next((value for n, value in node.operands.items() if n != name), None) if name else None
    if getattr(other, "name", "") != "layer_norm_channels":
        return None
    held = {}

    def norm(operands, attributes):
        held.update(operands=operands, attributes=attributes)
        return apply(other.operation, operands, attributes)
    return {other: norm, node: lambda o, a: apply(other.operation, {
        **held["operands"], "x": held["operands"]["x"] * o[name]}, held["attributes"])}


# ------------------------------------------------------------------------------------------------------ pooling

for _kept, _key, _what in ((True, "squeeze", "squeeze takes"), (False, "pooling", "pooling takes")):
    def _kind(graph, node, kept=_kept):
        return bool(node.attributes.get("keep_axes")) is kept
    for _text, _function in (
            ("the maximum instead of the mean over the pixels", lambda x: x.max((2, 3), keepdims=True)),
            ("the sum instead of the mean over the pixels", lambda x: x.sum((2, 3), keepdims=True)),
            ("one pixel instead of the mean over all", lambda x: x[:, :, :1, :1])):
        gives("global_average_pool", _key, f"{_what} {_text}", lambda result, o, a, f=_function:
              f(o["x"]).reshape(result().shape), _kind)
    gives("global_average_pool", "batch-mixed", "mean over the batch too: samples mixed", lambda result, o, a:
          np.broadcast_to(result().mean(0, keepdims=True), result().shape), _kind)
