"""Mistakes in layers with parameters, as in faults.py: convolutions, products, norms."""

from __future__ import annotations

import numpy as np

from mmref.nn import functional as F
from mmref.validate.faults import gives
from mmref.validate.roundings import ROUNDINGS, bfloat16, float16, tf32

CONVOLUTIONS, PRODUCTS = ("conv2d", "depthwise_conv2d"), ("conv2d", "depthwise_conv2d", "linear", "project")

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


for _name, _round in ROUNDINGS.items():
    gives(PRODUCTS, "weights-rounded", f"weight rounded to {_name}",
          lambda result, o, a, r=_round: result(weight=r(o["weight"])))
for _name, _round in (("float16", float16), ("bfloat16", bfloat16), ("TF32", tf32)):
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
      lambda result, o, a: result(running_mean=o["running_mean"] * 0) - along_channels(o["running_mean"], o["x"]))
gives("batch_norm", "bias-missing", "batch norm's shift left out (the bias that folding makes)",
      lambda result, o, a: result(running_mean=o["running_mean"] * 0, bias=o["bias"] * 0))
gives("batch_norm", "bn-folding", "batch norm left out", lambda result, o, a: o["x"])
gives("batch_norm", "bn-twice", "batch norm applied twice (folded, and kept)", lambda result, o, a: result(x=result()))
gives("batch_norm", "bn-twice", "batch norm's scale applied twice, its shift once",
      lambda result, o, a: _scaled_twice(o, a))


def along_channels(values, x):
    """One value a channel, shaped to go with x, a map or rows."""
    return F.per_channel(values) if x.ndim == 4 else values


def _scaled_twice(o, a):
    scale = o["weight"] / np.sqrt(o["running_var"] + a["eps"])
    shift = o["bias"] - o["running_mean"] * scale
    return o["x"] * along_channels(scale * scale, o["x"]) + along_channels(shift, o["x"])


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
        return (x - mean) / np.sqrt(var + a["eps"]) * along_channels(o["weight"], x) + along_channels(o["bias"], x)
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
