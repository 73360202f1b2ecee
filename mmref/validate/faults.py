"""Mistakes that ports make, each as a change of one layer.

`FAULTS[type of layer]` lists (key, what one would say, plant). `plant(layer)` changes a private copy of the layer in
place, mostly by giving it another `forward`; it returns False where the mistake cannot be made (or would change
nothing). Keys are what `mmref compare --json` reports; several plants may share one.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from mmref.models.mobilemamba import FFN, Block, Head, PatchMerging, SqueezeExcite, Stem
from mmref.models.mrffi import MRFFI, LocalConv, WaveletMamba
from mmref.nn import functional as F
from mmref.nn.layer import BatchNorm, Conv2d, ConvBN, LayerNorm, Linear, ReLU, Residual, Scale, Sequential, Sigmoid
from mmref.nn.recurrence import selective_scan
from mmref.nn.ss2d import SS2D, project
from mmref.nn.wavelet import analysis, synthesis

FAULTS: dict[type, list] = {}


def fault(kind, key, text, **options):
    """Register a plant, with `options` passed on to it."""
    def register(plant):
        FAULTS.setdefault(kind, []).append((key, text, partial(plant, **options)))
        return plant
    return register


def sets(kind, key, text, **attributes):
    """A fault that sets attributes: to a value, or to what a function makes of the layer (None: cannot be made)."""
    def plant(layer):
        for name, value in attributes.items():
            value = value(layer) if callable(value) else value
            if value is None:
                return False
            setattr(layer, name, value)
    fault(kind, key, text)(plant)


def forwards(kind, key, text, function):
    """A fault that computes `function(layer, x)` instead of the layer."""
    def plant(layer):
        layer.forward = lambda x: function(layer, x).astype(x.dtype, copy=False)  # one dtype throughout the network
    fault(kind, key, text)(plant)


# ------------------------------------------------------------------------------------------------- convolutions

def _shifted(layer, x, low, high, mode="constant"):
    pads = ((0, 0), (0, 0), (low, high), (low, high))
    return F.conv2d(np.pad(x, pads, mode=mode), layer.weight, layer.bias, stride=layer.stride, groups=layer.groups,
                    dilation=layer.dilation)


@fault(Conv2d, "padding-side", "padding on the wrong side: all of it at the bottom and right, as TensorFlow's SAME",
       side="high")
@fault(Conv2d, "padding-side", "padding on the wrong side: all of it at the top and left", side="low")
@fault(Conv2d, "padding-mode", "border repeated (edge) where zeros are padded", mode="edge")
def _padding(layer, side="", mode="constant"):
    p = layer.dilation * (layer.kernel // 2)
    if not p:
        return False
    low, high = {"high": (0, 2 * p), "low": (2 * p, 0), "": (p, p)}[side]
    layer.forward = lambda x: _shifted(layer, x, low, high, mode)


@fault(Conv2d, "padding-side", "even maps padded at the bottom and right only (TensorFlow's SAME with stride 2)")
def _same(layer):
    if layer.kernel < 3 or layer.stride != 2:
        return False

    def forward(x):
        pads = [max((-(-n // 2) - 1) * 2 + layer.kernel - n, 0) for n in x.shape[2:]]
        return F.conv2d(np.pad(x, ((0, 0), (0, 0), *((p // 2, p - p // 2) for p in pads))), layer.weight, layer.bias,
                        stride=2, groups=layer.groups)
    layer.forward = forward


def _if(condition, value):
    return value if condition else None


sets(Conv2d, "kernel-flipped", "kernel turned round: convolution where cross-correlation is meant",
     weight=lambda c: _if(c.kernel > 1, c.weight[:, :, ::-1, ::-1]))
sets(Conv2d, "kernel-transposed", "rows and columns of the kernel exchanged",
     weight=lambda c: _if(c.kernel > 1, c.weight.swapaxes(2, 3)))
sets(Conv2d, "bias-missing", "bias of the convolution left out", bias=lambda c: None if c.bias is None else c.bias * 0)
sets(Conv2d, "transposed-projection", "weight of the projection transposed",
     weight=lambda c: _if(c.groups == 1, c.weight.reshape(c.weight.shape[1], c.weight.shape[0], *c.weight.shape[2:])
                          .swapaxes(0, 1)))
sets(Conv2d, "transposed-projection", "weight of the projection transposed (its output channels read as the input's)",
     weight=lambda c: _if(c.groups == 1 and c.weight.shape[0] == c.weight.shape[1], c.weight.swapaxes(0, 1)))
sets(Linear, "transposed-projection", "weight of the classifier transposed",
     weight=lambda c: c.weight.reshape(c.weight.shape[::-1]).T)
sets(Linear, "bias-missing", "bias of the classifier left out", bias=lambda c: c.bias * 0)


def _bfloat16(array):
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000).view(np.float32)  # ties go to the even one


for _kind in (Conv2d, Linear):
    for _name, _round in (("float16", lambda w: w.astype(np.float16)), ("bfloat16", _bfloat16)):
        sets(_kind, "weights-rounded", f"weight rounded to {_name} here and not elsewhere",
             weight=lambda c, r=_round: r(c.weight).astype(c.weight.dtype))

# ------------------------------------------------------------------------------------------------------- norms

for _eps in (1e-3, 1e-6, 1e-4, 1e-2, 1e-8, 0.0):
    sets(BatchNorm, "bn-eps", f"batch norm's eps is {_eps:g} instead of 1e-5", eps=_eps)
sets(BatchNorm, "bn-folding", "batch norm without its mean", running_mean=lambda bn: bn.running_mean * 0)
sets(BatchNorm, "bn-folding", "batch norm without its bias", bias=lambda bn: bn.bias * 0)
sets(BatchNorm, "bn-folding", "batch norm without its weight", weight=lambda bn: bn.weight * 0 + 1)
sets(BatchNorm, "bn-folding", "batch norm divides by the variance instead of its root",
     running_var=lambda bn: (bn.running_var + bn.eps) ** 2 - bn.eps)
sets(BatchNorm, "bn-folding", "batch norm adds eps outside the root",
     running_var=lambda bn: (np.sqrt(bn.running_var) + bn.eps) ** 2 - bn.eps)
forwards(BatchNorm, "bn-folding", "batch norm left out", lambda bn, x: x)
forwards(BatchNorm, "bn-folding", "batch norm's mean not scaled before it is taken off",
         lambda bn, x: (x * F.per_channel(bn.scale_and_shift()[0]) + F.per_channel(bn.bias - bn.running_mean)
                        if x.ndim == 4 else x * bn.scale_and_shift()[0] + bn.bias - bn.running_mean))


@fault(BatchNorm, "bn-training", "batch norm in training mode: statistics of the batch instead of the running ones")
def _bn_training(layer):
    def forward(x):
        axes = (0, 2, 3) if x.ndim == 4 else 0
        return F.batch_norm(x, layer.weight, layer.bias, x.mean(axes), x.var(axes), layer.eps)
    layer.forward = forward


for _eps in (1e-6, 1e-3, 1e-12, 1e-4):
    forwards(LayerNorm, "layer-norm", f"layer norm's eps is {_eps:g} instead of 1e-5",
             lambda n, x, e=_eps: F.layer_norm_channels(x, n.weight, n.bias, e))
forwards(LayerNorm, "layer-norm", "layer norm left out", lambda n, x: x)
forwards(LayerNorm, "layer-norm", "layer norm divides by n - 1 instead of n in its variance", lambda n, x: (
    (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True, ddof=1) + 1e-5)
    * F.per_channel(n.weight) + F.per_channel(n.bias)))
forwards(LayerNorm, "layer-norm", "layer norm without its mean (RMS norm)", lambda n, x: F.channels_first(
    F.channels_last(x) / np.sqrt((F.channels_last(x) ** 2).mean(-1, keepdims=True) + 1e-5) * n.weight + n.bias))
forwards(LayerNorm, "layer-norm", "layer norm over channels and pixels together", lambda n, x: (
    (x - x.mean((1, 2, 3), keepdims=True)) / np.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-5)
    * F.per_channel(n.weight) + F.per_channel(n.bias)))
sets(LayerNorm, "layer-norm", "layer norm without weight and bias", weight=lambda n: n.weight * 0 + 1,
     bias=lambda n: n.bias * 0)
forwards(Scale, "scale-missing", "learned scale left out", lambda s, x: x)

# -------------------------------------------------------------------------------------------- activations, joins

OTHERS = {"left out": lambda x: x, "ReLU6": lambda x: np.clip(x, 0, 6), "SiLU": F.silu,
          "leaky ReLU": lambda x: np.where(x > 0, x, 0.01 * x),
          "GELU (tanh)": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))),
          "hard swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1)}


def _gelu(x):
    from scipy.special import erf
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


OTHERS["GELU"] = _gelu
for _name, _function in OTHERS.items():
    _text = f"ReLU {_name}" if _name == "left out" else f"{_name} where ReLU is meant"
    forwards(ReLU, "activation", _text, lambda layer, x, f=_function: f(x))
    forwards(FFN, "activation", _text, lambda layer, x, f=_function: layer.pw2(f(layer.pw1(x))))
    forwards(LocalConv, "activation", _text,
             lambda m, x, f=_function: m.bn2(m.dwconv1x1(f(m.bn1(m.dwconv3x3(x))))))
    forwards(SqueezeExcite, "activation", _text, lambda se, x, f=_function: x * se.gate(
        se.fc2(f(se.fc1(F.global_average_pool(x)[:, :, None, None])))))
    forwards(PatchMerging, "activation", "first " + _text,
             lambda m, x, f=_function: m.conv3(m.se(F.relu(m.conv2(f(m.conv1(x)))))))
    forwards(PatchMerging, "activation", "second " + _text,
             lambda m, x, f=_function: m.conv3(m.se(f(m.conv2(F.relu(m.conv1(x)))))))
forwards(Sigmoid, "activation", "hard sigmoid (slope 1/6) where sigmoid is meant",
         lambda s, x: np.clip(x / 6 + 0.5, 0, 1))
forwards(Sigmoid, "activation", "hard sigmoid (slope 0.2) where sigmoid is meant",
         lambda s, x: np.clip(0.2 * x + 0.5, 0, 1))
forwards(Sigmoid, "activation", "sigmoid left out", lambda s, x: x)
forwards(Residual, "shortcut", "shortcut left out", lambda r, x: r.m(x))
forwards(Residual, "shortcut", "shortcut added twice", lambda r, x: 2 * x + r.m(x))
forwards(Residual, "shortcut", "shortcut multiplied instead of added", lambda r, x: x * r.m(x))


@fault(Residual, "bn-folding", "shortcut folded into the convolution before batch norm, which then scales it too")
def _shortcut_folded(layer):
    if not isinstance(layer.m, ConvBN):
        return False
    layer.forward = lambda x: layer.m.bn(layer.m.c(x) + x)


forwards(Block, "shortcut", "the block's outer shortcut left out",
         lambda b, x: b.ffn1(b.dw1(b.mixer(b.ffn0(b.dw0(x))))))
forwards(Block, "order", "channel mixing before the depthwise convolution",
         lambda b, x: x + b.dw1(b.ffn1(b.mixer(b.dw0(b.ffn0(x))))))
forwards(SqueezeExcite, "squeeze", "gate not multiplied with its input",
         lambda se, x: np.broadcast_to(se.gate(se.fc2(F.relu(se.fc1(x.mean((2, 3), keepdims=True))))), x.shape))
forwards(SqueezeExcite, "squeeze", "squeeze-and-excitation left out", lambda se, x: x)
forwards(SqueezeExcite, "squeeze", "squeeze takes the maximum instead of the mean",
         lambda se, x: x * se.gate(se.fc2(F.relu(se.fc1(x.max((2, 3), keepdims=True))))))
forwards(SqueezeExcite, "batch-mixed", "squeeze averages over the batch too: samples mixed",
         lambda se, x: x * se.gate(se.fc2(F.relu(se.fc1(x.mean((0, 2, 3), keepdims=True))))))
forwards(Stem, "channels", "colour channels reversed (BGR) at the stem", lambda s, x: Sequential.forward(s, x[:, ::-1]))
forwards(Head, "bn-folding", "the head's batch norm left out", lambda h, x: h.l(x))
forwards(Head, "softmax", "softmax applied to the logits", lambda h, x: _softmax(h.l(h.bn(x))))


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# ------------------------------------------------------------------------------------------ channels and wavelet

def _mrffi(layer, x, order=(0, 1, 2), joined=(0, 1, 2), activation=F.relu, reversed_=False):
    x = x[:, ::-1] if reversed_ else x
    parts, start = [None] * 3, 0
    for i in order:
        parts[i] = x[:, start:start + layer.split[i]]
        start += layer.split[i]
    done = [layer.global_op(parts[0]), layer.local_op(parts[1]), parts[2]]
    relu, project = layer.proj.children.values()
    joined = F.concatenate(*(done[i] for i in joined))
    return project(relu(joined) if activation is F.relu else activation(joined))


for _order in ((1, 0, 2), (2, 1, 0), (0, 2, 1), (2, 0, 1), (1, 2, 0)):
    _names = " | ".join(("global", "local", "identity")[i] for i in _order)
    forwards(MRFFI, "channel-order", f"channels split in another order: {_names}",
             lambda m, x, o=_order: _mrffi(m, x, o, o))
    forwards(MRFFI, "channel-order", f"channels split in another order ({_names}) and joined in the right one",
             lambda m, x, o=_order: _mrffi(m, x, o))
    forwards(MRFFI, "channel-order", f"channels joined in another order: {_names}",
             lambda m, x, o=_order: _mrffi(m, x, joined=o))
forwards(MRFFI, "channel-order", "channels in reverse order", lambda m, x: _mrffi(m, x, reversed_=True))
for _name, _function in OTHERS.items():
    forwards(MRFFI, "activation", f"ReLU after the join: {_name}",
             lambda m, x, f=_function: _mrffi(m, x, activation=f))


def _wavelet(w, x, take=None, give=None, blocked=False, pad=(0, 0), mode="constant", gain=1.0, base=True, only=False,
             scale=True, both=False):
    height, width = x.shape[2:]
    attended = w.global_atten(x)
    attended = w.base_scale(attended) if base and not both else attended
    if only:
        return attended
    odd = height % 2, width % 2
    pads = [(o, 0) if pad[i] else (0, o) for i, o in enumerate(odd)]
    bands = analysis(np.pad(x, ((0, 0), (0, 0), *pads), mode=mode), w.wt_filter) * gain
    bands = _banded(bands, take)
    channels = bands.shape[1] // 4
    if blocked:
        bands = bands.reshape(len(bands), channels, 4, *bands.shape[2:]).swapaxes(1, 2).reshape(bands.shape)
    bands = w.wavelet_convs.children["0"](bands)
    bands = w.wavelet_scale.children["0"](bands) if scale else bands
    if blocked:
        bands = bands.reshape(len(bands), 4, channels, *bands.shape[2:]).swapaxes(1, 2).reshape(bands.shape)
    full = synthesis(_banded(bands, give), w.iwt_filter, height + odd[0], width + odd[1])
    top, left = (o if pad[i] else 0 for i, o in enumerate(odd))
    total = attended + full[:, :, top:top + height, left:left + width]
    return w.base_scale(total) if both else total


def _banded(bands, order):
    if order is None:
        return bands
    shape = bands.shape
    return bands.reshape(shape[0], -1, 4, *shape[2:])[:, :, list(order)].reshape(shape)


for _take in ((0, 2, 1, 3), (3, 1, 2, 0), (1, 0, 2, 3), (0, 1, 3, 2), (0, 3, 2, 1)):
    _both = {"take": _take, "give": tuple(np.argsort(_take))}
    for _where, _swap in (("before and after the convolution", _both), ("in the analysis", {"take": _take}),
                          ("in the synthesis", {"give": _take})):
        forwards(WaveletMamba, "sub-bands", f"sub-bands swapped {_where}: order {_take}", partial(_wavelet, **_swap))
forwards(WaveletMamba, "sub-bands", "sub-bands not interleaved: all low-low first", partial(_wavelet, blocked=True))
for _pads, _word in (((1, 1), "top and left"), ((1, 0), "top"), ((0, 1), "left")):
    forwards(WaveletMamba, "padding-side", f"odd maps padded at the wrong side: {_word}", partial(_wavelet, pad=_pads))
forwards(WaveletMamba, "padding-mode", "odd maps padded by repeating the border", partial(_wavelet, mode="edge"))
forwards(WaveletMamba, "wavelet", "wavelet branch left out", partial(_wavelet, only=True))
forwards(WaveletMamba, "wavelet", "wavelet filters without their factor 1/2", partial(_wavelet, gain=4.0))
forwards(WaveletMamba, "wavelet", "analysis filters twice as large", partial(_wavelet, gain=2.0))
forwards(WaveletMamba, "wavelet", "filters half as large", partial(_wavelet, gain=0.5))
forwards(WaveletMamba, "scale-missing", "wavelet scale left out", partial(_wavelet, scale=False))
forwards(WaveletMamba, "scale-missing", "base scale left out", partial(_wavelet, base=False))
forwards(WaveletMamba, "scale-missing", "base scale applied to the wavelet branch too", partial(_wavelet, both=True))

# -------------------------------------------------------------------------------------------------------- scan


def _ss2d(m, x, *, swap=False, gate="silu", inner="silu", early_gate=False, mean=False, **scan):
    parts = np.split(m.in_proj(x), 2, axis=1)
    x, z = parts[::-1] if swap else parts
    activation = {"silu": F.silu, "none": lambda v: v, "relu": F.relu, "sigmoid": F.sigmoid, "gelu": _gelu}
    x = m.conv2d(x)
    x = activation[inner](x)
    y, gated = _scan(m, x, **scan), activation[gate](z) if gate != "off" else 1
    if mean:
        y = y / 2
    return m.out_proj(m.out_norm(y * gated) if early_gate else m.out_norm(y) * gated)


def _scan(m, x, *, columns=False, reverse=(False, True), back=(False, True), use=None, step="softplus", bias=True,
          skip=True, decay="exp", input_="euler", order="dtBC", directions=None, mixed=False, carried=False,
          rows=False):
    """SS2D.scan for two directions, spelled out with a switch for every mistake."""
    (K, D, R), N = m.dt_projs_weight.shape, m.d_state
    batch, _, height, width = x.shape
    flat = (x.swapaxes(2, 3) if columns else x).reshape(batch, D, -1)
    u = np.stack([flat[..., ::-1] if reverse[k] else flat for k in range(K)], 1)
    pick = [0, 1] if directions is None else directions
    projected = project(m.x_proj_weight[pick], u)
    dt, B, C = {"dtBC": lambda p: (p[:, :, :R], p[:, :, R:R + N], p[:, :, R + N:]),
                "dtCB": lambda p: (p[:, :, :R], p[:, :, R + N:], p[:, :, R:R + N]),
                "BCdt": lambda p: (p[:, :, 2 * N:], p[:, :, :N], p[:, :, N:2 * N])}[order](projected)
    raw = project(m.dt_projs_weight[pick], dt)
    raw = raw + m.dt_projs_bias[pick][:, :, None] * {True: 1, False: 0, "twice": 2}[bias]
    delta = {"softplus": F.softplus, "none": lambda v: v, "exp": lambda v: np.exp(np.minimum(v, 50)), "relu": F.relu,
             "sigmoid": F.sigmoid, "twice": lambda v: F.softplus(F.softplus(v))}[step](raw)
    logs = m.A_logs.reshape(K, D, N)[pick]
    A = {"exp": lambda: -np.exp(logs), "log": lambda: logs, "minus": lambda: -logs,
         "positive": lambda: np.exp(logs)}[decay]()
    Ds = m.Ds.reshape(K, D)[pick] * bool(skip)
    if input_ == "exact":  # zero-order hold of B: (exp(delta A) - 1) / A instead of delta
        y = _recurrence(u, delta, np.expm1(delta * A[..., 0, None]) / A[..., 0, None], A, B, C, Ds)
    elif input_ == "none":
        y = _recurrence(u, delta, np.ones_like(delta), A, B, C, Ds)
    elif carried:
        joined = [np.concatenate(list(v), -1)[None] for v in (u, delta, B, C)]
        y = selective_scan(joined[0], joined[1], A, joined[2], joined[3], Ds)[0]
        y = np.stack(np.split(y, batch, -1))
    elif rows:
        cut = [v.reshape(*v.shape[:3], height, width).transpose(0, 3, 1, 2, 4).reshape(-1, *v.shape[1:3], width)
               for v in (u, delta, B, C)]
        y = selective_scan(cut[0], cut[1], A, cut[2], cut[3], Ds)
        y = y.reshape(batch, height, K, D, width).transpose(0, 2, 3, 1, 4).reshape(u.shape)
    else:
        y = selective_scan(u, delta, A, B, C, Ds)
    parts = [y[:, k][..., ::-1] if back[k] else y[:, k] for k in range(K)]
    if mixed:  # the published fall-back adds (B, D, L) to (B, 1, D, L) and sums over the wrong axis
        total = parts[0].sum(0, keepdims=True) + batch * parts[1]
    else:
        total = parts[0] + parts[1] if use is None else parts[use]
    if columns:
        return total.reshape(batch, D, width, height).swapaxes(2, 3)
    return total.reshape(batch, D, height, width)


def _recurrence(u, delta, weight, A, B, C, Ds):
    y, h = np.empty_like(u), np.zeros(u.shape[:3])
    decay = np.exp(delta * A[..., 0, None])
    for i in range(u.shape[-1]):
        h = decay[..., i] * h + weight[..., i] * B[:, :, 0, None, i] * u[..., i]
        y[..., i] = C[:, :, 0, None, i] * h
    return y + Ds[:, :, None] * u


for _parameter, _word in (("x_proj_weight", "of x_proj"), ("dt_projs_weight", "of the step size (dt_projs)")):
    sets(SS2D, "transposed-projection", f"weight {_word} transposed", **{
        _parameter: lambda m, p=_parameter: np.stack([w.reshape(w.shape[::-1]).T for w in getattr(m, p)])})


def _ss2d_fault(key, text, **options):
    def plant(layer):
        if layer.order != "bidirectional" or layer.d_state != 1:
            return False
        layer.forward = partial(_ss2d, layer, **options)
    fault(SS2D, key, text)(plant)


for _key, _text, _options in (
        ("softplus-missing", "softplus left out of the step size", {"step": "none"}),
        ("softplus", "exp instead of softplus for the step size", {"step": "exp"}),
        ("softplus", "ReLU instead of softplus for the step size", {"step": "relu"}),
        ("softplus", "sigmoid instead of softplus for the step size", {"step": "sigmoid"}),
        ("softplus", "softplus applied twice", {"step": "twice"}),
        ("dt-bias-missing", "bias of the step size (dt_projs_bias) left out", {"bias": False}),
        ("dt-bias", "bias of the step size (dt_projs_bias) added twice", {"bias": "twice"}),
        ("Ds-missing", "skip term Ds * u left out", {"skip": False}),
        ("direction", "the backward scan reads forwards, yet is turned round afterwards", {"reverse": (False, False)}),
        ("direction", "the backward scan's result is not turned round", {"back": (False, False)}),
        ("direction", "both directions scan forwards", {"reverse": (False, False), "back": (False, False)}),
        ("direction", "both directions scan backwards", {"reverse": (True, True), "back": (True, True)}),
        ("direction", "directions reversed: the forward scan runs backwards and the backward one forwards",
         {"reverse": (True, False), "back": (True, False)}),
        ("direction", "backward scan left out", {"use": 0}), ("direction", "forward scan left out", {"use": 1}),
        ("direction", "the two sequences exchanged, their results not", {"reverse": (True, False)}),
        ("direction", "the two results exchanged, their sequences not", {"back": (True, False)}),
        ("direction", "pixels scanned by columns instead of rows", {"columns": True}),
        ("direction", "parameters of the two directions exchanged", {"directions": [1, 0]}),
        ("direction", "the first direction's parameters used for both", {"directions": [0, 0]}),
        ("batch-mixed", "samples of the batch mixed where directions are merged, as in the published CPU path",
         {"mixed": True}),
        ("scan-reset", "scan not reset between samples: the state runs on into the next", {"carried": True}),
        ("scan-reset", "scan reset at every row of the map", {"rows": True}),
        ("decay", "A = A_logs: minus and exp left out", {"decay": "log"}),
        ("decay", "A = -A_logs: exp left out", {"decay": "minus"}),
        ("decay", "A = exp(A_logs): minus left out", {"decay": "positive"}),
        ("discretisation", "B discretised exactly (zero-order hold) instead of delta * B", {"input_": "exact"}),
        ("discretisation", "B not multiplied by delta", {"input_": "none"}),
        ("projection-order", "B and C exchanged", {"order": "dtCB"}),
        ("projection-order", "x_proj split as B, C, dt", {"order": "BCdt"}),
        ("gate", "x and z exchanged", {"swap": True}), ("gate", "gate z left out", {"gate": "off"}),
        ("gate", "SiLU of the gate left out", {"gate": "none"}),
        ("gate", "sigmoid instead of SiLU on the gate", {"gate": "sigmoid"}),
        ("gate", "ReLU instead of SiLU on the gate", {"gate": "relu"}),
        ("gate", "gate multiplied before the norm", {"early_gate": True}),
        ("activation", "SiLU after conv2d left out", {"inner": "none"}),
        ("activation", "ReLU instead of SiLU after conv2d", {"inner": "relu"}),
        ("activation", "GELU instead of SiLU after conv2d", {"inner": "gelu"}),
        ("merge", "directions averaged instead of added", {"mean": True})):
    _ss2d_fault(_key, _text, **_options)
