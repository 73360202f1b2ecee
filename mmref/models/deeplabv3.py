"""DeepLabv3: the last map seen with filters of several reaches at once (Chen et al. 2017, "Rethinking atrous
convolution", figure 5; upstream mmsegmentation's `ASPPHead`).

    F3 (B, C3, h, w)
    image_pool            mean over the map, 1x1 to 256, enlarged to h x w again
    aspp_modules          1x1; 3x3 with taps 12, 24, 36 pixels apart; each to 256
    bottleneck            3x3 of all five, 1280 to 256
    conv_seg              1x1 to the classes
"""

from __future__ import annotations

from dataclasses import dataclass

from mmref.models.segmentation import AdaptiveAverage, ConvModule, Segmentation, SegmentationVariant, variants
from mmref.nn import functional as F
from mmref.nn import resize as R
from mmref.nn.layer import Conv2d, Layer, Sequential

CHANNELS, DILATIONS = 256, (12, 24, 36)


@dataclass(frozen=True)
class DeepLabVariant(SegmentationVariant):
    """A backbone with the DeepLabv3 head."""

    def build(self):
        return DeepLabV3(self)


class ASPPHead(Layer):
    """Atrous spatial pyramid pooling: a map (B, C, h, w) to logits (B, classes, h, w)."""

    def __init__(self, width, num_classes):
        super().__init__()
        self.image_pool = Sequential(AdaptiveAverage(1), ConvModule(width, CHANNELS))
        self.aspp_modules = Sequential(ConvModule(width, CHANNELS),
                                       *(ConvModule(width, CHANNELS, 3, dilation) for dilation in DILATIONS))
        self.bottleneck = ConvModule((2 + len(DILATIONS)) * CHANNELS, CHANNELS, 3)
        self.conv_seg = Conv2d(CHANNELS, num_classes, bias=True)

    def forward(self, x):
        views = [R.resize(self.image_pool(x), *x.shape[2:])]
        views += [module(x) for module in self.aspp_modules.children.values()]
        return self.conv_seg(self.bottleneck(F.concatenate(*views)))


class DeepLabV3(Segmentation):
    """The network. Build it with `mmref.create_model("mobilemamba_b4_deeplabv3")`."""

    def __init__(self, config: DeepLabVariant):
        super().__init__(config)
        self.decode_head = ASPPHead(config.backbone.widths[-1], config.num_classes)
        self.name_layers()

    def decode(self, maps):
        return self.decode_head(maps[-1])


VARIANTS = variants(DeepLabVariant, "deeplabv3")
