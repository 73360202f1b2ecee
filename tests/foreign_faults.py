"""Faults of ports in the groups that people make them in, for tests/foreign_bench.py.

This file shares nothing with mmref/validate: it imports none of it, and nothing there imports it, so that what the
diagnoses know and what is planted come from two hands. A fault changes a PyTorch network, which may then be exported,
or the input it is given. `keys` are the diagnoses that would be right: all names for the same thing.
"""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass
from types import MethodType

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mmref.bench import torch_network


@dataclass
class Fault:
    group: str
    name: str
    plant: object        # called with the network, changes it in place
    keys: tuple = ()     # (): none is expected, and none would be right
    prepare: object = None  # called with the input instead: what the candidate gets
    exportable: bool = True


FAULTS: list[Fault] = []
B1, B2, B3, B4 = "blocks1.0", "blocks2.3", "blocks2.4", "blocks3.3"
SCAN = ".mixer.m.attn.global_op.global_atten"
WAVE, LOCAL, MIX = ".mixer.m.attn.global_op", ".mixer.m.attn.local_op", ".mixer.m.attn"


def add(group, name, keys, plant, **options):
    FAULTS.append(Fault(group, name, plant, keys if isinstance(keys, tuple) else (keys,), **options))


def at(path, change):
    return lambda net: change(net.get_submodule(path))


def data(path, attribute, function):
    """A parameter or buffer replaced by a function of it."""
    def plant(net):
        tensor = getattr(net.get_submodule(path), attribute)
        tensor.data = function(tensor.data.clone()).contiguous()
    return plant


def sets(path, **values):
    def plant(net):
        for name, value in values.items():
            setattr(net.get_submodule(path), name, value)
    return plant


def text(path, old, new, method="forward", **names):
    """A method's source with a piece replaced."""
    def plant(net):
        module = net.get_submodule(path) if path else net
        source = textwrap.dedent(inspect.getsource(getattr(type(module), method)))
        assert old in source, (path, old)
        scope = {**vars(torch_network), **names}
        exec(compile(source.replace(old, new), "<fault>", "exec"), scope)
        setattr(module, method, MethodType(scope[method], module))
    return plant


def everywhere(kind, change):
    def plant(net):
        for module in net.modules():
            if isinstance(module, kind):
                change(module)
    return plant


def together(*plants):
    def plant(net):
        for one in plants:
            one(net)
    return plant


def calls(path, function):
    """A module computing function(module, x)."""
    return at(path, lambda module: setattr(module, "forward", MethodType(function, module)))


def swap(a, b, *names):
    def plant(net):
        first, second = net.get_submodule(a), net.get_submodule(b)
        for name in names:
            one, other = getattr(first, name).data.clone(), getattr(second, name).data.clone()
            getattr(first, name).data, getattr(second, name).data = other, one
    return plant


def fake_int8(w, channels=True):
    scale = w.abs().amax(tuple(range(1, w.ndim)), keepdim=True) / 127 if channels else w.abs().max() / 127
    return (w / scale).round().clamp(-127, 127) * scale


def pad_conv(low, high, mode="constant"):
    def forward(conv, x):
        return F.conv2d(F.pad(x, (low, high, low, high), mode=mode), conv.weight, conv.bias, conv.stride, 0, 1,
            conv.groups)

    return forward


# ------------------------------------------------------------------------------------------------------- numerics
BN = (nn.BatchNorm2d, nn.BatchNorm1d)
for eps in (1e-3, 1e-4, 1e-6):
    add("numerics", f"eps {eps:g} in every batch norm", "bn-eps", everywhere(BN, lambda m, e=eps: setattr(m, "eps", e)))
    add("numerics", f"eps {eps:g} in one batch norm", "bn-eps", sets("blocks2.1.conv3.bn", eps=eps))
add("numerics", "eps 1e-3 in the stem's first", "bn-eps", sets("patch_embed.0.bn", eps=1e-3))
add("numerics", "eps 1e-2 in the head", "bn-eps", sets("head.bn", eps=1e-2))
add("numerics", "eps 1e-3 in every layer norm", "layer-norm",
    everywhere(nn.LayerNorm, lambda m: setattr(m, "eps", 1e-3)))
add("numerics", "eps 1e-6 in one layer norm", "layer-norm", sets(f"{B3}{SCAN}.out_norm", eps=1e-6))
for block in (B1, B4):
    add("numerics", f"softplus as exp in {block}", "softplus", text(block + SCAN, "F.softplus(", "torch.exp("))
    add("numerics", f"softplus of beta 2 in {block}", (), text(block + SCAN, "F.softplus(",
        "(lambda v: F.softplus(v, 2.0))("))
    add("numerics", f"decay to first order in {block}", "discretisation", at(block + SCAN, lambda m: setattr(
        m, "scan", _first_order)))
add("numerics", "A clamped at -1", (), text(B3 + SCAN, "-torch.exp(self.A_logs)",
    "-torch.exp(self.A_logs).clamp(max=1)"))
add("numerics", "step sizes clamped at 0.1", "softplus", text(B3 + SCAN, "F.softplus(",
    "(lambda v: F.softplus(v).clamp(max=0.1))("))
for where in ("blocks2.1.se", "blocks3.1.se"):
    add("numerics", f"hard sigmoid in {where}", "activation", sets(where, gate=nn.Hardsigmoid()))
    add("numerics", f"tanh gate in {where}", "activation", sets(where, gate=nn.Tanh()))
for kind, name in ((nn.GELU(), "GELU"), (nn.SiLU(), "SiLU"), (nn.LeakyReLU(0.01), "leaky ReLU"),
                   (nn.Identity(), "no ReLU"), (nn.ELU(), "ELU"), (nn.Hardswish(), "hard swish")):
    add("numerics", f"{name} in the stem", "activation", lambda net, k=kind: setattr(net.patch_embed, "3", k))
add("numerics", "GELU in every FFN", "activation", lambda net: [text(name, "F.relu(", "F.gelu(")(net) for name, module
    in net.named_modules() if isinstance(module, torch_network.FFN)])
add("numerics", "leaky ReLU of slope 0.2 in an FFN", (), text(f"{B2}.ffn1.m", "F.relu(",
    "(lambda v: F.leaky_relu(v, 0.2))("))
add("numerics", "ReLU6 in a merging", ("activation", ""), text("blocks3.1", "F.relu(self.conv1", "F.relu6(self.conv1"))
add("numerics", "gate by sigmoid", "gate", text(B2 + SCAN, "y * F.silu(z)", "y * torch.sigmoid(z)"))
add("numerics", "gate by GELU", "gate", text(B4 + SCAN, "y * F.silu(z)", "y * F.gelu(z)"))


def _first_order(u, delta, A, B, C, D):
    h, outputs = u.new_zeros(*u.shape[:3], A.shape[-1]), []
    for step in range(u.shape[-1]):
        d = delta[..., step, None]
        h = (1 + d * A) * h + d * B[..., None, :, step] * u[..., step, None]
        outputs.append((h * C[..., None, :, step]).sum(-1))
    return torch.stack(outputs, -1) + D[..., None] * u


# ---------------------------------------------------------------------------------------------------------- layout
for block in (B1, B3):
    add("layout", f"split local first in {block}", "channel-order", text(
        block + MIX, "glob, local, identity = x.split(self.split, 1)",
        "local, glob, identity = x.split([self.split[1], self.split[0], self.split[2]], 1)"))
    add("layout", f"joined local first in {block}", "channel-order", text(
        block + MIX, "[self.global_op(glob), self.local_op(local), identity]",
        "[self.local_op(local), self.global_op(glob), identity]"))
    add("layout", f"x and z exchanged in {block}", "gate", text(block + SCAN, "x, z =", "z, x ="))
    add("layout", f"x and z interleaved in {block}", ("channel-order", "gate"), text(
        block + SCAN, "self.in_proj(x).chunk(2, 1)", "(self.in_proj(x)[:, ::2], self.in_proj(x)[:, 1::2])"))
    add("layout", f"B and C exchanged in {block}", "projection-order", text(block + SCAN, "dt, B, C =", "dt, C, B ="))
    add("layout", f"scan by columns in {block}", "direction", lambda net, b=block: (
        text(b + SCAN, "scan_sequences(x, self.order)", "scan_sequences(x.transpose(2, 3), self.order)")(net),
        _merge_columns(net.get_submodule(b + SCAN))))
    add("layout", f"sub-bands of the analysis in another order in {block}", "sub-bands", data(
        block + WAVE, "wt_filter", lambda w: w.view(-1, 4, 1, 2, 2)[:, [0, 2, 1, 3]].reshape(w.shape)))
    add("layout", f"sub-bands of the synthesis in another order in {block}", "sub-bands", data(
        block + WAVE, "iwt_filter", lambda w: w.view(-1, 4, 1, 2, 2)[:, [1, 0, 2, 3]].reshape(w.shape)))
    add("layout", f"sign of a sub-band in {block}", ("sub-bands",), data(
        block + WAVE, "wt_filter", lambda w: w * torch.tensor([1, -1, 1, 1]).repeat(len(w) // 4).view(-1, 1, 1, 1)))
add("layout", "sub-bands blocked", ("sub-bands",), text(
    B2 + WAVE, "bands = F.conv2d(x, self.wt_filter, stride=2, groups=dim)",
    "bands = F.conv2d(x, self.wt_filter, stride=2, groups=dim); "
    "bands = bands.unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2)", "wavelet"))
add("layout", "classifier's weight read transposed", ("transposed-projection",), data(
    "head.l", "weight", lambda w: w.reshape(w.shape[1], w.shape[0]).T))
add("layout", "pointwise weight read transposed", ("transposed-projection", "weights"), data(
    "blocks2.1.conv1.c", "weight", lambda w: w.reshape(w.shape[1], w.shape[0], 1, 1).transpose(0, 1)))
add("layout", "square projection transposed", ("transposed-projection", "weights"), data(
    f"{B2}{MIX}.proj.1.c", "weight", lambda w: w.transpose(0, 1)))
add("layout", "stem reads BGR", ("channels", "weights"), data("patch_embed.0.c", "weight", lambda w: w.flip(1)))
add("layout", "stem kernel turned round", ("kernel-flipped", "weights"), data("patch_embed.2.c", "weight",
    lambda w: w.flip(2, 3)))
add("layout", "stem kernel transposed", ("kernel-transposed", "weights"), data("patch_embed.4.c", "weight",
    lambda w: w.transpose(2, 3)))
add("layout", "depthwise kernel turned round", ("kernel-flipped", "weights"), data(f"{B1}.dw0.m.c", "weight",
    lambda w: w.flip(2, 3)))
add("layout", "depthwise kernel mirrored", ("kernel-flipped", "weights"), data(f"{B3}{LOCAL}.dwconv3x3", "weight",
    lambda w: w.flip(3)))
add("layout", "both directions read forwards", "direction", text(
    B2 + SCAN, "scan_sequences(x, self.order)", "torch.stack([x.flatten(2)] * 2, 1)"))
add("layout", "backward result not turned round", "direction", text(
    B1 + SCAN, "scan_merge(y, self.order, height, width)", "(y[:, 0] + y[:, 1]).reshape(len(y), -1, height, width)"))
add("layout", "map mirrored before the scan", ("permuted",), text(
    B4 + SCAN, "self.in_proj(x)", "self.in_proj(x.flip(3))"))


def _merge_columns(module):
    forward = module.forward.__func__
    forward.__globals__["scan_merge"] = lambda y, order, height, width: torch_network.scan_merge(
        y, order, width, height).transpose(2, 3)


# --------------------------------------------------------------------------------------------------------- padding
for where, side in (("patch_embed.0.c", (0, 2)), ("patch_embed.4.c", (2, 0)), ("blocks2.1.conv2.c", (0, 2)),
                    (f"{B1}.dw0.m.c", (0, 2)), (f"{B4}.dw1.m.c", (2, 0))):
    add("padding", f"{where} padded {side}", "padding-side", calls(where, pad_conv(*side)))
for where, mode in (("patch_embed.2.c", "replicate"), ("patch_embed.0.c", "reflect"), (f"{B2}.dw0.m.c", "replicate"),
                    (f"{B1}.dw1.m.c", "circular")):
    add("padding", f"{where} padded by {mode}", "padding-mode", calls(where, pad_conv(1, 1, mode)),
        exportable=mode != "circular")
for block in (B1, B3):
    pads = "F.pad(x, (0, width % 2, 0, height % 2))"
    add("padding", f"odd maps padded at the top in {block}", "padding-side", text(
        block + WAVE, pads, "F.pad(x, (0, width % 2, height % 2, 0))", "wavelet"))
    add("padding", f"odd maps padded at the left in {block}", "padding-side", text(
        block + WAVE, pads, "F.pad(x, (width % 2, 0, 0, height % 2))", "wavelet"))
    add("padding", f"odd maps cropped at the wrong end in {block}", "padding-side", text(
        block + WAVE, "[..., :height, :width]", "[..., -height:, -width:]", "wavelet"))
    add("padding", f"wavelet kernel padded on one side in {block}", "padding-side", lambda net, b=block: calls(
        f"{b}{WAVE}.wavelet_convs.0", pad_conv(0, net.get_submodule(f"{b}{WAVE}.wavelet_convs.0").padding[0] * 2))(net))
add("padding", "odd maps padded by their border", "padding-mode", text(
    B2 + WAVE, "(0, width % 2, 0, height % 2))", "(0, width % 2, 0, height % 2), mode='replicate')", "wavelet"))
add("padding", "TensorFlow's SAME at an even map", "padding-side", calls("patch_embed.0.c", lambda conv, x: F.conv2d(
    F.pad(x, [p for n in reversed(x.shape[2:]) for p in ((0, 1) if n % 2 == 0 else (1, 1))]), conv.weight, None, 2)))

# --------------------------------------------------------------------------------------------------------- weights
DENSE = ("blocks1.0.ffn0.m.pw1.c", "blocks2.1.conv1.c", f"{B4}.ffn1.m.pw2.c")
for where in DENSE:
    add("weights", f"{where} not loaded", ("weights",), at(where, lambda m: nn.init.kaiming_uniform_(
        m.weight, generator=torch.Generator().manual_seed(1))))
    add("weights", f"{where} in bfloat16", ("weights-rounded", "weights"), data(where, "weight",
        lambda w: w.bfloat16().float()))
    add("weights", f"{where} in int8", ("weights-rounded", "weights"), data(where, "weight", fake_int8))
    add("weights", f"{where} in int8, one scale", ("weights-rounded", "weights"), data(
        where, "weight", lambda w: fake_int8(w, False)))
    add("weights", f"{where}: two output channels exchanged", ("weights",), data(
        where, "weight", lambda w: w[[1, 0, *range(2, len(w))]]))
for where in ("patch_embed.0.c", f"{B1}.dw0.m.c", f"{B2}{LOCAL}.dwconv3x3", f"{B3}{SCAN}.conv2d"):
    add("weights", f"{where} not loaded", ("weights",), at(where, lambda m: nn.init.normal_(
        m.weight, std=0.1, generator=torch.Generator().manual_seed(2))))
    add("weights", f"{where}: one channel zero", ("weights",), data(where, "weight", lambda w: w * (torch.arange(
        len(w)) != 2).view(-1, 1, 1, 1)))
for where in (f"{B1}.ffn0.m.pw1.bn", "blocks3.1.conv2.bn", "patch_embed.2.bn", f"{B2}{SCAN}.in_proj.bn"):
    add("weights", f"{where} not loaded", ("bn-folding", "weights"), at(where, lambda m: (
        m.reset_running_stats(), nn.init.ones_(m.weight), nn.init.zeros_(m.bias))))
    add("weights", f"{where} folded twice", ("bn-twice", "weights"), calls(
        where, lambda m, x: type(m).forward(m, type(m).forward(m, x))))
    add("weights", f"{where}: mean lost", ("bn-folding", "weights"), data(where, "running_mean", lambda v: v * 0))
add("weights", "two depthwise layers exchanged", ("weights-exchanged", "weights"),
    swap(f"{B2}.dw0.m.c", f"{B2}.dw1.m.c", "weight"))
add("weights", "two pointwise layers exchanged", ("weights-exchanged", "weights"),
    swap(f"{B2}.ffn0.m.pw1.c", f"{B3}.ffn1.m.pw1.c", "weight"))
add("weights", "two norms exchanged", ("weights-exchanged", "weights", "bn-folding"), swap(
    f"{B2}.ffn0.m.pw1.bn", f"{B2}.ffn1.m.pw1.bn", "weight", "bias", "running_mean", "running_var"))
add("weights", "classifier's bias lost", ("bias-missing",), data("head.l", "bias", lambda v: v * 0))
add("weights", "bias of a squeeze lost", ("bias-missing",), data("blocks2.1.se.fc1", "bias", lambda v: v * 0))
add("weights", "learned scale not loaded", ("scale-missing", "weights"), data(
    f"{B3}{WAVE}.base_scale", "weight", lambda v: torch.ones_like(v)))
add("weights", "Ds not loaded", ("Ds-missing",), data(f"{B3}{SCAN}", "Ds", lambda v: torch.ones_like(v)))
add("weights", "Ds zero", ("Ds-missing",), data(f"{B1}{SCAN}", "Ds", lambda v: v * 0))
add("weights", "another checkpoint", ("weights", ""), everywhere((nn.Conv2d, nn.Linear),
    lambda m: m.weight.data.normal_(std=float(m.weight.std()), generator=torch.Generator().manual_seed(3))))
add("weights", "a moving average in place of the raw weights", ("weights", ""), everywhere(
    nn.Conv2d, lambda m: m.weight.data.add_(0.02 * m.weight.std() * torch.randn(
        m.weight.shape, generator=torch.Generator().manual_seed(4)))))

# ----------------------------------------------------------------------------------------------------- preparation
PICTURES = (
    ("gamma", ("curve",), lambda x: np.sign(x) * np.abs(x) ** 0.8),
    ("limited range", ("normalisation",), lambda x: x * (219 / 255) + 0.1),
    ("float16", ("rounded",), lambda x: x.astype(np.float16).astype(np.float32)),
    ("saturated", ("range",), lambda x: np.clip(x, -1, 1)), ("a dead row", ("region",), lambda x: _dead(x)),
    ("upside down", ("input-permuted",), lambda x: x[:, :, ::-1]),
    ("mirrored", ("input-permuted",), lambda x: x[..., ::-1]),
    ("turned round", ("input-permuted",), lambda x: x[:, :, ::-1, ::-1]),
    ("BGR", ("input-permuted",), lambda x: x[:, ::-1]),
    ("green first", ("input-permuted",), lambda x: x[:, [1, 0, 2]]),
    ("HWC read as CHW", ("input-permuted",), lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(x.shape)),
    ("times 255", ("normalisation",), lambda x: x * 255), ("no mean", ("normalisation",), lambda x: x * 0.225 + 0.45),
    ("shifted by a pixel", ("resize-crop",), lambda x: np.roll(x, 1, 3)),
    ("blurred", (), lambda x: (x + np.roll(x, 1, 2) + np.roll(x, 1, 3)) / 3),
    ("another picture", (), lambda x: np.random.default_rng(99).standard_normal(x.shape)),
    ("samples reversed", ("batch-mixed",), lambda x: x[::-1]))
for name, keys, change in PICTURES:
    FAULTS.append(Fault("preparation", name, lambda net: None, keys, lambda x, c=change: np.ascontiguousarray(
        c(x).astype(np.float32))))


def _dead(x):
    x = x.copy()
    x[:, :, 7] = 0
    return x


# ----------------------------------------------------------------------------------------------------------- batch
def _training(module):
    module.forward = MethodType(lambda m, x: F.batch_norm(x, None, None, m.weight, m.bias, True, 0.0, m.eps), module)


for where in (f"{B1}.ffn0.m.pw1.bn", "patch_embed.4.bn", "blocks3.1.conv1.bn"):
    add("batch", f"{where} in training mode", "bn-training", at(where, _training))
add("batch", "every batch norm in training mode", "bn-training", everywhere(BN, _training))
for where in ("blocks2.1.se", "blocks3.1.se"):
    add("batch", f"{where} mixes samples", ("batch-mixed",), text(
        where, "x.mean((2, 3), keepdim=True)", "x.mean((0, 2, 3), keepdim=True).expand(x.shape[0], -1, -1, -1)"))
add("batch", "pooling mixes samples", ("batch-mixed",), text(
    "", ".mean((2, 3))", ".mean((0, 2, 3), keepdim=True)[:, :, 0, 0].expand(x.shape[0], -1)"))
add("batch", "shortcut of the first sample for all", (), text(f"{B2}.dw0", "x + self.m(x)", "x[:1] + self.m(x)"))
add("batch", "samples of the merge reversed", ("batch-mixed",), text(
    B3 + SCAN, "y = scan_merge(y, self.order, height, width)", "y = scan_merge(y.flip(0), self.order, height, width)"))
add("batch", "state carried into the next sample", ("scan-reset",), at(B2 + SCAN, lambda m: setattr(m, "scan",
    _carried)))
for size in (4, 8):
    add("batch", f"scan in chunks of {size}", ("scan-reset",), at(B1 + SCAN, lambda m, n=size: setattr(
        m, "scan", lambda *v: _chunks(n, *v))))


def _carried(u, delta, A, B, C, D):
    joined = [torch.cat(list(v), -1)[None] for v in (u, delta, B, C)]
    return torch.stack(torch.split(torch_network.selective_scan(*joined[:2], A, *joined[2:], D)[0], u.shape[-1], -1))


def _chunks(size, u, delta, A, B, C, D):
    return torch.cat([torch_network.selective_scan(u[..., i:i + size], delta[..., i:i + size], A, B[..., i:i + size],
                                                   C[..., i:i + size], D) for i in range(0, u.shape[-1], size)], -1)


# ---------------------------------------------------------------------------------------------------------- subtle
add("subtle", "one weight off by 1 %", ("weights", ""), data(f"{B1}.ffn0.m.pw1.c", "weight", lambda w: w * (
    1 + 0.01 * (torch.arange(w.numel()).view_as(w) == 7))))
add("subtle", "one weight's sign", ("weights", ""), data("patch_embed.2.c", "weight", lambda w: w * (
    1 - 2 * (torch.arange(w.numel()).view_as(w) == 11).float())))
add("subtle", "last channel of the scan lost", (), text(B2 + SCAN, "y = self.scan(",
    "y = torch.ones(self.inner).index_fill(0, torch.tensor([self.inner - 1]), 0).view(1, 1, -1, 1) * self.scan("))
add("subtle", "first step of the scan lost", (), at(B1 + SCAN, lambda m: setattr(m, "scan", lambda *v: F.pad(
    torch_network.selective_scan(*v)[..., 1:], (1, 0)))))
add("subtle", "gate shifted by a pixel", (), text(B3 + SCAN, "F.silu(z)", "F.silu(z.roll(1, 3))"))
add("subtle", "shortcut times 0.999", (), text(f"{B2}.ffn0", "x + self.m(x)", "0.999 * x + self.m(x)"))
add("subtle", "mean without the last pixel", (), text("", ".mean((2, 3))", ".flatten(2)[..., :-1].mean(2)"))
add("subtle", "bottom row of a map zero", (), text(f"{B1}.dw1", "x + self.m(x)",
    "F.pad((x + self.m(x))[:, :, :-1], (0, 0, 0, 1))"))
add("subtle", "shortcut in a norm", ("bn-folding", ""), text(f"{B4}.dw0", "x + self.m(x)",
    "self.m.bn(self.m.c(x) + x)"))
add("subtle", "base scale on the sum", (), text(B3 + WAVE, "self.base_scale(self.global_atten(x)) + self.wavelet(x)",
                                                "self.base_scale(self.global_atten(x) + self.wavelet(x))"))
add("subtle", "variance over n - 1 in a layer norm", "layer-norm", calls(f"{B2}{SCAN}.out_norm", lambda m, x: (
    (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + m.eps) * m.weight + m.bias)))
add("subtle", "local branch without ReLU", "activation", text(B1 + LOCAL, "F.relu(", "("))
add("subtle", "branch taken from before the shortcut", "shortcut", text(
    B2, "self.dw1(self.mixer(self.ffn0(self.dw0(x))))", "self.dw1(self.mixer(self.ffn0(x)))"))
add("subtle", "channel mixing left out", "shortcut", text(B3, "self.ffn1(self.dw1(", "(self.dw1("))
add("subtle", "outer shortcut left out", "shortcut", text(B4, "x + self.ffn1", "self.ffn1"))
add("subtle", "outer shortcut twice", "shortcut", text(B1, "x + self.ffn1", "x + x + self.ffn1"))

# --------------------------------------------------------------------------------------------------- several at once
add("several", "eps and a lost Ds", ("bn-eps", "Ds-missing"), together(sets(f"{B1}.ffn0.m.pw1.bn", eps=1e-3),
                                                                        data(f"{B4}{SCAN}", "Ds", lambda v: v * 0)))
add("several", "BGR stem and GELU", ("channels", "activation", "weights"), together(
    data("patch_embed.0.c", "weight", lambda w: w.flip(1)), text(f"{B3}.ffn0.m", "F.relu(", "F.gelu(")))
add("several", "padding twice", "padding-side", together(calls("patch_embed.0.c", pad_conv(0, 2)),
                                                         calls(f"{B2}.dw0.m.c", pad_conv(2, 0))))
add("several", "shortcut lost and a norm not loaded", ("shortcut", "bn-folding", "weights"), together(
    text(f"{B1}.dw0", "x + self.m(x)", "self.m(x)"), at("blocks3.1.conv2.bn", lambda m: (
        m.reset_running_stats(), nn.init.ones_(m.weight), nn.init.zeros_(m.bias)))))
add("several", "sub-bands and bias", ("sub-bands", "bias-missing"), together(
    data(B1 + WAVE, "wt_filter", lambda w: w.view(-1, 4, 1, 2, 2)[:, [0, 2, 1, 3]].reshape(w.shape)),
    data("head.l", "bias", lambda v: v * 0)))
add("several", "layer norm and gate", ("layer-norm", "gate"), together(
    sets(f"{B2}{SCAN}.out_norm", eps=1e-2), text(B3 + SCAN, "y * F.silu(z)", "y * torch.sigmoid(z)")))
FAULTS.append(Fault("several", "BGR picture and a lost shortcut", text(f"{B2}.dw0", "x + self.m(x)", "self.m(x)"),
                    ("input-permuted", "shortcut"), lambda x: np.ascontiguousarray(x[:, ::-1])))
