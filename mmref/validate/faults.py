"""Mistakes that ports make, each as a change of operations of a network's graph.

`FAULTS[operation]` lists `Fault`s. `plant(graph, node)` gives {node: change} for one node of that operation, where a
change computes the node's value from its operands and attributes; None where the mistake cannot be made there. A fault
knows operations and no network, so it is tried wherever a network has such an operation. Keys are what
`mmref compare --json` reports; several faults may share one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmref.graph.graph import Constant, Node
from mmref.nn import functional as F
from mmref.nn.operation import apply
from mmref.validate.replay import Indexed


@dataclass(frozen=True)
class Fault:
    """A mistake: `key` for programs, `text` for people."""

    key: str
    text: str
    plant: Callable[[Indexed, Node], dict | None]


FAULTS: dict[str, list[Fault]] = {}
CONVOLUTIONS, PRODUCTS = ("conv2d", "depthwise_conv2d"), ("conv2d", "depthwise_conv2d", "linear", "project")


def plants(operations, key, text):
    """Decorator: register `plant(graph, node)` for these operations."""
    def register(plant):
        for name in (operations,) if isinstance(operations, str) else operations:
            FAULTS.setdefault(name, []).append(Fault(key, text, plant))
        return plant
    return register


def gives(operations, key, text, function, when=lambda graph, node: True):
    """A fault that computes `function(result, operands, attributes)`, `result(**instead)` being the right operation,
    with other operands or attributes where they are given."""
    def plant(graph, node):
        if not when(graph, node):
            return None

        def change(operands, attributes):
            def result(**instead):
                return apply(node.operation, {n: instead.get(n, v) for n, v in operands.items()},
                             {n: instead.get(n, v) for n, v in attributes.items()})
            return function(result, operands, attributes)
        return {node: change}
    plants(operations, key, text)(plant)


def result_is(operations, key, text, function, when=lambda graph, node: True):
    """A fault that does something to the right result."""
    gives(operations, key, text, lambda result, o, a: function(result()), when)


# ------------------------------------------------------------------------------------------------- convolutions

def _kernel(node):
    return node.operands["weight"].shape[-1]


def _padded(low, high, mode="constant"):
    def function(result, o, a):
        pads = ((0, 0), (0, 0), (low(a), high(a)), (low(a), high(a)))
        return result(x=np.pad(o["x"], pads, mode=mode), padding=0)
    return function


def _pads(graph, node):
    return node.attributes.get("padding", 0) > 0


def _none(a):
    return 0


def _all(a):
    return a["padding"]


def _twice(a):
    return 2 * a["padding"]


gives(CONVOLUTIONS, "padding-side",
      "padding on the wrong side: all of it at the bottom and right, as TensorFlow's SAME", _padded(_none, _twice),
      _pads)
gives(CONVOLUTIONS, "padding-side", "padding on the wrong side: all of it at the top and left", _padded(_twice, _none),
      _pads)
for _mode, _word in (("edge", "repeated (edge)"), ("reflect", "reflected"), ("wrap", "wrapped round")):
    gives(CONVOLUTIONS, "padding-mode", f"border {_word} where zeros are padded", _padded(_all, _all, _mode),
          lambda g, n: _pads(g, n) and min(n.operands["x"].shape[2:]) > n.attributes["padding"])


def _same(result, o, a):
    k = o["weight"].shape[-1]
    pads = [max((-(-n // a["stride"]) - 1) * a["stride"] + k - n, 0) for n in o["x"].shape[2:]]
    return result(x=np.pad(o["x"], ((0, 0), (0, 0), *((p // 2, p - p // 2) for p in pads))), padding=0)


gives(CONVOLUTIONS, "padding-side", "even maps padded at the bottom and right only (TensorFlow's SAME with stride 2)",
      _same, lambda g, n: _pads(g, n) and n.attributes["stride"] == 2)
gives(CONVOLUTIONS, "stride", "every second pixel taken from the second on, where the first is meant",
      lambda result, o, a: np.pad(result(stride=1)[:, :, 1:, 1:], ((0, 0), (0, 0), (0, 1), (0, 1)))[:, :, ::2, ::2],
      lambda g, n: n.attributes.get("stride") == 2 and all(side % 2 == 0 for side in n.operands["x"].shape[2:]))
gives(CONVOLUTIONS, "dilation", "dilation left out",
      lambda result, o, a: result(dilation=1, padding=_kernel_of(o) // 2),
      lambda g, n: n.attributes.get("dilation", 1) > 1)
for _text, _key, _turn in (
        ("kernel turned round: convolution where cross-correlation is meant", "kernel-flipped",
         lambda w: w[:, :, ::-1, ::-1]),
        ("rows and columns of the kernel exchanged", "kernel-transposed", lambda w: w.swapaxes(2, 3)),
        ("kernel mirrored left to right", "kernel-flipped", lambda w: w[..., ::-1]),
        ("kernel upside down", "kernel-flipped", lambda w: w[:, :, ::-1])):
    gives(CONVOLUTIONS, _key, _text, lambda result, o, a, turn=_turn: result(weight=turn(o["weight"])),
          lambda g, n: _kernel(n) > 1)


def _kernel_of(operands):
    return operands["weight"].shape[-1]


gives((*CONVOLUTIONS, "linear"), "bias-missing", "bias left out", lambda result, o, a: result(bias=o["bias"] * 0),
      lambda g, n: "bias" in n.operands)
gives((*CONVOLUTIONS, "linear"), "bias-twice", "bias added twice", lambda result, o, a: result(bias=o["bias"] * 2),
      lambda g, n: "bias" in n.operands)
gives("conv2d", "channels", "colour channels reversed (BGR)", lambda result, o, a: result(x=o["x"][:, ::-1]),
      lambda g, n: n.operands["x"].shape[1] == 3)


def misread(w):
    """Values read as if the two first axes were exchanged, as a framework with (in, out) weights stores them."""
    return w.reshape(w.shape[1], w.shape[0], *w.shape[2:]).swapaxes(0, 1)


def _dense(graph, node):
    return node.name == "linear" or node.attributes.get("groups", 1) == 1


gives(("conv2d", "linear"), "transposed-projection", "weight transposed",
      lambda result, o, a: result(weight=misread(o["weight"])), _dense)
gives(("conv2d", "linear"), "transposed-projection",
      "weight transposed (its output channels read as the input's)",
      lambda result, o, a: result(weight=o["weight"].swapaxes(0, 1)),
      lambda g, n: _dense(g, n) and n.operands["weight"].shape[0] == n.operands["weight"].shape[1])
gives("project", "transposed-projection", "weight transposed",
      lambda result, o, a: result(weight=np.stack([misread(w) for w in o["weight"]])))


def bfloat16(array):
    """Rounded to eight bits of mantissa, ties to even, as float64."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def tf32(array):
    """Rounded to eleven bits of mantissa, as tensor cores read float32, as float64."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xffffe000)).view(np.float32).astype(np.float64)


def float16(array):
    """Rounded to float16, as float64."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(np.float32).astype(np.float16).astype(np.float64)


def integers(array, axes=None):
    """Rounded to 255 steps of one size, symmetric about 0: int8, one scale for all or one for every output channel."""
    largest = np.abs(array).max(axis=axes, keepdims=axes is not None)
    scale = np.maximum(largest, 1e-30) / 127
    return np.clip(np.round(array / scale), -128, 127) * scale


ROUNDINGS = {"float16": float16, "bfloat16": bfloat16, "int8 (one scale)": integers,
             "int8 (a scale for every channel)": lambda w: integers(w, tuple(range(1, w.ndim)))}
for _name, _round in ROUNDINGS.items():
    gives(PRODUCTS, "weights-rounded", f"weight rounded to {_name}",
          lambda result, o, a, r=_round: result(weight=r(o["weight"])))
for _name, _round in (("float16", float16), ("bfloat16", bfloat16), ("TF32", tf32)):
    _operand = "sequences"
    gives(PRODUCTS, "reduced-precision", f"product computed in {_name}", lambda result, o, a, r=_round: result(
        weight=r(o["weight"]), **{name: r(o[name]) for name in ("x", "sequences") if name in o}))

# ------------------------------------------------------------------------------------------------------- norms

for _eps in (1e-3, 1e-6, 1e-4, 1e-2, 1e-8, 1e-12, 0.0):
    gives("batch_norm", "bn-eps", f"batch norm's eps is {_eps:g} instead of the reference's",
          lambda result, o, a, e=_eps: result(eps=e), lambda g, n, e=_eps: n.attributes["eps"] != e)
for _text, _change in (
        ("batch norm without its mean", lambda o, a: {"running_mean": o["running_mean"] * 0}),
        ("batch norm without its bias", lambda o, a: {"bias": o["bias"] * 0}),
        ("batch norm without its weight", lambda o, a: {"weight": o["weight"] * 0 + 1}),
        ("batch norm without weight and bias", lambda o, a: {"weight": o["weight"] * 0 + 1, "bias": o["bias"] * 0}),
        ("batch norm without its statistics (mean 0, variance 1)",
         lambda o, a: {"running_mean": o["running_mean"] * 0, "running_var": o["running_var"] * 0 + 1}),
        ("batch norm never loaded (weight 1, bias 0, mean 0, variance 1)",
         lambda o, a: {"running_mean": o["running_mean"] * 0, "running_var": o["running_var"] * 0 + 1,
                       "weight": o["weight"] * 0 + 1, "bias": o["bias"] * 0}),
        ("batch norm's weight and bias exchanged", lambda o, a: {"weight": o["bias"], "bias": o["weight"]}),
        ("batch norm's mean and variance exchanged",
         lambda o, a: {"running_mean": o["running_var"], "running_var": o["running_mean"]}),
        ("batch norm divides by the variance instead of its root",
         lambda o, a: {"running_var": (o["running_var"] + a["eps"]) ** 2 - a["eps"]}),
        ("batch norm adds eps outside the root",
         lambda o, a: {"running_var": (np.sqrt(o["running_var"]) + a["eps"]) ** 2 - a["eps"]})):
    gives("batch_norm", "bn-folding", _text, lambda result, o, a, c=_change: result(**c(o, a)))
gives("batch_norm", "bn-folding", "batch norm's mean not scaled before it is taken off",
      lambda result, o, a: result(running_mean=o["running_mean"] * 0) - _channels(o["running_mean"], o["x"]))
gives("batch_norm", "bias-missing", "batch norm's shift left out (the bias that folding makes)",
      lambda result, o, a: result(running_mean=o["running_mean"] * 0, bias=o["bias"] * 0))
gives("batch_norm", "bn-folding", "batch norm left out", lambda result, o, a: o["x"])
gives("batch_norm", "bn-twice", "batch norm applied twice (folded, and kept)", lambda result, o, a: result(x=result()))
gives("batch_norm", "bn-twice", "batch norm's scale applied twice, its shift once",
      lambda result, o, a: _scaled_twice(o, a))


def _channels(values, x):
    return F.per_channel(values) if x.ndim == 4 else values


def _scaled_twice(o, a):
    scale = o["weight"] / np.sqrt(o["running_var"] + a["eps"])
    shift = o["bias"] - o["running_mean"] * scale
    return o["x"] * _channels(scale * scale, o["x"]) + _channels(shift, o["x"])


def _batch(ddof=0, samples=True):
    def function(result, o, a):
        x = o["x"]
        pixels = tuple(range(2, x.ndim))
        axes = (0, *pixels) if samples else pixels
        if not samples and not pixels:
            return x
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        count = x.size // mean.size
        var = var * count / max(count - ddof, 1)
        return (x - mean) / np.sqrt(var + a["eps"]) * _channels(o["weight"], x) + _channels(o["bias"], x)
    return function


gives("batch_norm", "bn-training", "batch norm in training mode: statistics of the batch instead of the running ones",
      _batch())
gives("batch_norm", "bn-training", "statistics of the batch, its variance over n - 1", _batch(1))
gives("batch_norm", "bn-training", "statistics of every sample by itself (instance norm)", _batch(samples=False))

for _eps in (1e-6, 1e-3, 1e-12, 1e-4, 0.0):
    gives("layer_norm_channels", "layer-norm", f"layer norm's eps is {_eps:g} instead of the reference's",
          lambda result, o, a, e=_eps: result(eps=e), lambda g, n, e=_eps: n.attributes["eps"] != e)


def _layer_norm(axes, ddof=0, centred=True):
    def function(result, o, a):
        x = o["x"]
        mean = x.mean(axes, keepdims=True) if centred else 0
        var = ((x - mean) ** 2).mean(axes, keepdims=True)
        count = x.size // var.size
        var = var * count / max(count - ddof, 1)
        return (x - mean) / np.sqrt(var + a["eps"]) * F.per_channel(o["weight"]) + F.per_channel(o["bias"])
    return function


gives("layer_norm_channels", "layer-norm", "layer norm left out", lambda result, o, a: o["x"])
gives("layer_norm_channels", "layer-norm", "layer norm divides by n - 1 instead of n in its variance",
      _layer_norm(1, 1))
gives("layer_norm_channels", "layer-norm", "layer norm without its mean (RMS norm)", _layer_norm(1, centred=False))
gives("layer_norm_channels", "layer-norm", "layer norm over channels and pixels together", _layer_norm((1, 2, 3)))
gives("layer_norm_channels", "layer-norm", "layer norm over the pixels instead of the channels", _layer_norm((2, 3)))
gives("layer_norm_channels", "layer-norm", "layer norm without weight and bias",
      lambda result, o, a: result(weight=o["weight"] * 0 + 1, bias=o["bias"] * 0))
gives("layer_norm_channels", "layer-norm", "layer norm without its weight",
      lambda result, o, a: result(weight=o["weight"] * 0 + 1))
gives("layer_norm_channels", "layer-norm", "layer norm without its bias",
      lambda result, o, a: result(bias=o["bias"] * 0))

# -------------------------------------------------------------------------------------------------- activations


def gelu(x):
    from scipy.special import erf
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
        return apply(norm.operation, o, held["attributes"]) + other * _channels(scale, other)
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
