"""MobileMamba as trainable PyTorch modules: the second, independent statement of the network.

Written from the specification, not from the published code, with the published checkpoints' parameter
names, so that `load_state_dict(..., strict=True)` takes their files. The benchmarks time it, the tests compare mmref
with it, and `weights/training/train_nano.py` trains it. It imports nothing of mmref, so that neither copies the other's
mistakes.

Shapes are NCHW. Letters as in mmref: B batch, C channels, H x W pixels, D inner channels of the scan,
N states a channel, K scan directions, R rank of the step-size projection, L = H*W sequence length.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

WIDTHS = {"t2": (144, 272, 368), "t4": (176, 368, 448), "s6": (192, 384, 448), "b1": (200, 376, 448),
          "b2": (200, 376, 448), "b4": (200, 376, 448), "nano": (64, 128, 160)}
DEPTHS = {"b1": (2, 3, 2), "b2": (2, 3, 2), "b4": (2, 3, 2)}
TRAIN_SIZES = {"t2": 192, "t4": 192, "s6": 224, "b1": 256, "b2": 384, "b4": 512, "nano": 128}
HAAR = torch.tensor([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]]) / 2


class ConvBN(nn.Sequential):
    """Convolution without bias, then batch norm (`c`, `bn`)."""

    def __init__(self, c_in, c_out, kernel=1, stride=1, groups=1, gamma=1.0):
        super().__init__()
        self.add_module("c", nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(c_out))
        nn.init.constant_(self.bn.weight, gamma)


class Residual(nn.Module):
    def __init__(self, m):
        super().__init__()
        self.m = m

    def forward(self, x):
        return x + self.m(x)


class FFN(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.pw1 = ConvBN(dim, 2 * dim)
        self.pw2 = ConvBN(2 * dim, dim, gamma=0.0)

    def forward(self, x):
        return self.pw2(F.relu(self.pw1(x)))


class SqueezeExcite(nn.Module):
    def __init__(self, dim, reduced):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(dim, reduced, 1), nn.Conv2d(reduced, dim, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x):
        return x * self.gate(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class PatchMerging(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        hidden = 4 * c_in
        self.conv1 = ConvBN(c_in, hidden)
        self.conv2 = ConvBN(hidden, hidden, 3, 2, groups=hidden)
        self.se = SqueezeExcite(hidden, nearest_multiple(c_in, 8))
        self.conv3 = ConvBN(hidden, c_out)

    def forward(self, x):
        return self.conv3(self.se(F.relu(self.conv2(F.relu(self.conv1(x))))))


def nearest_multiple(n, step):
    return max(step, int(n + step / 2) // step * step)


# ---------------------------------------------------------------------------------------- scan

def scan_sequences(x, order):
    """(B, D, H, W) -> (B, K, D, L), the pixels in the order each direction visits them."""
    rows, columns = x.flatten(2), x.transpose(2, 3).flatten(2)
    forward = {"unidirectional": [rows], "bidirectional": [rows], "cross": [rows, columns]}[order]
    backward = [] if order == "unidirectional" else [s.flip(-1) for s in forward]
    return torch.stack(forward + backward, 1)


def scan_merge(y, order, height, width):
    """(B, K, D, L) -> (B, D, H, W): every direction put back in place, then added up."""
    batch, directions, dim, _ = y.shape
    half = directions if order == "unidirectional" else directions // 2
    y = y[:, :half] if order == "unidirectional" else y[:, :half] + y[:, half:].flip(-1)
    out = y[:, 0].reshape(batch, dim, height, width)
    return out + y[:, 1].reshape(batch, dim, width, height).transpose(2, 3) if half == 2 else out


def selective_scan(u, delta, A, B, C, D):
    """The recurrence step by step. u, delta (B, K, D, L); A (K, D, N); B, C (B, K, N, L); D (K, D)."""
    h = u.new_zeros(*u.shape[:3], A.shape[-1])                               # (B, K, D, N)
    outputs = []
    for step in range(u.shape[-1]):
        d = delta[..., step, None]
        h = torch.exp(d * A) * h + d * B[..., None, :, step] * u[..., step, None]
        outputs.append((h * C[..., None, :, step]).sum(-1))
    return torch.stack(outputs, -1) + D[..., None] * u


def doubling_scan(u, delta, A, B, C, D):
    """The same in log2(L) passes over all steps at once: pass i joins every step with the one 2**i before it."""
    decay, h = _coefficients(u, delta, A, B)
    reach = 1
    while reach < u.shape[-1]:
        h = torch.cat([h[..., :reach], torch.addcmul(h[..., reach:], decay[..., reach:], h[..., :-reach])], -1)
        decay = torch.cat([decay[..., :reach], decay[..., reach:] * decay[..., :-reach]], -1)
        reach *= 2
    return (h * C[:, :, None]).sum(3) + D[..., None] * u


def associative_scan(u, delta, A, B, C, D):
    """The same by PyTorch's own operator, which needs CUDA and `torch.compile` to be one kernel."""
    from torch._higher_order_ops.associative_scan import associative_scan as operator

    def join(before, after):
        return before[0] * after[0], after[0] * before[1] + after[1]
    _, h = operator(join, _coefficients(u, delta, A, B), dim=-1,
                    combine_mode="pointwise" if u.is_cuda else "generic")
    return (h * C[:, :, None]).sum(3) + D[..., None] * u


def _coefficients(u, delta, A, B):
    """(exp(delta A), delta B u), both (B, K, D, N, L)."""
    delta = delta[:, :, :, None]
    return torch.exp(delta * A[..., None]), delta * B[:, :, None] * u[:, :, :, None]


def mamba_scan(u, delta, A, B, C, D):
    """The same by the kernels of the package mamba-ssm: directions side by side, B and C by direction."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    shape = u.shape
    y = selective_scan_fn(u.flatten(1, 2), delta.flatten(1, 2), A.flatten(0, 1), B, C, D.flatten())
    return y.view(shape)


SCANS = {"loop": selective_scan, "doubling": doubling_scan, "associative": associative_scan, "mamba-ssm": mamba_scan}


def use_scan(model, name):
    """Let every SS2D of `model` run its scan in the form of that name (of SCANS); returns the model."""
    for module in model.modules():
        if isinstance(module, SS2D):
            module.scan = SCANS[name]
    return model


class SS2D(nn.Module):
    def __init__(self, dim, d_state=1, ssm_ratio=2, order="bidirectional"):
        super().__init__()
        self.order, self.d_state = order, d_state
        inner, rank = ssm_ratio * dim, math.ceil(dim / 16)
        K = {"unidirectional": 1, "bidirectional": 2, "cross": 4}[order]
        self.rank, self.inner, self.K = rank, inner, K
        self.in_proj = ConvBN(dim, 2 * inner)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(torch.randn(K, rank + 2 * d_state, inner) * inner ** -0.5)
        self.dt_projs_weight = nn.Parameter((torch.rand(K, inner, rank) * 2 - 1) * rank ** -0.5)
        dt = torch.exp(torch.empty(K, inner).uniform_(math.log(1e-3), math.log(1e-1)))
        self.dt_projs_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.A_logs = nn.Parameter(torch.arange(1, d_state + 1).float().log().repeat(K * inner, 1))
        self.Ds = nn.Parameter(torch.ones(K * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = ConvBN(inner, dim)
        self.scan = selective_scan  # the training script puts a faster, equal one here

    def forward(self, x):
        x, z = self.in_proj(x).chunk(2, 1)
        x, (height, width) = F.silu(self.conv2d(x)), x.shape[2:]
        u = scan_sequences(x, self.order)
        dt, B, C = torch.einsum("krd,bkdl->bkrl", self.x_proj_weight, u).split(
            [self.rank, self.d_state, self.d_state], 2)
        delta = F.softplus(torch.einsum("kdr,bkrl->bkdl", self.dt_projs_weight, dt)
                           + self.dt_projs_bias[..., None])
        A = -torch.exp(self.A_logs).view(self.K, self.inner, self.d_state)
        y = self.scan(u, delta, A, B, C, self.Ds.view(self.K, self.inner))
        y = scan_merge(y, self.order, height, width)
        y = self.out_norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out_proj(y * F.silu(z))


# ------------------------------------------------------------------------------------ mixer

class Scale(nn.Module):
    def __init__(self, dim, value):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, dim, 1, 1), value))

    def forward(self, x):
        return x * self.weight


class WaveletMamba(nn.Module):
    """`global_op`: base_scale * SS2D(x) + synthesis(scale * depthwise(analysis(x)))."""

    def __init__(self, dim, kernel, **ssm):
        super().__init__()
        self.wt_filter = nn.Parameter(HAAR[:, None].repeat(dim, 1, 1, 1), requires_grad=False)
        self.iwt_filter = nn.Parameter(self.wt_filter.clone(), requires_grad=False)
        self.global_atten = SS2D(dim, **ssm)
        self.base_scale = Scale(dim, 1.0)
        self.wavelet_convs = nn.ModuleList(
            [nn.Conv2d(4 * dim, 4 * dim, kernel, padding=kernel // 2, groups=4 * dim, bias=False)])
        self.wavelet_scale = nn.ModuleList([Scale(4 * dim, 0.1)])

    def wavelet(self, x):
        dim, height, width = x.shape[1:]
        x = F.pad(x, (0, width % 2, 0, height % 2))
        bands = F.conv2d(x, self.wt_filter, stride=2, groups=dim)
        bands = self.wavelet_scale[0](self.wavelet_convs[0](bands))
        return F.conv_transpose2d(bands, self.iwt_filter, stride=2, groups=dim)[..., :height, :width]

    def forward(self, x):
        return self.base_scale(self.global_atten(x)) + self.wavelet(x)


class LocalOp(nn.Module):
    def __init__(self, dim, kernel):
        super().__init__()
        self.dwconv3x3 = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.dwconv1x1 = nn.Conv2d(dim, dim, 1, groups=dim, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)

    def forward(self, x):
        return self.bn2(self.dwconv1x1(F.relu(self.bn1(self.dwconv3x3(x)))))


class MRFFI(nn.Module):
    def __init__(self, dim, global_ratio, local_ratio, kernel, **ssm):
        super().__init__()
        glob = nearest_multiple(int(global_ratio * dim), 16)
        local = min(int(local_ratio * dim), dim - glob)
        self.split = [glob, local, dim - glob - local]
        self.global_op = WaveletMamba(glob, kernel, **ssm)
        self.local_op = LocalOp(local, kernel)
        self.proj = nn.Sequential(nn.ReLU(), ConvBN(dim, dim, gamma=0.0))

    def forward(self, x):
        glob, local, identity = x.split(self.split, 1)
        return self.proj(torch.cat([self.global_op(glob), self.local_op(local), identity], 1))


class Mixer(nn.Module):
    def __init__(self, attn):
        super().__init__()
        self.attn = attn

    def forward(self, x):
        return self.attn(x)


class Block(nn.Module):
    def __init__(self, dim, **mrffi):
        super().__init__()
        self.dw0 = Residual(ConvBN(dim, dim, 3, groups=dim, gamma=0.0))
        self.ffn0 = Residual(FFN(dim))
        self.mixer = Residual(Mixer(MRFFI(dim, **mrffi)))
        self.dw1 = Residual(ConvBN(dim, dim, 3, groups=dim, gamma=0.0))
        self.ffn1 = Residual(FFN(dim))

    def forward(self, x):
        return x + self.ffn1(self.dw1(self.mixer(self.ffn0(self.dw0(x)))))


# ---------------------------------------------------------------------------------- network

def stem(dim):
    chain = (3, dim // 8, dim // 4, dim // 2, dim)
    layers = []
    for c_in, c_out in zip(chain, chain[1:], strict=False):
        layers += [ConvBN(c_in, c_out, 3, 2), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Head(nn.Module):
    def __init__(self, dim, num_classes):
        super().__init__()
        self.bn, self.l = nn.BatchNorm1d(dim), nn.Linear(dim, num_classes)

    def forward(self, x):
        return self.l(self.bn(x))


class MobileMamba(nn.Module):
    def __init__(self, widths=(144, 272, 368), depths=(1, 2, 2), kernels=(7, 5, 3), num_classes=1000,
                 global_ratio=(0.8, 0.7, 0.6), local_ratio=(0.2, 0.2, 0.3), **ssm):
        super().__init__()
        self.patch_embed = stem(widths[0])
        for i, (dim, depth) in enumerate(zip(widths, depths, strict=True)):
            stage = [] if i == 0 else [self._trio_end(widths[i - 1]), PatchMerging(widths[i - 1], dim),
                                       self._trio_end(dim)]
            stage += [Block(dim, global_ratio=global_ratio[i], local_ratio=local_ratio[i],
                            kernel=kernels[i], **ssm) for _ in range(depth)]
            setattr(self, f"blocks{i + 1}", nn.Sequential(*stage))
        self.head = Head(widths[-1], num_classes)

    @staticmethod
    def _trio_end(dim):
        return nn.Sequential(Residual(ConvBN(dim, dim, 3, groups=dim, gamma=0.0)), Residual(FFN(dim)))

    def forward_features(self, x):
        return self.blocks3(self.blocks2(self.blocks1(self.patch_embed(x))))

    def forward(self, x):
        return self.head(self.forward_features(x).mean((2, 3)))


def create(variant, num_classes=1000, **overrides):
    """`variant` is the short name: t2, t4, s6, b1, b2, b4 or nano. ValueError for another."""
    if variant not in WIDTHS:
        raise ValueError(f"the network in PyTorch is the classifier, there is none of {variant}")
    return MobileMamba(WIDTHS[variant], DEPTHS.get(variant, (1, 2, 2)), num_classes=num_classes, **overrides)


# ---------------------------------------------------------------------------------- folding

def _folded_conv(conv, bn):
    scale = (bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps))
    out = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
                    groups=conv.groups)
    out.weight.data = (conv.weight.double() * scale[:, None, None, None]).to(conv.weight.dtype)
    out.bias.data = (bn.bias.double() - bn.running_mean.double() * scale).to(conv.weight.dtype)
    return out


def fold_batchnorm(module):
    """Fold every batch norm into its neighbour, in place; returns the module that replaces `module`."""
    if isinstance(module, ConvBN):
        return _folded_conv(module.c, module.bn)
    if isinstance(module, LocalOp):
        return nn.Sequential(_folded_conv(module.dwconv3x3, module.bn1), nn.ReLU(),
                             _folded_conv(module.dwconv1x1, module.bn2))
    if isinstance(module, Head):
        scale = module.bn.weight.double() / torch.sqrt(module.bn.running_var.double() + module.bn.eps)
        shift = module.bn.bias.double() - module.bn.running_mean.double() * scale
        out = nn.Linear(module.l.in_features, module.l.out_features)
        weight = module.l.weight.double()
        out.bias.data = (module.l.bias.double() + weight @ shift).to(module.l.weight.dtype)
        out.weight.data = (weight * scale).to(module.l.weight.dtype)
        return out
    for name, child in module.named_children():
        setattr(module, name, fold_batchnorm(child))
    return module
