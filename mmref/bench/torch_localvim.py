"""LocalVim as PyTorch modules, eager: written from the specification, with the published checkpoints' parameter names.

The benchmarks time it beside mmref's, the tests compare the two; it imports nothing of mmref. Its scan is as fast as
PyTorch's own operations allow without a kernel: the four directions of a layer go side by side, and there are two forms
of the recurrence, of which the benchmarks take whichever is faster (`SCANS`).

Letters as in torch_network.py. Tokens are (B, L, C) here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

PATCH, N, TAPS = 16, 16, 4
T_LAYERS = (
    "h v_flip w7 w7_flip", "h_flip w2_flip w7 w7_flip", "h h_flip v w7", "h h_flip v v_flip", "h h_flip v v_flip",
    "h h_flip v v_flip", "h_flip v v_flip w7", "h_flip v v_flip w2_flip", "h h_flip v v_flip", "h h_flip v v_flip",
    "h v v_flip w2", "h v v_flip w2_flip", "h h_flip v_flip w7", "h_flip v v_flip w2", "h h_flip v v_flip",
    "h v w2 w2_flip", "v v_flip w2 w7", "h h_flip v w2", "h h_flip w2_flip w7", "v v_flip w2 w2_flip")
VARIANTS = {"localvim_t": (192, T_LAYERS), "localvim_s": (384, ("h h_flip w2 w2_flip",) * 20)}


def reading_order(direction, height, width):
    """Pixel numbers in the order in which a direction visits them, height * width for a pixel of zeros."""
    name, numbers = direction.removesuffix("_flip"), torch.arange(height * width).view(1, 1, height, width)
    if name[0] == "w":
        side = int(name[1:])
        numbers = F.pad(numbers, (0, -width % side, 0, -height % side), value=height * width)
        numbers = F.unfold(numbers.double(), side, stride=side).long()[0].T
    else:
        numbers = numbers[0, 0].T if name == "v" else numbers[0, 0]
    order = numbers.flatten()
    return order.flip(0) if direction.endswith("_flip") else order


# ------------------------------------------------------------------- the recurrence: u, delta (B, K, L, D); A (K, D, N)

def scan_by_steps(u, delta, A, B, C):
    """Everything of one step at once, so that it stays in the cache; little memory, many small operations."""
    h, outputs = u.new_zeros(*u.shape[:2], *A.shape[1:]), []
    driven = delta * u
    for step in range(u.shape[2]):
        decay = torch.exp_(delta[:, :, step, :, None] * A)
        h = torch.addcmul(driven[:, :, step, :, None] * B[:, :, step, None], decay, h)
        outputs.append(torch.matmul(h, C[:, :, step, :, None])[..., 0])
    return torch.stack(outputs, 2)


def scan_all_at_once(u, delta, A, B, C):
    """Decays and inputs of all steps computed together; one operation a step is left. Steps first, so that a step's
    values lie side by side."""
    steps = delta.permute(2, 0, 1, 3)                                       # (L, B, K, D)
    decay = torch.exp_(steps[..., None] * A)                                # (L, B, K, D, N)
    h = (steps * u.permute(2, 0, 1, 3))[..., None] * B.permute(2, 0, 1, 3)[..., None, :]
    for before, now, factor in zip(h[:-1], h[1:], decay[1:], strict=True):
        now.addcmul_(factor, before)
    return torch.matmul(h, C.permute(2, 0, 1, 3)[..., None])[..., 0].permute(1, 2, 0, 3)


SCANS = {"steps": scan_by_steps, "all": scan_all_at_once}


class Gate(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.global_reduce, self.channel_select = nn.Linear(dim, dim // 8), nn.Linear(dim // 8, dim)

    def forward(self, x):
        """x (..., L, D): the directions side by side, each with a gate of its own."""
        means = self.norm(x).mean(-2, keepdim=True)
        return x * torch.sigmoid(self.channel_select(F.gelu(self.global_reduce(means))))


class Mixer(nn.Module):
    def __init__(self, dim, ways):
        super().__init__()
        inner, rank = 2 * dim, -(-dim // 16)
        self.inner, self.rank, self.ways = inner, rank, ways.split()
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        for i in range(len(self.ways)):
            setattr(self, f"A_log_{i}", nn.Parameter(torch.arange(1, N + 1).float().log().repeat(inner, 1)))
            setattr(self, f"D_{i}", nn.Parameter(torch.ones(inner)))
            setattr(self, f"conv1d_{i}", nn.Conv1d(inner, inner, TAPS, groups=inner, padding=TAPS - 1))
            setattr(self, f"x_proj_{i}", nn.Linear(inner, rank + 2 * N, bias=False))
            setattr(self, f"dt_proj_{i}", nn.Linear(rank, inner))
        self.attn = Gate(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.scan, self.kept = scan_by_steps, {}

    def each(self, name):
        return [getattr(self, f"{name}_{i}") for i in range(len(self.ways))]

    def orders(self, height, width):
        """Reading order and its inverse for each direction; of one length, zeros behind the shorter."""
        if (height, width) not in self.kept:
            orders = [reading_order(way, height, width) for way in self.ways]
            longest = max(map(len, orders))
            table = torch.stack([F.pad(order, (0, longest - len(order)), value=height * width) for order in orders])
            back = torch.stack([torch.argsort(order)[:height * width] for order in table])
            self.kept[height, width] = table, back
        return self.kept[height, width]

    def stacked(self):
        """The directions' parameters side by side, once for a model that is only run."""
        if "parameters" not in self.kept:
            convs, ins, steps = self.each("conv1d"), self.each("x_proj"), self.each("dt_proj")
            self.kept["parameters"] = [part.detach() for part in (
                torch.cat([conv.weight for conv in convs]), torch.cat([conv.bias for conv in convs]),
                torch.stack([one.weight.T for one in ins]), torch.stack([one.weight.T for one in steps]),
                torch.stack([one.bias for one in steps])[:, None], -torch.exp(torch.stack(self.each("A_log"))),
                torch.stack(self.each("D"))[:, None])]
        return self.kept["parameters"]

    def forward(self, tokens, height, width):
        taps, shift, to_parts, to_delta, delta_bias, A, D = self.stacked()
        table, back = self.orders(height, width)
        K, batch = len(self.ways), len(tokens)
        x, z = self.in_proj(tokens).chunk(2, -1)                            # (B, L, D)
        u = F.pad(x, (0, 0, 0, 1))[:, table]                                # (B, K, L', D)
        u = F.conv1d(u.transpose(2, 3).flatten(1, 2), taps, shift, padding=TAPS - 1, groups=K * self.inner)
        u = F.silu(u[..., :table.shape[1]]).view(batch, K, self.inner, -1).transpose(2, 3).contiguous()
        dt, B, C = torch.matmul(u, to_parts).split([self.rank, N, N], -1)
        delta = F.softplus(torch.matmul(dt, to_delta) + delta_bias)         # (B, K, L', D)
        y = self.scan(u, delta, A, B, C) + D * u
        y = torch.gather(y, 2, back[None, :, :, None].expand(batch, -1, -1, self.inner)) * F.silu(z)[:, None]
        return self.out_proj(self.attn(y).sum(1))


class Block(nn.Module):
    def __init__(self, dim, ways):
        super().__init__()
        self.norm, self.mixer = nn.RMSNorm(dim, eps=1e-5), Mixer(dim, ways)

    def forward(self, tokens, height, width):
        return self.mixer(self.norm(tokens), height, width)


class Rope(nn.Module):
    def __init__(self, dim, side):
        super().__init__()
        speed = 10000 ** (-2 * (torch.arange(dim // 2, dtype=torch.float64) // 2) / (dim // 2))
        angle = torch.arange(side)[:, None] * speed
        grid = torch.cat([angle[:, None].expand(-1, side, -1), angle[None].expand(side, -1, -1)], -1).flatten(0, 1)
        self.register_buffer("freqs_cos", grid.cos().float())
        self.register_buffer("freqs_sin", grid.sin().float())

    def forward(self, tokens, cos, sin):
        turned = torch.stack([-tokens[..., 1::2], tokens[..., ::2]], -1).flatten(-2)
        return tokens * cos + turned * sin


class LocalVim(nn.Module):
    def __init__(self, dim=192, layers=T_LAYERS, num_classes=1000, img_size=224, in_chans=3):
        super().__init__()
        self.side = -(-img_size // PATCH)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, self.side ** 2, dim))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(in_chans, dim, PATCH, PATCH)
        self.rope = Rope(dim, self.side)
        self.layers = nn.ModuleList([Block(dim, ways) for ways in layers])
        self.norm_f = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, num_classes)

    def table(self, values, height, width):
        """A table of positions (1, tokens, C) for a map of that size."""
        if (height, width) == (self.side, self.side):
            return values
        grid = values.view(1, self.side, self.side, -1).movedim(3, 1)
        return F.interpolate(grid, (height, width), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)

    def forward(self, x):
        x = self.patch_embed.proj(F.pad(x, (0, -x.shape[3] % PATCH, 0, -x.shape[2] % PATCH)))
        height, width = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2) + self.table(self.pos_embed, height, width)
        cos, sin = (self.table(part[None], height, width) for part in (self.rope.freqs_cos, self.rope.freqs_sin))
        for layer in self.layers:
            tokens = self.rope(tokens, cos, sin)
            tokens = tokens + layer(tokens, height, width)
        return self.head(self.norm_f(tokens).mean(1))


def create(name, num_classes=1000):
    """`name`: localvim_t or localvim_s."""
    return LocalVim(*VARIANTS[name], num_classes=num_classes)


def use_scan(model, name):
    """Let every mixer of `model` run its recurrence in the form of that name (of SCANS); returns the model."""
    for module in model.modules():
        if isinstance(module, Mixer):
            module.scan = SCANS[name]
    return model
