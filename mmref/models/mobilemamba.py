"""MobileMamba, from the picture to the logits (paper section 3.1 and figure 3; upstream `MobileMamba`).

    picture (B, 3, H, W)
    patch_embed   stem, stride 16                       (B, C1, H/16, W/16)
    blocks1       blocks                                (B, C1, H/16, W/16)
    blocks2       downsampling trio, blocks             (B, C2, H/32, W/32)
    blocks3       downsampling trio, blocks             (B, C3, H/64, W/64)
    head          mean over the pixels, BN, linear      (B, classes)

Every division rounds up: a 1x1 picture is a valid input. Read on in mrffi.py, then ss2d.py and wavelet.py.
"""

from __future__ import annotations

import copy

from mmref.arguments import check_array, check_flag, check_kind
from mmref.models.mrffi import MRFFI, nearest_multiple
from mmref.models.network import Network, check_features
from mmref.models.variants import Variant
from mmref.nn import functional as F
from mmref.nn.layer import (
    BatchNorm,
    Conv2d,
    ConvBN,
    Layer,
    Linear,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    computes_as,
)


class FFN(Layer):
    """Pointwise C -> 2C, ReLU, pointwise 2C -> C, each with BN; upstream `FFN`."""

    def __init__(self, dim):
        super().__init__()
        self.pw1 = ConvBN(dim, 2 * dim)
        self.pw2 = ConvBN(2 * dim, dim)

    def forward(self, x):
        return self.pw2(F.relu(self.pw1(x)))


def residual_depthwise(dim):
    """x + BN(depthwise 3x3 of x)."""
    return Residual(ConvBN(dim, dim, 3, groups=dim))


class Mixer(Layer):
    """Holds the token mixer under the name the checkpoints use, `attn`; upstream `MobileMambaBlockWindow`."""

    def __init__(self, attn):
        super().__init__()
        self.attn = attn

    def forward(self, x):
        return self.attn(x)


class Block(Layer):
    """The repeated unit: local, channel, token, local, channel mixing; then the block's input once more.

    (B, C, H, W) -> (B, C, H, W). Paper figure 3, upstream `MobileMambaBlock`."""

    def __init__(self, dim, **mrffi):
        super().__init__()
        self.dw0 = residual_depthwise(dim)
        self.ffn0 = Residual(FFN(dim))
        self.mixer = Residual(Mixer(MRFFI(dim, **mrffi)))
        self.dw1 = residual_depthwise(dim)
        self.ffn1 = Residual(FFN(dim))

    def forward(self, x):
        return x + self.ffn1(self.dw1(self.mixer(self.ffn0(self.dw0(x)))))


class SqueezeExcite(Layer):
    """Scale every channel by a gate in (0, 1) computed from all channels' means (Hu et al. 2018, equations 2 to 4)."""

    def __init__(self, dim, reduced):
        super().__init__()
        self.fc1 = Conv2d(dim, reduced, bias=True)
        self.fc2 = Conv2d(reduced, dim, bias=True)
        self.gate = Sigmoid()

    def forward(self, x):
        means = F.global_average_pool(x, keep_axes=True)                    # (B, C, 1, 1)
        return x * self.gate(self.fc2(F.relu(self.fc1(means))))


class PatchMerging(Layer):
    """Downsampling by 2: expand to 4 C_in, depthwise stride 2, squeeze-and-excitation, reduce to C_out.

    (B, C_in, H, W) -> (B, C_out, ceil(H/2), ceil(W/2)). Upstream `PatchMerging`."""

    def __init__(self, c_in, c_out):
        super().__init__()
        hidden = 4 * c_in
        self.conv1 = ConvBN(c_in, hidden)
        self.conv2 = ConvBN(hidden, hidden, 3, 2, groups=hidden)
        self.se = SqueezeExcite(hidden, nearest_multiple(c_in, 8))
        self.conv3 = ConvBN(hidden, c_out)

    def forward(self, x):
        return self.conv3(self.se(F.relu(self.conv2(F.relu(self.conv1(x))))))


class Stem(Sequential):
    """`patch_embed`: four 3x3 convolutions of stride 2 to C/8, C/4, C/2, C, ReLU between them."""

    def __init__(self, in_chans, dim):
        widths = (in_chans, dim // 8, dim // 4, dim // 2, dim)
        convolutions = [ConvBN(c_in, c_out, 3, 2) for c_in, c_out in zip(widths, widths[1:], strict=False)]
        super().__init__(*[layer for conv in convolutions for layer in (conv, ReLU())][:-1])


class Head(Layer):
    """BN over the pooled features, then the classifier: (B, C) -> (B, num_classes); upstream `BN_Linear`."""

    def __init__(self, dim, num_classes):
        super().__init__()
        self.bn = BatchNorm(dim)
        self.l = Linear(dim, num_classes)

    def forward(self, x):
        return self.l(self.bn(x))

    def fold_batchnorm(self):
        if not (computes_as(self, Head) and computes_as(self.bn, BatchNorm) and computes_as(self.l, Linear)
                and (self.l.bias is None) == (self.l.weight is None)):  # neither is there before loading
            return super().fold_batchnorm()
        folded = copy.copy(self.l)
        if self.l.weight is not None:
            check_array(f"{self.l.name}.weight", self.l.weight, "classes channels")
            self.bn.check_parameters(self.l.weight.shape[1], self.l.weight.dtype)
            scale, shift = self.bn.scale_and_shift()
            folded.weight = (self.l.weight * scale).astype(self.l.weight.dtype)
            folded.bias = (self.l.bias + self.l.weight @ shift).astype(self.l.weight.dtype)
        return folded


def downsampling_trio(c_in, c_out):
    """What stages 2 and 3 begin with, at indices 0, 1, 2."""
    return (Sequential(residual_depthwise(c_in), Residual(FFN(c_in))), PatchMerging(c_in, c_out),
            Sequential(residual_depthwise(c_out), Residual(FFN(c_out))))


class MobileMamba(Network):
    """The network; build it with `mmref.create_model`. `model(x)` gives the logits.

    `config` is its Variant, `transform` how a picture becomes its input, `class_names` its labels (may be None).

    Examples
    --------
    >>> import mmref, numpy as np
    >>> model = mmref.create_model("mobilemamba_t2", num_classes=0)      # untrained, without a head
    >>> last, maps = model.forward_intermediates(np.zeros((1, 3, 64, 64), np.float32))
    >>> [m.shape[1:] for m in maps]                                      # strides 16, 16, 32, 64
    [(144, 4, 4), (144, 4, 4), (272, 2, 2), (368, 1, 1)]
    """

    strides = (16, 16, 32, 64)

    def __init__(self, config: Variant):
        super().__init__(check_kind("config", config, Variant, "a Variant (mmref.create_model builds by name)"))
        widths = config.widths
        self.patch_embed = Stem(config.in_chans, widths[0])
        for i, (dim, depth) in enumerate(zip(widths, config.depths, strict=True)):
            blocks = (Block(dim, global_ratio=config.global_ratio[i], local_ratio=config.local_ratio[i],
                            kernel=config.kernels[i], d_state=config.d_state, ssm_ratio=config.ssm_ratio,
                            order=config.scan_order, wavelet=config.wavelet, levels=config.wavelet_levels)
                      for _ in range(depth))
            trio = downsampling_trio(widths[i - 1], dim) if i else ()
            setattr(self, f"blocks{i + 1}", Sequential(*trio, *blocks))
        self.head = Head(widths[-1], config.num_classes) if config.num_classes else Sequential()
        self.name_layers()

    # ------------------------------------------------------------------ forward

    def forward(self, x):
        """Logits (B, num_classes) of pictures x (B, 3, H, W), any H and W from 1, any B from 0.

        x must have the model's dtype (float32 unless asked otherwise) and be finite; it is not modified.
        A sample's logits do not depend on the rest of its batch (float32: to 1e-6 of the largest, where the matrix
        product adds up in another order). Raises ShapeError and ValueProblem.
        """
        return self.forward_head(self.forward_features(x))

    def forward_head(self, x, pre_logits: bool = False):
        """Logits of a last feature map; with `pre_logits` its pooled features (B, C3). Raises ShapeError."""
        check_features(x, self.config.widths[-1], self.dtype)
        pre_logits = check_flag("pre_logits", pre_logits)
        pooled = F.global_average_pool(x)
        return pooled if pre_logits else self.head(pooled)

    def stages(self):
        """Stem, checking its input first, and the three stages."""
        def stem(x):
            self.check_input(x)
            return self.patch_embed(x)
        return stem, self.blocks1, self.blocks2, self.blocks3
