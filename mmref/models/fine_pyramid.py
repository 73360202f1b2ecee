"""The neck of RetinaNet and Mask R-CNN: a feature pyramid that also grows towards finer levels (Lin et al. 2017).

    three maps of the backbone, strides 16, 32, 64
    lateral_convs       1x1, to 256 channels; each coarser one, enlarged, is added to the next finer
    extra_trans_convs   the finest, doubled by learned filters: strides 8, 4
    fpn_convs           3x3 behind each level
    extra_fpn_convs     3x3 behind the doubled ones

No norm and no activation anywhere.
"""

from __future__ import annotations

from mmref.models.conv_module import ConvModule
from mmref.nn.layer import Layer, Sequential
from mmref.nn.resize import resize
from mmref.nn.transposed import conv_transpose2d

WIDTH = 256


class ConvTranspose2d(Layer):
    """Transposed convolution k x k of stride k: both sides k times as long. `weight` (c_in, c_out, k, k), `bias`."""

    def __init__(self, c_in, c_out, kernel):
        super().__init__()
        self.kernel = kernel
        self.declare(weight=(c_in, c_out, kernel, kernel), bias=(c_out,))

    def forward(self, x):
        return conv_transpose2d(x, self.weight, self.bias, stride=self.kernel)

    def macs(self, y):
        c_in, c_out = self.shapes["weight"][:2]
        return c_in * c_out * y.shape[2] * y.shape[3]


class Doubled(Layer):
    """Holds a transposed convolution under the name the checkpoints use, `conv`."""

    def __init__(self):
        super().__init__()
        self.conv = ConvTranspose2d(WIDTH, WIDTH, 2)

    def forward(self, x):
        return self.conv(x)


class FinePyramid(Layer):
    """Three maps (B, C, h, w), fine to coarse, to levels of 256 channels, fine to coarse.

    finer     how many levels below stride 16: 1 (stride 8) or 2 (strides 4 and 8)
    coarsest  whether there is a level of stride 128, made of the backbone's last map
    """

    def __init__(self, widths, finer: int, coarsest: bool):
        super().__init__()
        self.lateral_convs = Sequential(*(ConvModule(width, WIDTH) for width in widths))
        self.extra_trans_convs = Sequential(*(Doubled() for _ in range(finer)))
        output = [ConvModule(WIDTH, WIDTH, 3) for _ in widths]
        if coarsest:
            output.append(ConvModule(widths[-1], WIDTH, 3, 2))
        self.fpn_convs = Sequential(*output)
        self.extra_fpn_convs = Sequential(*(ConvModule(WIDTH, WIDTH, 3) for _ in range(finer)))

    def forward(self, *maps):
        sums = [layer(x) for layer, x in zip(self.lateral_convs.children.values(), maps, strict=True)]
        for i in range(len(sums) - 1, 0, -1):
            sums[i - 1] = sums[i - 1] + resize(sums[i], *sums[i - 1].shape[2:], mode="nearest")
        fine, x = [], sums[0]
        for layer in self.extra_trans_convs.children.values():
            x = layer(x)
            fine.insert(0, x)                    # made from coarse to fine, kept from fine to coarse
        inputs = sums + list(maps[-1:]) * (len(self.fpn_convs.children) - len(sums))
        levels = [layer(x) for layer, x in zip(self.extra_fpn_convs.children.values(), fine, strict=True)]
        return levels + [layer(x) for layer, x in zip(self.fpn_convs.children.values(), inputs, strict=True)]
