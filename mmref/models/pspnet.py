"""PSPNet: the last map beside its means over 1x1, 2x2, 3x3 and 6x6 parts (Zhao et al. 2017, "Pyramid scene parsing
network", figure 3; upstream mmsegmentation's `PSPHead`).

    F3 (B, C3, h, w)
    psp_modules           for s = 1, 2, 3, 6: means over s x s parts, 1x1 to 256, enlarged to h x w again
    bottleneck            3x3 of F3 and the four, C3 + 1024 to 256
    conv_seg              1x1 to the classes
"""

from __future__ import annotations

from dataclasses import dataclass

from mmref.models.segmentation import AdaptiveAverage, ConvModule, Segmentation, SegmentationVariant, variants
from mmref.nn import functional as F
from mmref.nn import resize as R
from mmref.nn.layer import Conv2d, Layer, Sequential

CHANNELS, PARTS = 256, (1, 2, 3, 6)


@dataclass(frozen=True)
class PSPVariant(SegmentationVariant):
    """A backbone with the PSPNet head."""

    def build(self):
        return PSPNet(self)


class PSPHead(Layer):
    """Pyramid pooling: a map (B, C, h, w) to logits (B, classes, h, w)."""

    def __init__(self, width, num_classes):
        super().__init__()
        self.psp_modules = Sequential(*(Sequential(AdaptiveAverage(s), ConvModule(width, CHANNELS)) for s in PARTS))
        self.bottleneck = ConvModule(width + len(PARTS) * CHANNELS, CHANNELS, 3)
        self.conv_seg = Conv2d(CHANNELS, num_classes, bias=True)

    def forward(self, x):
        parts = [R.resize(module(x), *x.shape[2:]) for module in self.psp_modules.children.values()]
        return self.conv_seg(self.bottleneck(F.concatenate(x, *parts)))


class PSPNet(Segmentation):
    """The network. Build it with `mmref.create_model("mobilemamba_b4_pspnet")`."""

    def __init__(self, config: PSPVariant):
        super().__init__(config)
        self.decode_head = PSPHead(config.backbone.widths[-1], config.num_classes)
        self.name_layers()

    def decode(self, maps):
        return self.decode_head(maps[-1])


VARIANTS = variants(PSPVariant, "pspnet")
