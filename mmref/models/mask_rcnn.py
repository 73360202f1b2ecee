"""Mask R-CNN on MobileMamba: propose regions, then look at each of them again (He et al. 2017).

    picture (B, 3, H, W)
    backbone            three stages                     strides 16, 32, 64
    neck                fine_pyramid.py                  strides 4, 8, 16, 32, 64, 256 channels
    rpn_head            on every level: is there something, and where?      -> 1000 regions a picture, on the host
    roi_head.bbox_head  on each region's 7 x 7: which class, and where exactly? -> at most 100 objects, on the host
    roi_head.mask_head  on each object's 14 x 14: which of its pixels?

The three dense parts are `forward` (up to rpn_head), `box_head` and `mask_head`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mmref.detection.anchors import by_ratio_and_scale
from mmref.detection.boxes import decode
from mmref.detection.candidates import by_anchor, scale_factor, softmax_scores
from mmref.detection.nms import class_wise_nms
from mmref.detection.proposals import propose
from mmref.detection.result import detections
from mmref.detection.roi_align import pyramid_roi_align
from mmref.models.conv_module import ConvModule
from mmref.models.detection import DetectionNetwork, DetectionVariant
from mmref.models.fine_pyramid import WIDTH, ConvTranspose2d, FinePyramid
from mmref.models.variants import VARIANTS as BACKBONES
from mmref.nn import functional as F
from mmref.nn.layer import Conv2d, Layer, Linear, Sequential

STRIDES = (4, 8, 16, 32, 64)                # of the levels that propose; regions are cut from all but the last
SIZE, RATIOS = 8, (0.5, 1.0, 2.0)           # of anchors, in strides; height / width
BOX_SIDE, MASK_SIDE = 7, 14                 # what is cut out of the levels
SPREAD = (0.1, 0.1, 0.2, 0.2)               # of the second offsets
CANDIDATES, REGION_OVERLAP, REGIONS = 1000, 0.7, 1000
SCORE, OVERLAP, KEPT = 0.05, 0.5, 100


@dataclass(frozen=True)
class MaskRCNNVariant(DetectionVariant):
    head: ClassVar[str] = "roi_head."
    masks: ClassVar[bool] = True

    def build(self):
        """The network, its parameters not loaded yet."""
        return MaskRCNN(self)

    def classes_of(self, state):
        """How many classes a checkpoint's head tells apart, None where it has none."""
        name = "roi_head.bbox_head.fc_cls.weight"
        return state[name].shape[0] - 1 if name in state else None


class ProposalHead(Layer):
    """Of each level (B, 256, H, W): logits (B, 3, H, W) and offsets (B, 12, H, W)."""

    def __init__(self):
        super().__init__()
        self.rpn_conv = Conv2d(WIDTH, WIDTH, 3, bias=True)
        self.rpn_cls = Conv2d(WIDTH, len(RATIOS), bias=True)
        self.rpn_reg = Conv2d(WIDTH, len(RATIOS) * 4, bias=True)

    def forward(self, *levels):
        mixed = [F.relu(self.rpn_conv(x)) for x in levels]
        return {"cls": [self.rpn_cls(x) for x in mixed], "reg": [self.rpn_reg(x) for x in mixed]}


class BoxHead(Layer):
    """Of regions (n, 256, 7, 7): class logits (n, classes + 1), the last for background, offsets (n, classes * 4)."""

    def __init__(self, num_classes):
        super().__init__()
        self.shared_fcs = Sequential(Linear(WIDTH * BOX_SIDE ** 2, 1024), Linear(1024, 1024))
        self.fc_cls = Linear(1024, num_classes + 1)
        self.fc_reg = Linear(1024, num_classes * 4)

    def forward(self, x):
        x = F.flatten(x)
        for layer in self.shared_fcs.children.values():
            x = F.relu(layer(x))
        return {"cls": self.fc_cls(x), "reg": self.fc_reg(x)}


class MaskHead(Layer):
    """Of regions (n, 256, 14, 14): logits (n, classes, 28, 28)."""

    def __init__(self, num_classes):
        super().__init__()
        self.convs = Sequential(*(ConvModule(WIDTH, WIDTH, 3, activation=F.relu) for _ in range(4)))
        self.upsample = ConvTranspose2d(WIDTH, WIDTH, 2)
        self.conv_logits = Conv2d(WIDTH, num_classes, bias=True)

    def forward(self, x):
        return self.conv_logits(F.relu(self.upsample(self.convs(x))))


class RegionHeads(Layer):
    """Holds both heads under the names the checkpoints use."""

    def __init__(self, num_classes):
        super().__init__()
        self.bbox_head = BoxHead(num_classes)
        self.mask_head = MaskHead(num_classes)


class MaskRCNN(DetectionNetwork):
    """`model(x)`: {"neck": [four levels (B, 256, h, w), strides 4 to 32], "cls": [five maps (B, 3, h, w)], "reg": [five
    maps (B, 12, h, w)]}, the last two with channels anchor and anchor * 4 + coordinate."""

    def __init__(self, config: MaskRCNNVariant):
        super().__init__(config)
        self.neck = FinePyramid(config.backbone.widths, finer=2, coarsest=False)
        self.rpn_head = ProposalHead()
        self.roi_head = RegionHeads(config.num_classes)
        self.anchors = [by_ratio_and_scale(stride, [stride * SIZE], RATIOS) for stride in STRIDES]
        self.name_layers()

    # ------------------------------------------------------------------ the dense parts

    def forward(self, x):
        levels = self.neck(*self.maps(x, (1, 2, 3)))
        return {"neck": levels[:-1], **self.rpn_head(*levels)}

    def box_head(self, x):
        return self.roi_head.bbox_head(x)

    def mask_head(self, x):
        return self.roi_head.mask_head(x)

    # ------------------------------------------------------------------ on the host

    def find(self, raw, i, image_size, original_size, dense, backend):
        levels = [level[i:i + 1] for level in raw["neck"]]
        regions = self.regions(raw, i, image_size, backend)[0]
        answers = dense("box_head", self.cut(levels, regions, BOX_SIDE, backend))
        boxes, scores, labels = self.objects(regions, answers, image_size, backend)
        logits = dense("mask_head", self.cut(levels, boxes, MASK_SIDE, backend))
        probabilities = F.sigmoid(logits[np.arange(len(labels)), labels])   # (n, 28, 28)
        boxes = boxes / scale_factor(image_size, original_size)
        return detections(boxes, scores, labels, original_size, self.dtype, probabilities)

    def regions(self, raw, i, image_size, backend):
        """(boxes (n, 4), scores) of picture i that its second look is for, n up to 1000, in the network's pixels."""
        levels = [(anchors.grid(*cls.shape[2:]), by_anchor(cls[i], 1), by_anchor(reg[i], 4))
                  for anchors, cls, reg in zip(self.anchors, raw["cls"], raw["reg"], strict=True)]
        return propose(levels, image_size, candidates=CANDIDATES, threshold=REGION_OVERLAP, most=REGIONS,
                       backend=backend)

    @staticmethod
    def cut(levels, boxes, side, backend):
        """(n, 256, side, side): the content of boxes of one picture."""
        return pyramid_roi_align(levels, boxes, np.zeros(len(boxes)), side, STRIDES[:len(levels)], backend=backend)

    def objects(self, regions, answers, image_size, backend):
        """(boxes, scores, labels) from the box head's answers: each class has offsets of its own."""
        cls, reg = (by_anchor(answers[name].T[:, :, None], answers[name].shape[1]) for name in ("cls", "reg"))
        which, labels, scores = softmax_scores(cls, SCORE, None)
        offsets = reg.reshape(len(reg), -1, 4)[which, labels]
        boxes = decode(regions[which], offsets, SPREAD, image_size)
        kept = class_wise_nms(boxes, scores, labels, OVERLAP, backend=backend)[:KEPT]
        return boxes[kept], scores[kept], labels[kept]


VARIANTS = {v.name: v for v in (MaskRCNNVariant("mobilemamba_b1_mask_rcnn", BACKBONES["mobilemamba_b1"], 800),)}
