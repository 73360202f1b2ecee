"""EfficientVMamba, from the picture to the logits (arXiv 2403.09977, github.com/TerryPei/EfficientVMamba at commit
0bc5ee2, `vssm_efficient_tiny.yaml`): atrous scans on the first two, large maps, convolutions alone on the others.

    picture (B, 3, H, W)
    patch_embed     4x4 patches, layer norm                (B, 48, H/4, W/4)   sides rounded down
    layers.0, .1    scan blocks, downsampling              (B, 96, H/8, W/8), (B, 192, H/16, W/16)   rounded up
    layers.2        inverted residuals, downsampling       (B, 384, H/32, W/32)
    layers.3        inverted residuals                     (B, 384, H/32, W/32)
    classifier      layer norm, mean, linear               (B, classes)

An atrous scan reads every second pixel of every second row, four ways to begin: every pixel lies in one sequence, a
quarter as long as the map, so the four together take as many steps as one direction of MobileMamba's.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmref.arguments import check_flag, check_integer, check_integers, check_kind
from mmref.models.network import Network, check_features
from mmref.models.variants import MOST_CHANNELS, MOST_CLASSES
from mmref.nn import functional as F
from mmref.nn.layer import BatchNorm, Conv2d, Layer, LayerNorm, Linear, Sequential
from mmref.nn.ss2d import SS2D
from mmref.nn.tokens import ChannelGate, MeanPool, TokenLinear, gelu, pad_to_multiple

PATCH = 4


class Numbered(Sequential):
    """Layers one after another, under numbers of their own: {number: layer}."""

    def __init__(self, layers: dict[int, Layer]):
        super().__init__()
        for number, layer in layers.items():
            setattr(self, str(number), layer)


class ConvNorm(Numbered):
    """A convolution (`0`), then batch norm (`1`)."""

    def __init__(self, *convolution, more=None, **options):
        conv = Conv2d(*convolution, **options)
        super().__init__({0: conv, 1: BatchNorm(conv.shapes["weight"][0]), **(more or {})})

    def fold_batchnorm(self):
        first, norm, *rest = self.children.items()
        layers = {int(number): layer.fold_batchnorm() for number, layer in rest}
        return Numbered({0: first[1].folded_with(norm[1]), **layers})


class Gelu(Layer):
    def forward(self, x):
        return gelu(x)


class Patches(Conv2d):
    """A convolution whose windows lie side by side; what fills no window is left out."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, stride=self.stride)


class AtrousScan(SS2D):
    """SS2D with sixteen states over every second pixel of every second row; its projections have no batch norms."""

    def __init__(self, dim, d_state):
        super().__init__(dim, d_state, order="atrous")
        self.in_proj = TokenLinear(dim, 2 * self.inner)
        self.out_proj = TokenLinear(self.inner, dim)


class ScanBlock(Layer):
    """x + gate(scan(norm(x))) + gate(convolutions(norm(x))), one gate for both; upstream `EVSSBlock`."""

    def __init__(self, dim, d_state):
        super().__init__()
        self.norm = LayerNorm(dim)
        self.op = AtrousScan(dim, d_state)
        self.conv_branch = ConvNorm(dim, dim, 3, groups=dim, bias=True,
                                    more={2: Gelu(), 3: Conv2d(dim, dim, bias=True)})
        self.se = ChannelGate(dim)

    def forward(self, x):
        v = self.norm(x)
        return x + self.se(self.op(v)) + self.se(self.conv_branch(v))


class Downsample(Layer):
    """(B, C, H, W) -> (B, C', H/2, W/2), sides rounded up: the four pixels of a square side by side, layer norm,
    linear."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.norm = LayerNorm(4 * c_in)
        self.reduction = TokenLinear(4 * c_in, c_out)

    def forward(self, x):
        x = pad_to_multiple(x, 2)
        squares = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]     # (even, even), (odd row, even column), ...
        return self.reduction(self.norm(F.concatenate(*squares)))


class SqueezeExcite(Layer):
    """A map times one value a channel, computed from all channels' means."""

    def __init__(self, dim, reduced):
        super().__init__()
        self.conv_reduce = Conv2d(dim, reduced, bias=True)
        self.conv_expand = Conv2d(reduced, dim, bias=True)

    def forward(self, x):
        means = F.global_average_pool(x, keep_axes=True)                    # (B, C, 1, 1)
        return x * F.sigmoid(self.conv_expand(F.relu(self.conv_reduce(means))))


class InvertedResidual(Layer):
    """x + (1x1 to 4C, depthwise 3x3, squeeze-and-excitation, 1x1 back); batch norms, ReLU behind the first two."""

    def __init__(self, dim):
        super().__init__()
        hidden = 4 * dim
        self.conv_pw = ConvNorm(dim, hidden)
        self.conv_dw = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.se = SqueezeExcite(hidden, dim // 2)
        self.conv_pw2 = ConvNorm(hidden, dim)

    def forward(self, x):
        return x + self.conv_pw2(self.se(F.relu(self.conv_dw(F.relu(self.conv_pw(x))))))


class ScanStage(Layer):
    """Scan blocks, then a downsampling."""

    def __init__(self, dim, depth, d_state, c_out):
        super().__init__()
        self.blocks = Sequential(*(ScanBlock(dim, d_state) for _ in range(depth)))
        self.downsample = Downsample(dim, c_out)

    def forward(self, x):
        return self.downsample(self.blocks(x))


class Classifier(Layer):
    """Layer norm, mean over the pixels, linear; without classes there is nothing behind the mean."""

    def __init__(self, dim, num_classes):
        super().__init__()
        self.norm, self.flatten = LayerNorm(dim), MeanPool()
        if num_classes:
            self.head = Linear(dim, num_classes)

    def forward(self, x):
        return self.answer(self.pool(x))

    def pool(self, x):
        return self.flatten(self.norm(x))

    def answer(self, pooled):
        return self.head(pooled) if "head" in self.children else pooled


class EfficientVMamba(Network):
    """The network, (B, 3, H, W) -> (B, num_classes), H and W from 4 up. Build it with `mmref.create_model`."""

    strides = (4, 8, 16, 32, 32)

    def __init__(self, config: EfficientVMambaVariant):
        super().__init__(check_kind("config", config, EfficientVMambaVariant, "an EfficientVMambaVariant"))
        widths, depths, N = config.widths, config.depths, config.d_state
        self.patch_embed = Numbered({0: Patches(config.in_chans, widths[0], PATCH, PATCH, bias=True),
                                     2: LayerNorm(widths[0])})
        local = [{i + 1: InvertedResidual(dim) for i in range(depth)}       # 0 and the one behind them: transpositions
                 for dim, depth in zip(widths[2:], depths[2:], strict=True)]
        local[0][depths[2] + 2] = Downsample(widths[2], widths[3])
        local[1][depths[3] + 2] = Sequential()                              # nothing: upstream's identity
        self.layers = Sequential(ScanStage(widths[0], depths[0], N, widths[1]),
                                 ScanStage(widths[1], depths[1], N, widths[2]), *map(Numbered, local))
        self.classifier = Classifier(widths[3], config.num_classes)
        self.name_layers()

    def forward(self, x):
        return self.classifier(self.forward_features(x))

    def forward_head(self, x, pre_logits: bool = False):
        """Logits of a last map; with `pre_logits` its pooled features. Raises ShapeError."""
        check_features(x, self.config.widths[-1], self.dtype)
        pre_logits, pooled = check_flag("pre_logits", pre_logits), self.classifier.pool(x)
        return pooled if pre_logits else self.classifier.answer(pooled)

    def stages(self):
        """Embedding, checking its input first, and the four stages."""
        def embed(x):
            self.check_input(x)
            return self.patch_embed(x)
        return embed, *self.layers.children.values()


@dataclass(frozen=True)
class EfficientVMambaVariant:
    """What determines an EfficientVMamba; tuples are by stage.

    img_size     side of the pictures it was trained on, 4 to 4096 pixels
    widths       channels, 8 to 8192; depths  blocks, 0 to 1000 (the first two stages scan)
    d_state      states of a channel, 1 to 1024
    num_classes  0 to 1,000,000, 0 for no head; in_chans  channels of the pictures, 1 to 4096

    Raises ValueProblem for anything else.
    """

    name: str
    img_size: int
    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    d_state: int = 16
    num_classes: int = 1000
    in_chans: int = 3
    head = "classifier.head."  # what the names of its head's parameters begin with

    def __post_init__(self):
        for field, low, high in (("img_size", PATCH, 4096), ("d_state", 1, 1024), ("num_classes", 0, MOST_CLASSES),
                                 ("in_chans", 1, MOST_CHANNELS)):
            object.__setattr__(self, field, check_integer(field, getattr(self, field), low, high))
        for field, low, high in (("widths", 8, 8192), ("depths", 0, 1000)):
            object.__setattr__(self, field, check_integers(field, getattr(self, field), 4, low, high))

    def build(self):
        """The network, its parameters not loaded yet."""
        return EfficientVMamba(self)


VARIANTS = {variant.name: variant for variant in (
    EfficientVMambaVariant("efficientvmamba_t", 224, (48, 96, 192, 384), (2, 2, 4, 2)),)}
# Percent of ImageNet's validation set, as published.
ACCURACY = {"efficientvmamba_t": {"top1": 76.5}}
