"""RetinaNet on MobileMamba: one head, the same for all levels (Lin et al. 2017, "Focal loss").

    picture (B, 3, H, W)
    backbone       three stages                          strides 16, 32, 64
    neck           fine_pyramid.py                       strides 8, 16, 32, 64, 128, 256 channels
    bbox_head      four 3x3 convolutions and one for classes, as many for boxes
"""

from __future__ import annotations

from dataclasses import dataclass

from mmref.detection.anchors import by_ratio_and_scale
from mmref.models.conv_module import ConvModule
from mmref.models.detection import DetectionVariant, OneStage
from mmref.models.fine_pyramid import WIDTH, FinePyramid
from mmref.models.variants import VARIANTS as BACKBONES
from mmref.nn import functional as F
from mmref.nn.layer import Conv2d, Layer, Sequential

STRIDES = (8, 16, 32, 64, 128)
SCALES, RATIOS = tuple(4 * 2 ** (i / 3) for i in range(3)), (0.5, 1.0, 2.0)   # of anchors, in strides; height / width
ANCHORS = len(SCALES) * len(RATIOS)


@dataclass(frozen=True)
class RetinaNetVariant(DetectionVariant):
    def build(self):
        """The network, its parameters not loaded yet."""
        return RetinaNet(self)

    def classes_of(self, state):
        """How many classes a checkpoint's head tells apart, None where it has none."""
        rows = state["bbox_head.retina_cls.weight"].shape[0] if "bbox_head.retina_cls.weight" in state else 0
        return rows // ANCHORS or None


class Head(Layer):
    """Of each level (B, 256, H, W): class logits (B, 9 * classes, H, W) and offsets (B, 36, H, W)."""

    def __init__(self, num_classes):
        super().__init__()
        self.cls_convs = Sequential(*(ConvModule(WIDTH, WIDTH, 3, activation=F.relu) for _ in range(4)))
        self.reg_convs = Sequential(*(ConvModule(WIDTH, WIDTH, 3, activation=F.relu) for _ in range(4)))
        self.retina_cls = Conv2d(WIDTH, ANCHORS * num_classes, 3, bias=True)
        self.retina_reg = Conv2d(WIDTH, ANCHORS * 4, 3, bias=True)

    def forward(self, *levels):
        return {"cls": [self.retina_cls(self.cls_convs(x)) for x in levels],
                "reg": [self.retina_reg(self.reg_convs(x)) for x in levels]}


class RetinaNet(OneStage):
    """The network. Build it with `mmref.create_model("mobilemamba_b1_retinanet")`; 9 anchors a cell, five levels."""

    background, spread = False, (1.0, 1.0, 1.0, 1.0)
    score, overlap, kept = 0.05, 0.5, 100

    def __init__(self, config: RetinaNetVariant):
        super().__init__(config)
        self.neck = FinePyramid(config.backbone.widths, finer=1, coarsest=True)
        self.bbox_head = Head(config.num_classes)
        self.anchors = [by_ratio_and_scale(stride, [stride * scale for scale in SCALES], RATIOS) for stride in STRIDES]
        self.name_layers()

    def forward(self, x):
        return self.bbox_head(*self.neck(*self.maps(x, (1, 2, 3))))


VARIANTS = {v.name: v for v in (RetinaNetVariant("mobilemamba_b1_retinanet", BACKBONES["mobilemamba_b1"], 800),)}
