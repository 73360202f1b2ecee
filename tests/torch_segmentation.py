"""The segmentation networks in PyTorch, with the published names: what our text of them is compared with.

Written from the papers and the names, on PyTorch's own resizing, pooling and dilation; the backbone is that of
mmref.bench.torch_network, compared with ours elsewhere, and Semantic FPN is the one that is trained (weights/training).
"""

from __future__ import annotations

import torch
from dense_networks import FPNHead, FPNNeck
from torch import nn
from torch.nn.functional import interpolate

from mmref.bench import torch_network


def conv_module(c_in, c_out, kernel=1, dilation=1):
    module = nn.Sequential()
    module.add_module("conv", nn.Conv2d(c_in, c_out, kernel, padding=dilation * (kernel // 2), dilation=dilation,
                                        bias=False))
    module.add_module("bn", nn.BatchNorm2d(c_out))
    module.add_module("relu", nn.ReLU())
    return module


def resized(x, like):
    return interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


class ASPPHead(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_module(width, 256))
        self.aspp_modules = nn.ModuleList((conv_module(width, 256), *(conv_module(width, 256, 3, d)
                                                                      for d in (12, 24, 36))))
        self.bottleneck = conv_module(1280, 256, 3)
        self.conv_seg = nn.Conv2d(256, classes, 1)

    def forward(self, x):
        views = [resized(self.image_pool(x), x), *(module(x) for module in self.aspp_modules)]
        return self.conv_seg(self.bottleneck(torch.cat(views, 1)))


class PSPHead(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.psp_modules = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(s), conv_module(width, 256))
                                         for s in (1, 2, 3, 6))
        self.bottleneck = conv_module(width + 1024, 256, 3)
        self.conv_seg = nn.Conv2d(256, classes, 1)

    def forward(self, x):
        parts = (resized(module(x), x) for module in self.psp_modules)
        return self.conv_seg(self.bottleneck(torch.cat([x, *parts], 1)))


class Segmenter(nn.Module):
    """`model(x)`: logits at x's size; `maps`, `decode`: its two halves."""

    def __init__(self, variant, head, classes, neck_width=48, head_width=32):
        super().__init__()
        self.backbone = torch_network.create(variant)
        widths = torch_network.WIDTHS[variant]
        if head == "fpn":
            self.neck, self.decode_head = FPNNeck(widths, neck_width), FPNHead(neck_width, head_width, classes)
        else:
            self.decode_head = {"deeplabv3": ASPPHead, "pspnet": PSPHead}[head](widths[-1], classes)

    def maps(self, x):
        maps = [self.backbone.patch_embed(x)]
        for stage in (self.backbone.blocks1, self.backbone.blocks2, self.backbone.blocks3):
            maps.append(stage(maps[-1]))
        return maps[1:]

    def decode(self, maps):
        return self.decode_head(self.neck(maps) if hasattr(self, "neck") else maps[-1])

    def forward(self, x):
        return resized(self.decode(self.maps(x)), x)
