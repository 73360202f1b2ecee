"""Operations and layers of networks that scan rows of tokens: LocalVim and EfficientVMamba (mmref/models/).

Letters: B batch, C channels, D inner channels, H x W pixels (a token is one), K directions, L steps of a sequence.
"""

from __future__ import annotations

import numpy as np

from mmref.nn import functional as F
from mmref.nn import shapes
from mmref.nn.layer import Layer, LayerNorm
from mmref.nn.operation import operation


@operation(shapes.elementwise)
def gelu(x):
    """x times the normal distribution's share below x, elementwise: x (1 + erf(x / sqrt(2))) / 2, the exact form.

    Written with the complementary error function of the side where the share is small, so that nothing cancels."""
    from scipy.special import erfc
    return x * erfc(x * x.dtype.type(-0.5 ** 0.5)) * x.dtype.type(0.5)


@operation(shapes.rms_norm_channels)
def rms_norm_channels(x, weight, eps: float = 1e-5):
    """x over the root of its mean square over the channels of every pixel, times weight (no mean is taken off).

    x (B, C, H, W), C >= 1; weight (C,). Returns the shape and dtype of x. Raises ShapeError where shapes or dtypes
    disagree, ValueProblem for an eps that is not a number >= 0."""
    pixels = F.channels_last(x)                                             # (B, H, W, C)
    y = pixels / np.sqrt(np.mean(pixels * pixels, -1, keepdims=True) + float(eps))
    y *= weight
    return F.channels_first(y)


@operation(shapes.causal_conv)
def causal_conv(sequences, weight, bias):
    """Every channel of every direction correlated with its own filter along the steps; step l sees l - k + 1 .. l.

    sequences (B, K, D, L); weight (K, D, k), its last tap on the step itself; bias (K, D). Zeros stand before the
    first step. Returns the shape and dtype of the sequences. Raises ShapeError where shapes or dtypes disagree."""
    steps = sequences.swapaxes(2, 3)                                        # (B, K, L, D), as they are stored
    y = np.empty(steps.shape, steps.dtype)
    y[...] = bias[:, None]
    k, length = weight.shape[2], steps.shape[2]
    for tap in range(k):
        back = k - 1 - tap
        if back < length:
            y[:, :, back:] += weight[:, None, :, tap] * steps[:, :, :length - back]
    return y.swapaxes(2, 3)


@operation(shapes.rotary)
def rotary(x, cos, sin):
    """Rotary position embedding: each pair of channels (2i, 2i + 1) of a token turned by the token's own angle.

    x (B, C, H, W), C even; cos, sin (1, C, H, W). y[2i] = x[2i] cos[2i] - x[2i+1] sin[2i] and
    y[2i+1] = x[2i+1] cos[2i+1] + x[2i] sin[2i+1]. Returns the shape and dtype of x. Raises ShapeError where shapes or
    dtypes disagree or C is odd."""
    pixels = F.channels_last(x)
    turned = np.empty_like(pixels)
    np.negative(pixels[..., 1::2], out=turned[..., ::2])
    turned[..., 1::2] = pixels[..., ::2]
    return F.channels_first(pixels * F.channels_last(cos) + turned * F.channels_last(sin))


@operation(shapes.pad_to_multiple)
def pad_to_multiple(x, side: int):
    """(B, C, H, W) with zeros at the bottom and right until both sides are multiples of `side`. Raises ShapeError, and
    ValueProblem for a side that is not an integer >= 1."""
    height, width = x.shape[2:]
    return F.channels_first(F.pad_pixels(F.channels_last(x), 0, -height % side, 0, -width % side))


# ------------------------------------------------------------------------------------------------------- layers

class RMSNorm(Layer):
    """Root-mean-square norm over the channels of every pixel; eps 1e-5."""

    def __init__(self, dim):
        super().__init__()
        self.declare(weight=(dim,))

    def forward(self, x):
        return rms_norm_channels(x, self.weight)

    def initial(self, parameter, rng):
        return np.ones(self.shapes[parameter])


class TokenLinear(Layer):
    """A linear layer on the channels of every pixel, (B, C, H, W) -> (B, C', H, W); `weight` (C', C), `bias` (C',)."""

    def __init__(self, c_in, c_out, bias=False):
        super().__init__()
        self.declare(weight=(c_out, c_in))
        self.bias = None
        if bias:
            self.declare(bias=(c_out,))

    def forward(self, x):
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)

    def macs(self, y):
        return int(np.prod(self.shapes["weight"])) * y.shape[2] * y.shape[3]


class MeanPool(Layer):
    """The mean over the pixels, (B, C, H, W) -> (B, C)."""

    def forward(self, x):
        return F.global_average_pool(x)


class ChannelGate(Layer):
    """A map times one value in (0, 1) for each channel, computed from the means of all channels after a layer norm.

    (B, C, H, W) -> (B, C, H, W); C -> C / reduction -> C with GELU between. LocalMamba's `BiAttn`."""

    def __init__(self, dim, reduction=8):
        super().__init__()
        self.norm = LayerNorm(dim)
        self.global_reduce = TokenLinear(dim, dim // reduction, bias=True)
        self.channel_select = TokenLinear(dim // reduction, dim, bias=True)

    def forward(self, x):
        means = F.global_average_pool(self.norm(x), keep_axes=True)         # (B, C, 1, 1)
        return x * F.sigmoid(self.channel_select(gelu(self.global_reduce(means))))
