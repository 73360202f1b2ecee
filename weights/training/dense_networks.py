"""The two dense networks as trainable PyTorch modules: Semantic FPN and SSDLite on MobileMamba.

A second, independent statement of what mmref/models has in NumPy, with the parameter names of the published
checkpoints (`backbone.`, `neck.`, `decode_head.` or `bbox_head.`), so that files fit both; tests/ compares them. Any
variant of `torch_network` can be the backbone; the widths of neck and head are arguments. Shapes are NCHW.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from mmref.bench import torch_network


class ConvModule(nn.Module):
    """`conv`, then, if asked for, batch norm `bn` and an activation."""

    def __init__(self, c_in, c_out, kernel=1, stride=1, groups=1, eps=1e-5, activation=F.relu, norm=True):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=not norm)
        if norm:
            self.bn = nn.BatchNorm2d(c_out, eps=eps)
        self.norm, self.activation = norm, activation

    def forward(self, x):
        return self.activation(self.bn(self.conv(x))) if self.norm else self.conv(x)


def backbone(variant):
    """The classifier without its head, and the widths of its stages."""
    network = torch_network.create(variant, num_classes=1)
    del network.head
    return network, torch_network.WIDTHS[variant]


def stages(network, x, count):
    """The first `count` stages' maps, strides 16, 32, 64."""
    x, maps = network.patch_embed(x), []
    for i in range(count):
        x = getattr(network, f"blocks{i + 1}")(x)
        maps.append(x)
    return maps


def resized(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


# ------------------------------------------------------------------------------------- FPN

class FPNNeck(nn.Module):
    def __init__(self, widths, channels):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(c, channels, norm=False) for c in widths)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3, norm=False) for _ in widths)

    def forward(self, maps):
        sums = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in reversed(range(1, len(sums))):
            sums[i - 1] = sums[i - 1] + F.interpolate(sums[i], sums[i - 1].shape[2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.fpn_convs, sums, strict=True)]


class FPNHead(nn.Module):
    def __init__(self, channels, inner, num_classes):
        super().__init__()

        def double():
            return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.scale_heads = nn.ModuleList([
            nn.Sequential(ConvModule(channels, inner, 3)),
            nn.Sequential(ConvModule(channels, inner, 3), double()),
            nn.Sequential(ConvModule(channels, inner, 3), double(), ConvModule(inner, inner, 3), double())])
        self.conv_seg = nn.Conv2d(inner, num_classes, 1)

    def forward(self, maps):
        total, *others = (head(x) for head, x in zip(self.scale_heads, maps, strict=True))
        for other in others:
            total = total + resized(other, total.shape[2:])
        return self.conv_seg(total)


class SemanticFPN(nn.Module):
    """x (B, 3, H, W) -> logits (B, num_classes, H/16, W/16); `resized(logits, (H, W))` are the picture's."""

    def __init__(self, variant, num_classes, channels=256, inner=128):
        super().__init__()
        self.backbone, widths = backbone(variant)
        self.neck = FPNNeck(widths, channels)
        self.decode_head = FPNHead(channels, inner, num_classes)

    def forward(self, x):
        return self.decode_head(self.neck(stages(self.backbone, x, 3)))


# --------------------------------------------------------------------------------- SSDLite

def ssd_block(c_in, c_out, kernel=1, stride=1, groups=1):
    return ConvModule(c_in, c_out, kernel, stride, groups, eps=1e-3, activation=F.relu6)


class Separable(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.depthwise_conv = ssd_block(c_in, c_in, 3, 2, groups=c_in)
        self.pointwise_conv = ssd_block(c_in, c_out)

    def forward(self, x):
        return self.pointwise_conv(self.depthwise_conv(x))


class SSDNeck(nn.Module):
    def __init__(self, c_in, extra):
        super().__init__()
        self.extra_layers = nn.ModuleList(nn.Sequential(ssd_block(before, c // 2), Separable(c // 2, c))
                                          for before, c in pairwise((c_in, *extra)))

    def forward(self, maps):
        for layer in self.extra_layers:
            maps = [*maps, layer(maps[-1])]
        return maps


class SSDHead(nn.Module):
    def __init__(self, widths, num_classes, anchors=6):
        super().__init__()

        def by_level(c_out):
            return nn.ModuleList(nn.Sequential(ssd_block(c, c, 3, groups=c), nn.Conv2d(c, c_out, 1)) for c in widths)
        self.cls_convs, self.reg_convs = by_level(anchors * (num_classes + 1)), by_level(anchors * 4)

    def forward(self, maps):
        return ([layer(x) for layer, x in zip(self.cls_convs, maps, strict=True)],
                [layer(x) for layer, x in zip(self.reg_convs, maps, strict=True)])


class SSDLite(nn.Module):
    """x (B, 3, H, W) -> six levels' class logits (B, 6 * (num_classes + 1), h, w) and offsets (B, 24, h, w). The
    backbone's third stage is in the file and not computed, as in the published ones."""

    def __init__(self, variant, num_classes, extra=(512, 256, 256, 128)):
        super().__init__()
        self.backbone, widths = backbone(variant)
        self.neck = SSDNeck(widths[1], extra)
        self.bbox_head = SSDHead((*widths[:2], *extra), num_classes)

    def forward(self, x):
        return self.bbox_head(self.neck(stages(self.backbone, x, 2)))


def by_anchor(maps, values):
    """Raw maps (B, anchors * values, h, w) of all levels -> (B, all anchors, values): by level, row, column, anchor."""
    return torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, values) for m in maps], 1)
