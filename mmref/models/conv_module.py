"""The convolution that mmcv's networks are made of, under its names."""

from __future__ import annotations

import copy

from mmref.nn.layer import BatchNorm, Conv2d, Layer


class ConvModule(Layer):
    """Convolution (`conv`), batch norm (`bn`), activation; mmcv's `ConvModule`.

    eps         of the batch norm; None for none, then the convolution has a bias
    activation  an operation, None for none
    """

    def __init__(self, c_in, c_out, kernel=1, stride=1, groups=1, *, eps=None, activation=None):
        super().__init__()
        self.activation = activation
        self.conv = Conv2d(c_in, c_out, kernel, stride, groups, bias=eps is None)
        if eps is not None:
            self.bn = BatchNorm(c_out)
            self.bn.eps = eps

    def forward(self, x):
        for layer in self.children.values():
            x = layer(x)
        return x if self.activation is None else self.activation(x)

    def fold_batchnorm(self):
        folded = copy.copy(self)
        if "bn" in self.children:  # under another name: what it gives is not what `conv` gave
            folded.conv_bn = self.conv.folded_with(self.bn)
            del folded.conv, folded.bn
        return folded
