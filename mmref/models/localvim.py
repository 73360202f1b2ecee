"""LocalVim, from the picture to the logits: LocalMamba's plain network (arXiv 2403.09338, github.com/hunto/LocalMamba
at commit 75e5d1f, `VisionMamba`), the one that MobileMamba's paper compares its speed with.

    picture (B, 3, H, W)
    patch_embed    16x16 patches, plus pos_embed        (B, C, H/16, W/16)
    layers         x = rotate(x); x = x + mixer(norm(x)), 20 times, always at that size
    head           RMS norm, mean over the tokens, linear (B, classes)

Where MobileMamba scans small maps twice with one state a channel, this scans 196 tokens four times in every layer,
with sixteen. Sides that are not multiples of 16 are padded with zeros at the bottom and right; for other maps than the
trained one the tables of positions are resized bicubically.

Upstream hands a layer its result and the residual beside each other and adds them in the next, after rotating both.
Rotation is linear, so the text below says the same; a layer's record is its mixer's result, `layers.k:residual` what
it is added to. Upstream lays columns back wrongly on maps that are not square (height and width exchanged); here the
way back is the inverse of the way there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmref.arguments import check_flag, check_integer, check_kind
from mmref.errors import ValueProblem
from mmref.models.network import Network, check_features
from mmref.models.variants import MOST_CHANNELS, MOST_CLASSES
from mmref.nn import functional as F
from mmref.nn.layer import Conv2d, Layer, Linear, Sequential
from mmref.nn.paths import directions
from mmref.nn.position import resize_bicubic
from mmref.nn.recurrence import selective_scan
from mmref.nn.scan_order import cross_merge, cross_scan
from mmref.nn.ss2d import project
from mmref.nn.tokens import ChannelGate, MeanPool, RMSNorm, TokenLinear, causal_conv, pad_to_multiple, rotary

PATCH, TAPS = 16, 4  # pixels of a patch's side; steps that the causal convolution sees
WAYS = {"h": "rows", "v": "columns", "w2": "windows 2", "w7": "windows 7"}


def ways(text: str) -> tuple[str, ...]:
    """Upstream's names of directions as ours: "h v_flip w7" -> ("rows", "columns backwards", "windows 7")."""
    return tuple(WAYS[name.removesuffix("_flip")] + " backwards" * name.endswith("_flip") for name in text.split())


class PatchEmbed(Layer):
    """(B, 3, H, W) -> (B, C, H/16, W/16), sides rounded up: every 16x16 patch times one matrix."""

    def __init__(self, in_chans, dim):
        super().__init__()
        self.proj = Patches(in_chans, dim, PATCH, PATCH, bias=True)

    def forward(self, x):
        if x.shape[2] % PATCH or x.shape[3] % PATCH:
            x = pad_to_multiple(x, PATCH)
        return self.proj(x)


class Patches(Conv2d):
    """A convolution whose windows lie side by side, without padding."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, stride=self.stride)


class Rope(Layer):
    """Rotary positions: the tables `freqs_cos` and `freqs_sin` (tokens, C), which checkpoints hold. Half of the
    channels turn with the row, half with the column, slower from pair to pair."""

    def __init__(self, dim, side):
        super().__init__()
        self.side = side
        self.declare(freqs_cos=(side * side, dim), freqs_sin=(side * side, dim))

    def forward(self, x):
        return rotary(x, *(as_map(table, self.side, *x.shape[2:]) for table in (self.freqs_cos, self.freqs_sin)))

    def initial(self, parameter, rng):
        half = self.shapes[parameter][1] // 2
        speed = 10000.0 ** (-2 * (np.arange(half) // 2) / half)
        row, column = np.divmod(np.arange(self.side ** 2), self.side)
        angle = np.concatenate([row[:, None] * speed, column[:, None] * speed], axis=1)
        return np.cos(angle) if parameter == "freqs_cos" else np.sin(angle)

    def learned(self, parameter):
        return False


def as_map(table, side, height, width):
    """A table of positions (side * side, C) as a map (1, C, height, width)."""
    grid = resize_bicubic(table.reshape(side, side, -1), int(height), int(width))
    return F.channels_first(grid[None])


class CausalConv(Layer):
    """Depthwise convolution along sequences (B, 1, D, L); `weight` (D, 1, taps), `bias` (D,)."""

    def __init__(self, dim):
        super().__init__()
        self.declare(weight=(dim, 1, TAPS), bias=(dim,))

    def forward(self, sequences):
        return causal_conv(sequences, self.weight.swapaxes(0, 1), self.bias[None])

    def macs(self, y):
        return y.shape[2] * y.shape[3] * TAPS


class StepLinear(TokenLinear):
    """A linear layer on every step of sequences (B, 1, D, L); `weight` (D', D), `bias` (D',)."""

    def forward(self, sequences):
        y = project(self.weight[None], sequences)
        return y if self.bias is None else y + self.bias[None, None, :, None]

    def macs(self, y):
        return int(np.prod(self.shapes["weight"])) * y.shape[3]

    def initial(self, parameter, rng):
        if parameter == "bias":  # steps log-uniform in 1e-3..1e-1, through the inverse of softplus
            dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), self.shapes[parameter]))
            return dt + np.log(-np.expm1(-dt))
        return super().initial(parameter, rng)


class MultiScan(Layer):
    """The sum of what the directions give."""

    def forward(self, *maps):
        total = maps[0]
        for one in maps[1:]:
            total = total + one
        return total


class Mixer(Layer):
    """(B, C, H, W) -> (B, C, H, W): four gated scans of the same map, each with parameters of its own; upstream
    `Mamba`. Parameters of direction i end in `_i`; a checkpoint does not say which way that is."""

    def __init__(self, dim, order, d_state):
        super().__init__()
        D, R = 2 * dim, -(-dim // 16)
        self.inner, self.rank, self.d_state, self.order = D, R, d_state, order
        self.in_proj = TokenLinear(dim, 2 * D)
        for i in range(len(order)):
            self.declare(**{f"A_log_{i}": (D, d_state), f"D_{i}": (D,)})
            setattr(self, f"conv1d_{i}", CausalConv(D))
            setattr(self, f"x_proj_{i}", StepLinear(D, R + 2 * d_state))
            setattr(self, f"dt_proj_{i}", StepLinear(R, D, bias=True))
        self.attn = ChannelGate(D)
        self.multi_scan = MultiScan()
        self.out_proj = TokenLinear(D, dim)

    def forward(self, x):
        x, z = F.split(self.in_proj(x), (self.inner, self.inner))           # each (B, D, H, W)
        z = F.silu(z)
        scanned = [self.attn(self.scan(x, i) * z) for i in range(len(self.order))]
        return self.out_proj(self.multi_scan(*scanned))

    def scan(self, x, i):
        """(B, D, H, W) -> (B, D, H, W): direction i, there and back. What pads a map to whole windows is scanned."""
        R, N, way = self.rank, self.d_state, self.order[i:i + 1]
        conv1d, x_proj, dt_proj = (getattr(self, f"{name}_{i}") for name in ("conv1d", "x_proj", "dt_proj"))
        u = F.silu(conv1d(cross_scan(x, way)))                              # (B, 1, D, L)
        dt, B, C = F.split(x_proj(u), (R, N, N), axis=2)                    # (B, 1, R or N, L)
        delta = F.softplus(dt_proj(dt))                                     # (B, 1, D, L)
        A = -np.exp(getattr(self, f"A_log_{i}"))[None]                      # (1, D, N), negative: old states fade
        y = selective_scan(u, delta, A, B, C, getattr(self, f"D_{i}")[None])
        return cross_merge(y, way, *x.shape[2:])

    def initial(self, parameter, rng):
        shape = self.shapes[parameter]
        if parameter.startswith("A_log"):  # the n-th state of a channel starts with decay rate n
            return np.log(np.broadcast_to(np.arange(1, self.d_state + 1), shape))
        return np.ones(shape)


class Block(Layer):
    """mixer(norm(x)), (B, C, H, W) -> (B, C, H, W); who calls it adds x."""

    def __init__(self, dim, order, d_state):
        super().__init__()
        self.norm = RMSNorm(dim)
        self.mixer = Mixer(dim, order, d_state)

    def forward(self, x):
        self.record(x, "residual")
        return self.mixer(self.norm(x))


class LocalVim(Network):
    """The network, (B, 3, H, W) -> (B, num_classes). Build it with `mmref.create_model`."""

    def __init__(self, config: LocalVimVariant):
        super().__init__(check_kind("config", config, LocalVimVariant, "a LocalVimVariant"))
        dim, side = config.dim, -(-config.img_size // PATCH)
        self.side = side
        self.declare(pos_embed=(1, side * side, dim))
        self.patch_embed = PatchEmbed(config.in_chans, dim)
        self.rope = Rope(dim, side)
        self.layers = Sequential(*(Block(dim, order, config.d_state) for order in config.scan_orders))
        self.norm_f = RMSNorm(dim)
        self.pooled = MeanPool()
        if config.num_classes:
            self.head = Linear(dim, config.num_classes)
        self.name_layers()

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the embedding and of every layer."""
        return (PATCH,) * (1 + len(self.config.scan_orders))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))

    def forward_head(self, x, pre_logits: bool = False):
        """Logits of a last map; with `pre_logits` its pooled features (B, C). Raises ShapeError."""
        check_features(x, self.config.dim, self.dtype)
        pre_logits, pooled = check_flag("pre_logits", pre_logits), self.pooled(self.norm_f(x))
        return pooled if pre_logits or not self.config.num_classes else self.head(pooled)

    def stages(self):
        """Embedding, checking its input first, and the layers with their shortcuts."""
        def embed(x):
            self.check_input(x)
            x = self.patch_embed(x)
            return x + as_map(self.pos_embed[0], self.side, *x.shape[2:])

        def layer(block):
            def run(x):
                x = self.rope(x)
                return x + block(x)
            return run
        return embed, *map(layer, self.layers.children.values())

    def initial(self, parameter, rng):
        return 0.02 * rng.standard_normal(self.shapes[parameter])


@dataclass(frozen=True)
class LocalVimVariant:
    """What determines a LocalVim.

    img_size     side of the pictures it was trained on, 16 to 4096 pixels; its tables of positions have that size
    dim          channels, a multiple of 4 from 16 to 8192
    scan_orders  for each layer a tuple of directions (see `mmref.nn.paths`), of which there may be any number
    d_state      states of a channel, 1 to 1024
    num_classes  0 to 1,000,000, 0 for no head; in_chans  channels of the pictures, 1 to 4096

    Raises ValueProblem for anything else.
    """

    name: str
    img_size: int
    dim: int
    scan_orders: tuple[tuple[str, ...], ...]
    d_state: int = 16
    num_classes: int = 1000
    in_chans: int = 3

    def __post_init__(self):
        for field, low, high in (("img_size", PATCH, 4096), ("dim", 16, 8192), ("d_state", 1, 1024),
                                 ("num_classes", 0, MOST_CLASSES), ("in_chans", 1, MOST_CHANNELS)):
            object.__setattr__(self, field, check_integer(field, getattr(self, field), low, high))
        if self.dim % 4:
            raise ValueProblem(f"dim must be a multiple of 4, two axes of pairs, got {self.dim}")
        orders = check_kind("scan_orders", self.scan_orders, (tuple, list), "a tuple of orders, one for each layer")
        object.__setattr__(self, "scan_orders", tuple(map(directions, orders)))

    def build(self):
        """The network, its parameters not loaded yet."""
        return LocalVim(self)


SEARCHED = tuple(map(ways, (  # of T, layer by layer, as upstream's search found them
    "h v_flip w7 w7_flip", "h_flip w2_flip w7 w7_flip", "h h_flip v w7", "h h_flip v v_flip", "h h_flip v v_flip",
    "h h_flip v v_flip", "h_flip v v_flip w7", "h_flip v v_flip w2_flip", "h h_flip v v_flip", "h h_flip v v_flip",
    "h v v_flip w2", "h v v_flip w2_flip", "h h_flip v_flip w7", "h_flip v v_flip w2", "h h_flip v v_flip",
    "h v w2 w2_flip", "v v_flip w2 w7", "h h_flip v w2", "h h_flip w2_flip w7", "v v_flip w2 w2_flip")))
VARIANTS = {variant.name: variant for variant in (
    LocalVimVariant("localvim_t", 224, 192, SEARCHED),
    LocalVimVariant("localvim_s", 224, 384, (ways("h h_flip w2 w2_flip"),) * 20),
)}
# Percent of ImageNet's validation set, as published.
ACCURACY = {"localvim_t": {"top1": 76.2}, "localvim_s": {"top1": 81.1}}
