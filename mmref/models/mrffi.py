"""MRFFI, the multi-receptive field feature interaction module (paper section 3.2; upstream `MobileMambaModule`).

Channels are split in order into three groups with three receptive fields:

    global    wavelet-transform-enhanced Mamba: SS2D sees the whole map, the wavelet branch its frequency bands
    local     multi-kernel depthwise convolution, 7x7, 5x5 or 3x3 by stage
    identity  nothing ("eliminate redundant identity": what is left over goes through as it is)
"""

from __future__ import annotations

import numpy as np

from mmref.errors import ValueProblem
from mmref.nn import functional as F
from mmref.nn.layer import BatchNorm, Conv2d, ConvBN, Layer, ReLU, Scale, Sequential, computes_as, foldable
from mmref.nn.ss2d import SS2D
from mmref.nn.wavelet import add_to_low_low, analysis, filter_bank, low_low, synthesis


def nearest_multiple(value: int, step: int) -> int:
    """`value` rounded to the nearest positive multiple of `step`; a tie goes up."""
    return max(step, (value + step // 2) // step * step)


def split_channels(dim: int, global_ratio: float, local_ratio: float) -> tuple[int, int, int]:
    """How many of `dim` channels are global, local and identity (the last may be 0)."""
    glob = nearest_multiple(int(global_ratio * dim), 16)
    if glob > dim:
        raise ValueProblem(f"global_ratio {global_ratio} needs {glob} of {dim} channels, rounded to multiples of 16")
    local = min(int(local_ratio * dim), dim - glob)
    return glob, local, dim - glob - local


class WaveletMamba(Layer):
    """`global_op`: base_scale * SS2D(x) + wavelet(x), (B, C, H, W) -> (B, C, H, W); upstream `MBWTConv2d`.

    The wavelet branch analyses x into sub-bands, convolves each with a small kernel (which reaches twice as far on
    the half-sized map), scales them and synthesises the result. With several levels the low-low band of each
    is analysed again, and what comes back from below is added to it.
    """

    def __init__(self, dim, kernel, wavelet="db1", levels=1, **ssm):
        super().__init__()
        self.wavelet_name, self.levels = wavelet, levels
        k = len(filter_bank_of(wavelet)[0][0])
        self.declare(wt_filter=(4 * dim, 1, k, k), iwt_filter=(4 * dim, 1, k, k))
        self.global_atten = SS2D(dim, **ssm)
        self.base_scale = Scale(dim)
        self.wavelet_convs = Sequential(*(Conv2d(4 * dim, 4 * dim, kernel, groups=4 * dim) for _ in range(levels)))
        self.wavelet_scale = Sequential(*(Scale(4 * dim, 0.1) for _ in range(levels)))

    def forward(self, x):
        return self.base_scale(self.global_atten(x)) + self.wavelet(x, 0)

    def wavelet(self, x, level):
        """One level of the wavelet branch, and those below it."""
        convolve = self.wavelet_convs.children[str(level)]
        scale = self.wavelet_scale.children[str(level)]
        bands = analysis(x, self.wt_filter)                                 # (B, 4C, H/2, W/2)
        convolved = scale(convolve(bands))
        if level + 1 < self.levels:
            convolved = add_to_low_low(convolved, self.wavelet(low_low(bands), level + 1))
        return synthesis(convolved, self.iwt_filter, *x.shape[2:])

    def initial(self, parameter, rng):
        bank = filter_bank_of(self.wavelet_name)[parameter == "iwt_filter"]
        return np.tile(bank[:, None], (self.shapes[parameter][0] // 4, 1, 1, 1))

    def learned(self, parameter):
        return False


def filter_bank_of(wavelet):
    """`filter_bank`, with the released models' Haar bank known without importing PyWavelets."""
    if wavelet == "db1":
        haar = np.array([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]], np.float32) / 2
        return haar, haar
    return filter_bank(wavelet)


class LocalConv(Layer):
    """`local_op`: depthwise k x k, BN, ReLU, depthwise 1x1, BN; upstream `DWConv2d_BN_ReLU`.

    (B, C, H, W) -> (B, C, H, W). The parameter names say 3x3 whatever k is."""

    def __init__(self, dim, kernel):
        super().__init__()
        self.dwconv3x3 = Conv2d(dim, dim, kernel, groups=dim)
        self.bn1 = BatchNorm(dim)
        self.dwconv1x1 = Conv2d(dim, dim, groups=dim)
        self.bn2 = BatchNorm(dim)

    def forward(self, x):
        return self.bn2(self.dwconv1x1(F.relu(self.bn1(self.dwconv3x3(x)))))

    def fold_batchnorm(self):
        if not (computes_as(self, LocalConv) and foldable(self.dwconv3x3, self.bn1)
                and foldable(self.dwconv1x1, self.bn2)):
            return super().fold_batchnorm()
        return Sequential(self.dwconv3x3.folded_with(self.bn1), ReLU(), self.dwconv1x1.folded_with(self.bn2))


class MRFFI(Layer):
    """`mixer.m.attn`: split, three branches, join, project. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim, global_ratio, local_ratio, kernel, **global_options):
        super().__init__()
        self.split = split_channels(dim, global_ratio, local_ratio)
        glob, local, _ = self.split
        self.global_op = WaveletMamba(glob, kernel, **global_options)
        self.local_op = LocalConv(local, kernel)
        self.proj = Sequential(ReLU(), ConvBN(dim, dim))

    def forward(self, x):
        glob, local, identity = F.split(x, self.split)
        return self.proj(F.concatenate(self.global_op(glob), self.local_op(local), identity))
