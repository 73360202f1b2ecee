"""Mistakes that ports of segmentation networks make, as in faults.py: resizing, pooling, dilation, order of joins."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmref.models.deeplabv3 import ASPPHead
from mmref.models.fpn import FPN
from mmref.models.pspnet import PSPHead
from mmref.models.segmentation import AdaptiveAverage, Double, Segmentation
from mmref.nn import functional as F
from mmref.nn import resize as R
from mmref.nn.layer import Conv2d
from mmref.validate.faults import fault, forwards


class Decoder:
    """What a segmentation network computes from its backbone's maps, as a unit to plant mistakes in: called with the
    three maps and the picture, whose size the logits get."""

    name, resize = "", staticmethod(R.resize)

    def __init__(self, network: Segmentation):
        self.network = network

    def walk(self) -> Iterator:
        """(dotted path, layer), as `Layer.walk`; the backbone is left out."""
        yield "", self
        for path, layer in self.network.walk():
            if path and path.partition(".")[0] != "backbone":
                yield path, layer

    def __call__(self, maps):
        *maps, picture = maps
        logits = self.resize(self.network.decode(maps), *picture.shape[2:])
        self.network.record(logits)
        return logits


def aligned_corners(x, height, width):
    """Bilinear, corner pixels on corner pixels: `align_corners=True`."""
    def blended(x, axis, size):
        source = np.linspace(0, x.shape[axis] - 1, size)
        lower = np.minimum(source.astype(int), x.shape[axis] - 1)
        share = (source - lower).reshape(-1, *(1,) * (3 - axis)).astype(x.dtype)
        upper = np.minimum(lower + 1, x.shape[axis] - 1)
        return x.take(lower, axis) * (1 - share) + x.take(upper, axis) * share
    return blended(blended(x, 2, height), 3, width)


def nearest(x, height, width):
    return R.resize(x, height, width, mode="nearest")


for _text, _resized in (("align_corners=True where it is False", aligned_corners),
                        ("nearest instead of bilinear", nearest)):
    @fault(Decoder, "resize", f"logits resized with {_text}", resized=_resized)
    def _final(unit, resized):
        unit.resize = resized

    forwards(Double, "resize", f"doubled with {_text}",
             lambda layer, x, resized=_resized: resized(x, 2 * x.shape[2], 2 * x.shape[3]))


@fault(FPN, "resize", "the neck's maps enlarged bilinear instead of nearest", resized=R.resize)
@fault(FPN, "shortcut-missing", "the neck's coarser maps not added to the finer ones",
       resized=lambda x, height, width: np.zeros((*x.shape[:2], height, width), x.dtype))
def _neck(layer, resized):
    def forward(*maps):
        sums = [conv(x) for conv, x in zip(layer.lateral_convs.children.values(), maps, strict=True)]
        for i in reversed(range(1, len(sums))):
            sums[i - 1] = sums[i - 1] + resized(sums[i], *sums[i - 1].shape[2:])
        return [conv(x) for conv, x in zip(layer.fpn_convs.children.values(), sums, strict=True)]
    layer.forward = forward


@fault(Conv2d, "dilation", "dilation left out")
def _undilated(layer):
    if layer.dilation == 1:
        return False
    layer.dilation = 1


def _equal_parts(layer, x):
    """Every part as long as the others, the last pixels left out: a plain pooling in the place of an adaptive one."""
    k_h, k_w = (max(size // layer.side, 1) for size in x.shape[2:])
    def part(i, k, size):
        return slice(min(i * k, size - 1), min(i * k, size - 1) + k)
    means = [[x[:, :, part(i, k_h, x.shape[2]), part(j, k_w, x.shape[3])].mean((2, 3)) for j in range(layer.side)]
             for i in range(layer.side)]
    return np.moveaxis(np.array(means), (0, 1), (2, 3))


forwards(AdaptiveAverage, "pooling", "parts of equal size instead of an adaptive mean", _equal_parts)
forwards(AdaptiveAverage, "pooling", "maximum instead of mean over the parts", lambda layer, x: np.array([[
    x[:, :, top:bottom, left:right].max((2, 3)) for left, right in R.bins(x.shape[3], layer.side)]
    for top, bottom in R.bins(x.shape[2], layer.side)]).transpose(2, 3, 0, 1))


def _joined_otherwise(head, x):
    parts = [R.resize(module(x), *x.shape[2:]) for module in head.psp_modules.children.values()]
    return head.conv_seg(head.bottleneck(F.concatenate(*parts, x)))


def _pooled_last(head, x):
    views = [module(x) for module in head.aspp_modules.children.values()]
    return head.conv_seg(head.bottleneck(F.concatenate(*views, R.resize(head.image_pool(x), *x.shape[2:]))))


forwards(PSPHead, "join-order", "the map joined behind its means instead of before them", _joined_otherwise)
forwards(ASPPHead, "join-order", "the global mean joined last instead of first", _pooled_last)
