"""Two-dimensional discrete wavelet transform, as a strided depthwise correlation and its adjoint.

Four sub-bands per channel, in this order: low-low, high along H, high along W, high-high; channel 4*c + s of the
result is sub-band s of channel c. MobileMamba uses one level of `db1` (Haar); any wavelet PyWavelets knows and any
number of levels work. Upstream: `create_wavelet_filter`, `wavelet_transform`, `inverse_wavelet_transform`.
"""

from __future__ import annotations

import numpy as np

from mmref.arguments import check_kind
from mmref.errors import ValueProblem
from mmref.nn import shapes
from mmref.nn.functional import channels_first, channels_last, depthwise_conv_transpose2d, pad_pixels
from mmref.nn.operation import operation

HAAR = np.array([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]], np.float32) / 2  # db1


def filter_bank(wavelet: str = "db1") -> tuple[np.ndarray, np.ndarray]:
    """Analysis and synthesis filters of a discrete wavelet, each (4, k, k) float32.

    For Haar all sixteen entries are +-1/2 and the two banks are equal. Raises ValueProblem for a name that
    PyWavelets does not know or that is not a discrete wavelet.
    """
    check_kind("wavelet", wavelet, str, "the name of a discrete wavelet")
    import pywt  # costs as much to import as the rest of mmref, and only fresh models need it
    try:
        filters = pywt.Wavelet(wavelet)
    except (ValueError, TypeError) as error:  # the latter for an empty name
        raise ValueProblem(f"wavelet must be a discrete wavelet PyWavelets knows, got {wavelet!r}") from error

    def outer_products(low, high):
        pairs = ((low, low), (high, low), (low, high), (high, high))         # (along H, along W)
        return np.stack([np.outer(h, w) for h, w in pairs]).astype(np.float32)

    # Correlation slides the filter unreversed, convolution reversed: hence the decomposition filters turned round.
    return (outer_products(filters.dec_lo[::-1], filters.dec_hi[::-1]),
            outer_products(filters.rec_lo, filters.rec_hi))


@operation(shapes.analysis)
def analysis(x: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """One level of decomposition.

    x (B, C, H, W), any H and W from 1: odd sizes get one row or column of zeros at the bottom or right.
    bank (4*C, 1, k, k), k even, as a checkpoint's `wt_filter` holds it.
    Returns (B, 4*C, ceil(H/2), ceil(W/2)) of x's dtype. Raises ShapeError where shapes or dtypes disagree.
    """
    k = bank.shape[-1]
    height, width = x.shape[2:]
    margin = k // 2 - 1
    pixels = pad_pixels(channels_last(x), margin, margin + height % 2, margin, margin + width % 2)
    rows, columns = -(-height // 2), -(-width // 2)
    bands = np.zeros((4, len(x), rows, columns, x.shape[1]), x.dtype)
    for s in range(4):
        for i in range(k):
            for j in range(k):
                corner = pixels[:, i:i + 2 * rows - 1:2, j:j + 2 * columns - 1:2]
                bands[s] += corner * bank[s::4, 0, i, j]
    interleaved = np.moveaxis(bands, 0, -1)                                  # (B, H/2, W/2, C, 4)
    return channels_first(interleaved.reshape(len(x), rows, columns, 4 * x.shape[1]))


@operation(shapes.synthesis)
def synthesis(bands: np.ndarray, bank: np.ndarray, height: int, width: int) -> np.ndarray:
    """The inverse of `analysis`: (B, 4*C, ceil(H/2), ceil(W/2)) -> (B, C, H, W), cropped to `height` x `width`.

    Exact for Haar; a longer wavelet, zero-padded as here, loses up to k - 2 pixels along the border. Raises ShapeError
    where shapes or dtypes disagree, ValueProblem for a height or width that is not an integer >= 1.
    """
    margin = bank.shape[-1] // 2 - 1
    full = depthwise_conv_transpose2d(bands, bank, groups=bands.shape[1] // 4, stride=2, padding=margin)
    return full[:, :, :height, :width]


@operation(shapes.low_low)
def low_low(bands: np.ndarray) -> np.ndarray:
    """The low-low sub-band of every channel, (B, 4*C, H, W) -> (B, C, H, W): what the next level analyses. A view."""
    return bands[:, ::4]


@operation(shapes.add_to_low_low)
def add_to_low_low(bands: np.ndarray, low: np.ndarray) -> np.ndarray:
    """`bands` (B, 4*C, H, W) with `low` (B, C, H, W) added to every channel's low-low sub-band."""
    total = channels_last(bands).copy()
    total[..., ::4] += channels_last(low)
    return channels_first(total)
