"""SSDLite on MobileMamba: six levels, each answering for itself (Liu et al. 2016; Sandler et al. 2018, section 6.2).

    picture (B, 3, H, W)
    backbone       stages 1 and 2                        strides 16, 32
    neck           four more levels, each half the size  strides 64, 128, ...
    bbox_head      a depthwise and a pointwise convolution a level for classes, two more for boxes

The checkpoints hold the backbone's stage 3 too, which nothing reads: it is loaded and not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from mmref.data.frame import Frame
from mmref.detection.anchors import of_ssd
from mmref.models.conv_module import ConvModule
from mmref.models.detection import DetectionVariant, OneStage
from mmref.models.variants import VARIANTS as BACKBONES
from mmref.nn import functional as F
from mmref.nn.layer import Conv2d, Layer, Sequential

EPS = 1e-3                                  # of the batch norms of neck and head
ANCHORS = 6                                 # in a cell


@dataclass(frozen=True)
class SSDLiteVariant(DetectionVariant):
    """strides: from one cell's centre to the next, by level; sides: of anchors, each level's smallest, then the largest
    of the last. The 512 model was trained with those of the 320: its coarse anchors are not in the middle of their
    cells. extra: channels of the neck's levels."""

    extra: tuple[int, ...] = (512, 256, 256, 128)
    strides: tuple[float, ...] = (16, 32, 64, 107, 160, 320)
    sides: tuple[float, ...] = (48, 100, 150, 202, 253, 304, 320)

    def frame(self) -> Frame:
        """How pictures are scaled: to a square, whatever their ratio, nothing filled up."""
        return Frame(self.img_size, self.img_size, keep_ratio=False, multiple=1)

    def build(self):
        """The network, its parameters not loaded yet."""
        return SSDLite(self)

    def classes_of(self, state):
        """How many classes a checkpoint's head tells apart, None where it has none."""
        rows = state["bbox_head.cls_convs.0.1.weight"].shape[0] if "bbox_head.cls_convs.0.1.weight" in state else 0
        return rows // ANCHORS - 1 if rows else None


def block(c_in, c_out, kernel=1, stride=1, groups=1):
    """Convolution, batch norm, ReLU6."""
    return ConvModule(c_in, c_out, kernel, stride, groups, eps=EPS, activation=F.relu6)


class Separable(Layer):
    """Depthwise 3x3 of stride 2, then pointwise; mmcv's `DepthwiseSeparableConvModule`."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.depthwise_conv = block(c_in, c_in, 3, 2, groups=c_in)
        self.pointwise_conv = block(c_in, c_out)

    def forward(self, x):
        return self.pointwise_conv(self.depthwise_conv(x))


class Neck(Layer):
    """Both maps as they are, and four more, each made of the one before it: (B, C, H, W) -> (B, C', H/2, W/2)."""

    def __init__(self, c_in, extra):
        super().__init__()
        widths = (c_in, *extra)
        self.extra_layers = Sequential(*(Sequential(block(before, width // 2), Separable(width // 2, width))
                                         for before, width in zip(widths, widths[1:], strict=False)))

    def forward(self, fine, coarse):
        levels = [fine, coarse]
        for layer in self.extra_layers.children.values():
            levels.append(layer(levels[-1]))
        return levels


class Head(Layer):
    """Of each level (B, C, H, W): class logits (B, 6 * (classes + 1), H, W) and offsets (B, 24, H, W)."""

    def __init__(self, widths, num_classes):
        super().__init__()
        self.cls_convs = self._by_level(widths, ANCHORS * (num_classes + 1))
        self.reg_convs = self._by_level(widths, ANCHORS * 4)

    @staticmethod
    def _by_level(widths, c_out):
        return Sequential(*(Sequential(block(width, width, 3, groups=width), Conv2d(width, c_out, bias=True))
                            for width in widths))

    def forward(self, *levels):
        return {"cls": [layer(x) for layer, x in zip(self.cls_convs.children.values(), levels, strict=True)],
                "reg": [layer(x) for layer, x in zip(self.reg_convs.children.values(), levels, strict=True)]}


class SSDLite(OneStage):
    """The network. Build it with `mmref.create_model("mobilemamba_b1_ssdlite")`; 6 anchors a cell, six levels."""

    background, spread = True, (0.1, 0.1, 0.2, 0.2)
    score, overlap, kept = 0.02, 0.45, 200

    def __init__(self, config: SSDLiteVariant):
        super().__init__(config)
        fine, coarse = config.backbone.widths[:2]
        self.neck = Neck(coarse, config.extra)
        self.bbox_head = Head((fine, coarse, *config.extra), config.num_classes)
        self.anchors = [of_ssd(stride, *sides) for stride, sides in zip(config.strides, pairwise(config.sides),
                                                                        strict=True)]
        self.name_layers()

    def forward(self, x):
        return self.bbox_head(*self.neck(*self.maps(x, (1, 2))))


VARIANTS = {v.name: v for v in (
    SSDLiteVariant("mobilemamba_b1_ssdlite", BACKBONES["mobilemamba_b1"], 320),
    SSDLiteVariant("mobilemamba_b1_ssdlite_512", BACKBONES["mobilemamba_b1"], 512),
    SSDLiteVariant("mobilemamba_nano_ssdlite", BACKBONES["mobilemamba_nano"], 160, 10, extra=(128, 128, 96, 64),
                   strides=(16, 32, 160 / 3, 80, 160, 160), sides=(30, 46, 74, 104, 140, 160, 176)),
)}
