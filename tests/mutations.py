"""Faults planted one at a time into the PyTorch reference and into the preparation of the picture.

They are written independently of mmref's own list of mistakes (mmref/validate/faults.py).

A mutation gives: name, the module it changes (a path below the network), the first record that a trace made with
forward hooks can show it in, the key a diagnosis should have ("" where no signature is known).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mmref.bench import torch_network as reference
from mmref.data.samples import sample_picture


@dataclass
class Mutation:
    name: str
    where: str
    first: str
    key: str
    plant: object  # called with the module at `where`


BLOCK = "blocks2.3"
MIX = f"{BLOCK}.mixer.m.attn"
GLOBAL, LOCAL = f"{MIX}.global_op", f"{MIX}.local_op"
SCAN = f"{GLOBAL}.global_atten"


def edited(function, text, replacement, namespace=None):
    """`function`, with a piece of its source replaced: a fault as it would stand in somebody's port."""
    import inspect
    import textwrap
    source = textwrap.dedent(inspect.getsource(function))
    assert text in source, text
    scope = dict(vars(reference), **(namespace or {}))
    exec(compile(source.replace(text, replacement), "<mutation>", "exec"), scope)
    return scope[function.__name__]


def forward_edit(text, replacement, method="forward", **namespace):
    def plant(module):
        setattr(module, method, MethodType(edited(getattr(type(module), method), text, replacement, namespace), module))
    return plant


def attribute(name, value):
    def plant(module):
        target = module
        *path, last = name.split(".")
        for part in path:
            target = getattr(target, part)
        old = getattr(target, last)
        new = value(old) if callable(value) else value
        if isinstance(old, torch.nn.Parameter):
            old.data = new.data.clone()
        else:
            setattr(target, last, new)
    return plant


def pads(low, high, mode="constant"):
    def plant(conv):
        conv.forward = lambda x: F.conv2d(F.pad(x, (low, high, low, high), mode=mode), conv.weight, conv.bias,
                                          conv.stride, 0, 1, conv.groups)
    return plant


def tensorflow_same(conv):
    def forward(x):
        pads = [p for n in reversed(x.shape[2:]) for p in ((0, 1) if n % 2 == 0 else (1, 1))]
        return F.conv2d(F.pad(x, pads), conv.weight, conv.bias, conv.stride)
    conv.forward = forward


def bfloat16(array):
    return torch.from_numpy(array).bfloat16().float().numpy()


def training(bn):
    bn.forward = lambda x: F.batch_norm(x, None, None, bn.weight, bn.bias, True, 0.0, bn.eps)


def _row_reset(u, delta, A, B, C, D, width):
    cut = [torch.cat(torch.split(v, width, -1), 0) for v in (u, delta, B, C)]
    y = reference.selective_scan(cut[0], cut[1], A, cut[2], cut[3], D)
    return torch.cat(torch.split(y, u.shape[0], 0), -1)


def _carried(u, delta, A, B, C, D):
    joined = [torch.cat(list(v), -1)[None] for v in (u, delta, B, C)]
    y = reference.selective_scan(joined[0], joined[1], A, joined[2], joined[3], D)
    return torch.stack(torch.split(y[0], u.shape[-1], -1))


def sample_variance(norm):
    norm.forward = lambda x: ((x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + norm.eps)
                              * norm.weight + norm.bias)


def scan_edit(text, replacement):
    def plant(module):
        module.scan = edited(reference.selective_scan, text, replacement)
    return plant


def transposed(weight):
    return weight.swapaxes(0, 1).contiguous()


def misread(weight):
    """The array's values read as if its two first axes were exchanged."""
    return weight.reshape(weight.shape[1], weight.shape[0], *weight.shape[2:]).swapaxes(0, 1)


NORM = f"{SCAN}.out_norm"


def bands(order):
    def swapped(filters):
        return filters.reshape(-1, 4, *filters.shape[1:])[:, order].reshape(filters.shape)
    return swapped


def both_banks(order):
    def plant(module):
        attribute("wt_filter", bands(order))(module)
        attribute("iwt_filter", bands(order))(module)
    return plant


def wrong_merge(module):
    """The published CPU fall-back: samples of a batch are added up."""
    def merge(y, order, height, width):
        batch, _, dim, _ = y.shape
        total = y[:, 0].sum(0, keepdim=True) + batch * y[:, 1].flip(-1)
        return total.reshape(batch, dim, height, width)
    module.forward = MethodType(edited(type(module).forward, "scan_merge(", "merge(", {"merge": merge}), module)


def by_columns(module):
    def sequences(x, order):
        return reference.scan_sequences(x.transpose(2, 3), order)

    def merge(y, order, height, width):
        return reference.scan_merge(y, order, width, height).transpose(2, 3)
    changed = edited(type(module).forward, "scan_sequences(", "sequences(", {"sequences": sequences})
    changed.__globals__["scan_merge"] = merge
    module.forward = MethodType(changed, module)


M = Mutation
STEP = "F.softplus("
TORCH = [
    M("stem pads as TensorFlow", "patch_embed.0.c", "patch_embed.0.c", "padding-side", pads(0, 2)),
    M("stem pads at the top left", "patch_embed.4.c", "patch_embed.4.c", "padding-side", pads(2, 0)),
    M("even maps padded as TensorFlow", "patch_embed.2.c", "patch_embed.2.c", "padding-side", tensorflow_same),
    M("stem repeats the border", "patch_embed.2.c", "patch_embed.2.c", "padding-mode", pads(1, 1, "replicate")),
    M("stem kernel flipped", "patch_embed.2.c", "patch_embed.2.c", "kernel-flipped",
      attribute("weight", lambda w: w.flip(2, 3))),
    M("stem kernel transposed", "patch_embed.0.c", "patch_embed.0.c", "kernel-transposed",
      attribute("weight", lambda w: w.swapaxes(2, 3).contiguous())),
    M("stem ReLU missing", "patch_embed", "patch_embed.1", "activation",
      lambda m: setattr(m, "1", torch.nn.Identity())),
    M("stem GELU", "patch_embed", "patch_embed.3", "activation", lambda m: setattr(m, "3", torch.nn.GELU())),
    M("batch norm eps 1e-3", f"{BLOCK}.ffn0.m.pw1.bn", f"{BLOCK}.ffn0.m.pw1.bn", "bn-eps", attribute("eps", 1e-3)),
    M("batch norm eps 1e-6", f"{BLOCK}.dw0.m.bn", f"{BLOCK}.dw0.m.bn", "bn-eps", attribute("eps", 1e-6)),
    M("batch norm eps 0", "head.bn", "head.bn", "bn-eps", attribute("eps", 0.0)),
    M("batch norm in training mode", f"{BLOCK}.dw1.m.bn", f"{BLOCK}.dw1.m.bn", "bn-training", training),
    M("batch norm without mean", f"{BLOCK}.ffn1.m.pw2.bn", f"{BLOCK}.ffn1.m.pw2.bn", "bn-folding",
      attribute("running_mean", lambda v: v * 0)),
    M("batch norm without bias", f"{SCAN}.in_proj.bn", f"{SCAN}.in_proj.bn", "bn-folding",
      attribute("bias", lambda v: v * 0)),
    M("variance not rooted", "blocks2.1.conv1.bn", "blocks2.1.conv1.bn", "bn-folding",
      attribute("running_var", lambda v: (v + 1e-5) ** 2 - 1e-5)),
    M("batch norm left out", f"{SCAN}.out_proj.bn", f"{SCAN}.out_proj.bn", "bn-folding",
      lambda bn: setattr(bn, "forward", lambda x: x)),
    M("shortcut missing", f"{BLOCK}.dw0", f"{BLOCK}.dw0", "shortcut", forward_edit("x + self.m(x)", "self.m(x)")),
    M("shortcut inside the batch norm", f"{BLOCK}.dw1", f"{BLOCK}.dw1.m.bn", "",
      forward_edit("x + self.m(x)", "self.m.bn(self.m.c(x) + x)")),
    M("outer shortcut missing", BLOCK, BLOCK, "shortcut", forward_edit("return x + ", "return ")),
    M("FFN without ReLU", f"{BLOCK}.ffn0.m", f"{BLOCK}.ffn0.m.pw2.c", "activation",
      forward_edit("F.relu(self.pw1(x))", "self.pw1(x)")),
    # here, because in the block nothing comes near 6, so that ReLU6 would be no fault
    M("FFN with ReLU6", "blocks3.0.1.m", "blocks3.0.1.m.pw2.c", "activation", forward_edit("F.relu(", "F.relu6(")),
    M("FFN with tanh GELU", f"{BLOCK}.ffn1.m", f"{BLOCK}.ffn1.m.pw2.c", "activation",
      forward_edit("F.relu(self.pw1(x))", "F.gelu(self.pw1(x), approximate=\"tanh\")")),
    M("merging without second ReLU", "blocks3.1", "blocks3.1.se.fc1", "activation",
      forward_edit("F.relu(self.conv2(F.relu(self.conv1(x))))", "self.conv2(F.relu(self.conv1(x)))")),
    M("squeeze takes the maximum", "blocks2.1.se", "blocks2.1.se.fc1", "squeeze",
      forward_edit("x.mean((2, 3), keepdim=True)", "x.amax((2, 3), keepdim=True)")),
    M("hard sigmoid", "blocks2.1.se", "blocks2.1.se.gate", "activation",
      lambda m: setattr(m, "gate", torch.nn.Hardsigmoid())),
    M("squeeze left out", "blocks3.1.se", "blocks3.1.se", "squeeze",
      forward_edit("x * self.gate", "x + 0 * self.gate")),
    M("squeeze mixes samples", "blocks2.1.se", "blocks2.1.se.fc1", "batch-mixed",
      forward_edit("x.mean((2, 3), keepdim=True)", "x.mean((0, 2, 3), keepdim=True).expand(len(x), -1, -1, -1)")),
    M("channels split local first", MIX, f"{SCAN}.in_proj.c", "channel-order",
      forward_edit("glob, local, identity = x.split(self.split, 1)",
                   "local, glob, identity = x.split([self.split[1], self.split[0], self.split[2]], 1)")),
    M("channels joined in another order", MIX, f"{MIX}.proj.0", "channel-order",
      forward_edit("[self.global_op(glob), self.local_op(local), identity]",
                   "[self.local_op(local), self.global_op(glob), identity]")),
    M("channels joined identity first", MIX, f"{MIX}.proj.0", "channel-order",
      forward_edit("[self.global_op(glob), self.local_op(local), identity]",
                   "[identity, self.global_op(glob), self.local_op(local)]")),
    M("local without ReLU", LOCAL, f"{LOCAL}.dwconv1x1", "activation", forward_edit("F.relu(", "(")),
    M("sub-bands swapped in analysis", GLOBAL, f"{GLOBAL}.wavelet_convs.0", "sub-bands",
      attribute("wt_filter", bands([0, 2, 1, 3]))),
    M("sub-bands swapped in synthesis", GLOBAL, GLOBAL, "sub-bands", attribute("iwt_filter", bands([0, 2, 1, 3]))),
    M("sub-bands swapped in both", GLOBAL, f"{GLOBAL}.wavelet_convs.0", "sub-bands", both_banks([0, 2, 1, 3])),
    M("sub-bands low and high-high swapped", GLOBAL, f"{GLOBAL}.wavelet_convs.0", "sub-bands",
      attribute("wt_filter", bands([3, 1, 2, 0]))),
    M("odd map padded top left", GLOBAL, f"{GLOBAL}.wavelet_convs.0", "padding-side",
      forward_edit("F.pad(x, (0, width % 2, 0, height % 2))", "F.pad(x, (width % 2, 0, height % 2, 0))", "wavelet")),
    M("odd map padded by its border", GLOBAL, f"{GLOBAL}.wavelet_convs.0", "padding-mode",
      forward_edit("(0, width % 2, 0, height % 2))", "(0, width % 2, 0, height % 2), mode=\"replicate\")", "wavelet")),
    M("wavelet scale missing", GLOBAL, GLOBAL, "scale-missing",
      forward_edit("self.wavelet_scale[0](self.wavelet_convs[0](bands))", "self.wavelet_convs[0](bands)", "wavelet")),
    M("base scale on the sum", GLOBAL, f"{GLOBAL}.base_scale", "",
      forward_edit("self.base_scale(self.global_atten(x)) + self.wavelet(x)",
                   "self.base_scale(self.global_atten(x) + self.wavelet(x))")),
    M("Ds missing", SCAN, NORM, "Ds-missing", attribute("Ds", lambda v: v * 0)),
    M("dt bias missing", SCAN, NORM, "dt-bias-missing", attribute("dt_projs_bias", lambda v: v * 0)),
    # everything becomes NaN, which tells of no cause
    M("softplus missing", SCAN, NORM, "", forward_edit(STEP, "(")),
    M("exp instead of softplus", SCAN, NORM, "softplus", forward_edit(STEP, "torch.exp(")),
    M("softplus twice", SCAN, NORM, "softplus", forward_edit(STEP, "(lambda v: F.softplus(F.softplus(v)))(")),
    M("backward result not turned back", SCAN, NORM, "direction", forward_edit(
        "scan_merge(y, self.order, height, width)", "(y[:, 0] + y[:, 1]).reshape(len(y), -1, height, width)")),
    M("backward reads forwards", SCAN, NORM, "direction", forward_edit(
        "scan_sequences(x, self.order)", "torch.stack([x.flatten(2)] * 2, 1)")),
    M("directions exchanged", SCAN, NORM, "direction", forward_edit(
        "scan_sequences(x, self.order)", "scan_sequences(x, self.order).flip(1).contiguous()")),
    M("scan by columns", SCAN, NORM, "direction", by_columns),
    M("samples mixed in the merge", SCAN, NORM, "batch-mixed", wrong_merge),
    M("state carried to the next sample", SCAN, NORM, "scan-reset", lambda m: setattr(m, "scan", _carried)),
    M("scan reset at every row", SCAN, NORM, "scan-reset", forward_edit(
        "self.scan(u, delta, A, B, C, self.Ds.view(self.K, self.inner))",
        "row_scan(u, delta, A, B, C, self.Ds.view(self.K, self.inner), width)", row_scan=_row_reset)),
    M("A without exp", SCAN, NORM, "decay", forward_edit("-torch.exp(self.A_logs)", "-self.A_logs")),
    M("A positive", SCAN, NORM, "decay", forward_edit("-torch.exp(self.A_logs)", "torch.exp(self.A_logs)")),
    M("B by zero-order hold", SCAN, NORM, "discretisation", scan_edit(
        "d * B[..., None, :, step]", "torch.expm1(d * A) / A * B[..., None, :, step]")),
    M("B without delta", SCAN, NORM, "discretisation", scan_edit("d * B[", "B[")),
    M("B and C exchanged", SCAN, NORM, "projection-order", forward_edit("dt, B, C =", "dt, C, B =")),
    M("x and z exchanged", SCAN, f"{SCAN}.conv2d", "gate", forward_edit("x, z =", "z, x =")),
    M("gate without SiLU", SCAN, f"{SCAN}.out_proj.c", "gate", forward_edit("y * F.silu(z)", "y * z")),
    M("SiLU after conv2d missing", SCAN, NORM, "activation", forward_edit("F.silu(self.conv2d(x))", "self.conv2d(x)")),
    M("conv2d bias missing", f"{SCAN}.conv2d", f"{SCAN}.conv2d", "bias-missing", attribute("bias", lambda v: v * 0)),
    M("layer norm eps 1e-3", NORM, NORM, "layer-norm", attribute("eps", 1e-3)),
    M("layer norm with n - 1", NORM, NORM, "layer-norm", sample_variance),
    M("layer norm eps 1e-6", NORM, NORM, "layer-norm", attribute("eps", 1e-6)),
    M("in_proj transposed", f"{SCAN}.in_proj.c", f"{SCAN}.in_proj.c", "transposed-projection",
      attribute("weight", misread)),
    M("x_proj transposed", SCAN, NORM, "transposed-projection",
      attribute("x_proj_weight", lambda w: torch.stack([misread(m) for m in w]))),
    M("dt_projs transposed", SCAN, NORM, "transposed-projection",
      attribute("dt_projs_weight", lambda w: torch.stack([misread(m) for m in w]))),
    M("proj transposed", f"{MIX}.proj.1.c", f"{MIX}.proj.1.c", "transposed-projection",
      attribute("weight", transposed)),
    M("merging reads its weight transposed", "blocks3.1.conv3.c", "blocks3.1.conv3.c", "transposed-projection",
      attribute("weight", misread)),
    M("maximum instead of mean pooling", "", "head.bn", "pooling", forward_edit(".mean((2, 3))", ".amax((2, 3))")),
    M("classifier bias missing", "head.l", "head.l", "bias-missing", attribute("bias", lambda v: v * 0)),
    M("classifier transposed", "head.l", "head.l", "transposed-projection", attribute("weight", misread)),
    # subtler, without a signature
    M("one weight off by 1 %", f"{BLOCK}.ffn0.m.pw1.c", f"{BLOCK}.ffn0.m.pw1.c", "",
      attribute("weight", lambda w: w * (1 + 0.01 * (torch.arange(w.numel()).view_as(w) == 5)))),
    M("two channels exchanged", f"{SCAN}.conv2d", f"{SCAN}.conv2d", "",
      attribute("weight", lambda w: w[[1, 0, *range(2, len(w))]])),
    M("first step of the scan lost", SCAN, NORM, "", lambda m: setattr(
        m, "scan", lambda u, *rest: F.pad(reference.selective_scan(u, *rest)[..., 1:], (1, 0)))),
    M("x_proj of one row zero", SCAN, NORM, "", attribute(
        "x_proj_weight", lambda w: w * (torch.arange(w.shape[1]) != 0)[None, :, None])),
    M("A clamped", SCAN, NORM, "", forward_edit("-torch.exp(self.A_logs)", "-torch.exp(self.A_logs).clamp(max=1.0)")),
]

# ------------------------------------------------------------------------------------------- preparing the picture

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def photograph() -> Image.Image:
    """Colours from three grey photographs, not square."""
    bands = [sample_picture(name).crop((0, 0, 500, 390)) for name in ("aero", "ascent", "camera")]
    return Image.merge("RGB", bands)


def prepared(picture, side=128, short=146, resample=Image.Resampling.BICUBIC, shift=(0, 0), squash=False,
             mean=MEAN, std=STD, scale=255, bgr=False, mirror=False):
    """(1, 3, side, side) float32: what the evaluation transform does, with a switch for every mistake."""
    width, height = picture.size
    size = (side, side) if squash else (int(short * width / min(picture.size)), int(short * height / min(picture.size)))
    picture = picture.resize(size, resample)
    left, top = (round((n - side) / 2) + s for n, s in zip(picture.size, shift, strict=True))
    pixels = np.asarray(picture, np.float64)[top:top + side, left:left + side] / scale
    pixels = pixels[..., ::-1] if bgr else pixels
    pixels = pixels[:, ::-1] if mirror else pixels
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)[None].astype(np.float32))


def without_antialiasing(picture):
    """Bilinear interpolation at the pixels' centres, as OpenCV and torch's interpolate do."""
    array = torch.from_numpy(np.asarray(picture, np.float32).transpose(2, 0, 1)[None].copy())
    size = [int(146 * n / min(picture.size)) for n in reversed(picture.size)]
    small = F.interpolate(array, size, mode="bicubic", align_corners=False).round().clamp(0, 255).byte()[0]
    return prepared(Image.fromarray(small.permute(1, 2, 0).numpy()), short=146)


PREPARATION = [Mutation(name, "", "input", key, plant) for name, key, plant in (
    ("colours as BGR", "input-permuted", lambda p: prepared(p, bgr=True)),
    ("picture mirrored", "input-permuted", lambda p: prepared(p, mirror=True)),
    ("mean and deviation of another data set", "normalisation", lambda p: prepared(p, mean=[0.5] * 3, std=[0.5] * 3)),
    ("pixels in 0..255", "normalisation", lambda p: prepared(p, scale=1)),
    ("not normalised", "normalisation", lambda p: prepared(p, mean=0, std=1)),
    ("crop one pixel to the right", "resize-crop", lambda p: prepared(p, shift=(1, 0))),
    ("crop at the top left", "resize-crop", lambda p: prepared(p, shift=(-29, -9))),
    ("resized to the crop's size at once", "", lambda p: prepared(p, short=128)),
    ("squashed to a square", "", lambda p: prepared(p, squash=True)),
    ("bilinear resize", "", lambda p: prepared(p, resample=Image.Resampling.BILINEAR)),
    ("resize without antialiasing", "", without_antialiasing),
)]
