"""Semantic FPN: coarse maps are added to finer ones, and a head adds up what each of them says (Kirillov et al. 2019,
"Panoptic feature pyramid networks", figures 1 and 3; upstream mmsegmentation's `FPN` and `FPNHead`).

    F1, F2, F3            widths of the backbone, strides 16, 32, 64
    neck                  1x1 to 256; every coarser map enlarged to the next finer one and added to it; 3x3
    decode_head           3x3 to 128, doubled as often as the finest map asks for, added up, 1x1 to the classes

On mobilemamba_nano the 256 and 128 are 48 and 32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmref.arguments import check_integer
from mmref.models.segmentation import ConvModule, Double, Segmentation, SegmentationVariant, variants
from mmref.models.variants import MOST_CHANNELS
from mmref.nn import resize as R
from mmref.nn.layer import Conv2d, Layer, Sequential


@dataclass(frozen=True)
class FPNVariant(SegmentationVariant):
    """A backbone with the Semantic FPN head. neck_width, head_width: channels of the neck's and of the head's maps."""

    neck_width: int = 256
    head_width: int = 128

    def __post_init__(self):
        super().__post_init__()
        for field in ("neck_width", "head_width"):
            object.__setattr__(self, field, check_integer(field, getattr(self, field), 1, MOST_CHANNELS))

    def build(self):
        return SemanticFPN(self)


class BareConv(Layer):
    """A convolution with bias under the name `conv`: mmcv's `ConvModule` without norm and activation."""

    def __init__(self, c_in, c_out, kernel=1):
        super().__init__()
        self.conv = Conv2d(c_in, c_out, kernel, bias=True)

    def forward(self, x):
        return self.conv(x)


class FPN(Layer):
    """The neck: maps of the backbone's widths to as many of `channels`, finest first, sizes as they are."""

    def __init__(self, widths, channels):
        super().__init__()
        self.lateral_convs = Sequential(*(BareConv(width, channels) for width in widths))
        self.fpn_convs = Sequential(*(BareConv(channels, channels, 3) for _ in widths))

    def forward(self, *maps):
        sums = [conv(x) for conv, x in zip(self.lateral_convs.children.values(), maps, strict=True)]
        for i in reversed(range(1, len(sums))):  # from the coarsest on, each as it has become
            sums[i - 1] = sums[i - 1] + R.resize(sums[i], *sums[i - 1].shape[2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.fpn_convs.children.values(), sums, strict=True)]


class FPNHead(Layer):
    """Maps of `channels`, finest first, to logits (B, classes, h, w) of the finest one's size, by way of `width`."""

    def __init__(self, levels, channels, width, num_classes):
        super().__init__()
        self.scale_heads = Sequential(*(self._scale_head(level, channels, width) for level in range(levels)))
        self.conv_seg = Conv2d(width, num_classes, bias=True)

    @staticmethod
    def _scale_head(level, channels, width):
        """A 3x3 convolution and a doubling for every level above the finest; for this one the convolution alone."""
        layers = []
        for i in range(max(level, 1)):
            layers += [ConvModule(width if i else channels, width, 3), *([Double()] if level else [])]
        return Sequential(*layers)

    def forward(self, *maps):
        first, *others = (head(x) for head, x in zip(self.scale_heads.children.values(), maps, strict=True))
        for other in others:  # odd sides: a doubled map is larger or smaller by some pixels
            first = first + R.resize(other, *first.shape[2:])
        return self.conv_seg(first)


class SemanticFPN(Segmentation):
    """The network. Build it with `mmref.create_model("mobilemamba_b4_fpn")`."""

    def __init__(self, config: FPNVariant):
        super().__init__(config)
        widths = config.backbone.widths
        self.neck = FPN(widths, config.neck_width)
        self.decode_head = FPNHead(len(widths), config.neck_width, config.head_width, config.num_classes)
        self.name_layers()

    def decode(self, maps):
        return self.decode_head(*self.neck(*maps))


VARIANTS = variants(FPNVariant, "fpn")
NANO = "mobilemamba_nano_fpn"  # whose weights are included: with the published widths, they would be twice as large
VARIANTS[NANO] = replace(VARIANTS[NANO], img_size=160, neck_width=48, head_width=32)
