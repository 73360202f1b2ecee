"""Semantic segmentation: a classifier's backbone, and a head that gives every pixel the classes' logits.

    picture (B, 3, H, W)
    backbone      the classifier without its head        F1 (B, C1, H/16, W/16), F2 (.../32), F3 (.../64)
    neck, decode_head   one file each: fpn.py, deeplabv3.py, pspnet.py      (B, classes, h, w)
    resize        bilinear, to the picture's size        (B, classes, H, W)

Names are those of the published checkpoints (mmsegmentation 1.2.2: `backbone.`, `neck.`, `decode_head.`); the head that
took part in their training only, `auxiliary_head.`, is no part of the network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mmref.arguments import check_integer, check_kind
from mmref.data.keep_ratio import KeepRatio
from mmref.data.labels import ade20k_names
from mmref.data.preparation import IMAGENET_GREY, IMAGENET_MEAN, IMAGENET_STD
from mmref.errors import ShapeError, ValueProblem
from mmref.models.network import Network, check_features
from mmref.models.variants import MOST_CHANNELS, MOST_CLASSES, VARIANTS, Variant
from mmref.nn import functional as F
from mmref.nn import resize as R
from mmref.nn.layer import BatchNorm, Conv2d, Layer, computes_as, foldable

PICTURE_SIDE = 512  # the short side that pictures are resized to, and that costs are quoted for


@dataclass(frozen=True)
class SegmentationVariant:
    """A backbone with a head. `num_classes` from 1; the published networks have ADE20K's 150. Raises ValueProblem."""

    name: str
    backbone: Variant
    img_size: int = PICTURE_SIDE
    num_classes: int = 150
    in_chans: int = 3

    task: ClassVar[str] = "segment"
    head: ClassVar[str] = "decode_head."
    headless: ClassVar[bool] = False
    training_only: ClassVar[tuple[str, ...]] = ("auxiliary_head.",)

    def __post_init__(self):
        check_kind("backbone", self.backbone, Variant, "a Variant")
        for field, low, high in (("img_size", 1, 4096), ("num_classes", 1, MOST_CLASSES),
                                 ("in_chans", 1, MOST_CHANNELS)):
            object.__setattr__(self, field, check_integer(field, getattr(self, field), low, high))

    def default_transform(self) -> KeepRatio:
        """The published evaluation's, at the variant's size; in grey for one input channel."""
        mean, std = IMAGENET_GREY if self.in_chans == 1 else (IMAGENET_MEAN, IMAGENET_STD)
        return KeepRatio(self.img_size, 4 * self.img_size, mean, std)

    def published_names(self) -> tuple[str, ...] | None:
        """What the outputs of the published weights are called: ADE20K's classes."""
        return ade20k_names() if self.num_classes == 150 else None

    def build(self) -> Network:
        """The network, its parameters not loaded yet."""
        raise NotImplementedError


def variants(kind: type[SegmentationVariant], head: str) -> dict[str, SegmentationVariant]:
    """The head of this name on every variant's backbone: {name: configuration}. On mobilemamba_nano, which is for small
    pictures, with the classes of CIFAR-10 and one for what lies around them."""
    small = dict(img_size=128, num_classes=11)
    return {f"{name}_{head}": kind(f"{name}_{head}", backbone, **(small if name == "mobilemamba_nano" else {}))
            for name, backbone in VARIANTS.items()}


class ConvModule(Layer):
    """Convolution without bias (`conv`), batch norm (`bn`), ReLU; mmcv's `ConvModule`. Folded, `conv_bn` is both."""

    def __init__(self, c_in, c_out, kernel=1, dilation=1):
        super().__init__()
        self.conv = Conv2d(c_in, c_out, kernel, dilation=dilation)
        self.bn = BatchNorm(c_out)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))

    def fold_batchnorm(self):
        if not (computes_as(self, ConvModule) and foldable(self.conv, self.bn)):
            return super().fold_batchnorm()
        return FoldedConvModule(self.conv.folded_with(self.bn))


class FoldedConvModule(Layer):
    """Convolution with bias (`conv_bn`), ReLU."""

    def __init__(self, conv_bn):
        super().__init__()
        self.conv_bn = conv_bn

    def forward(self, x):
        return F.relu(self.conv_bn(x))


class AdaptiveAverage(Layer):
    """Means over s x s parts of the map, (B, C, H, W) -> (B, C, s, s); the whole map's for s = 1."""

    def __init__(self, side):
        super().__init__()
        self.side = side

    def forward(self, x):
        if self.side == 1:
            return F.global_average_pool(x, keep_axes=True)
        return R.adaptive_average_pool(x, self.side, self.side)


class Double(Layer):
    """Both sides twice as long, bilinear."""

    def forward(self, x):
        return R.upsample(x, 2)


class Segmentation(Network):
    """Base of the networks, which have `backbone`, and `decode` from the three maps to logits."""

    strides = (16, 16, 32, 64)

    def __init__(self, config: SegmentationVariant):
        super().__init__(config)
        self.backbone = replace(config.backbone, num_classes=0, in_chans=config.in_chans).build()

    def forward(self, x):
        """Logits (B, num_classes, H, W) of pictures x (B, 3, H, W), any H and W from 1, any B from 0; the largest of a
        pixel is its class.

        x must have the model's dtype (float32 unless asked otherwise) and be finite; it is not modified. A sample's
        logits do not depend on the rest of its batch. Raises ShapeError and ValueProblem.
        """
        logits = self.forward_head(self.forward_features(x))
        return R.resize(logits, *x.shape[2:])

    def forward_features(self, x):
        """The three stages' maps, [(B, C1, H/16, W/16), (B, C2, H/32, W/32), (B, C3, H/64, W/64)]."""
        self.check_input(x)
        return self.backbone.forward_intermediates(x, [1, 2, 3], intermediates_only=True)

    def forward_head(self, maps):
        """The head's own logits (B, num_classes, h, w) of the three maps that `forward_features` gives. Raises
        ShapeError and ValueProblem."""
        widths = self.config.backbone.widths
        if not isinstance(maps, (list, tuple)) or len(maps) != len(widths):
            raise ValueProblem(f"maps must be a list of {len(widths)} maps, as forward_features gives it, got "
                               f"{type(maps).__name__}{f' of {len(maps)}' if isinstance(maps, (list, tuple)) else ''}")
        for x, width in zip(maps, widths, strict=True):
            check_features(x, width, self.dtype)
        if len({int(x.shape[0]) for x in maps if not hasattr(x, "record")}) > 1:
            raise ShapeError(f"maps must be of one batch, got shapes {', '.join(str(x.shape) for x in maps)}")
        return self.decode(maps)

    def decode(self, maps):
        raise NotImplementedError

    def forward_intermediates(self, x, indices: int | list[int] | None = None, intermediates_only: bool = False):
        """As the classifier's (`mmref.models.mobilemamba.MobileMamba`): the stem's map and the three stages'."""
        return self.backbone.forward_intermediates(x, indices, intermediates_only)
