"""The segmentation networks in PyTorch, with the published names: what our text of them is compared with.

Written from the papers and the names, on PyTorch's own resizing, pooling and dilation; the backbone is that of
mmref.bench.torch_network, compared with ours elsewhere.
"""

from __future__ import annotations

import torch
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


class Bare(nn.Module):
    def __init__(self, c_in, c_out, kernel=1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)

    def forward(self, x):
        return self.conv(x)


class Neck(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.lateral_convs = nn.ModuleList(Bare(width, 256) for width in widths)
        self.fpn_convs = nn.ModuleList(Bare(256, 256, 3) for _ in widths)

    def forward(self, maps):
        a, b, c = (conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True))
        b = b + interpolate(c, b.shape[2:], mode="nearest")
        a = a + interpolate(b, a.shape[2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.fpn_convs, (a, b, c), strict=True)]


class FPNHead(nn.Module):
    def __init__(self, classes):
        super().__init__()
        double = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.scale_heads = nn.ModuleList((
            nn.Sequential(conv_module(256, 128, 3)), nn.Sequential(conv_module(256, 128, 3), double),
            nn.Sequential(conv_module(256, 128, 3), double, conv_module(128, 128, 3), double)))
        self.conv_seg = nn.Conv2d(128, classes, 1)

    def forward(self, maps):
        a, b, c = (head(x) for head, x in zip(self.scale_heads, maps, strict=True))
        return self.conv_seg(a + resized(b, a) + resized(c, a))


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

    def __init__(self, variant, head, classes):
        super().__init__()
        self.backbone = torch_network.create(variant)
        widths = torch_network.WIDTHS[variant]
        if head == "fpn":
            self.neck, self.decode_head = Neck(widths), FPNHead(classes)
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
