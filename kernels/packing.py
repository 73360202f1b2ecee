"""Parameters of channels, laid out as the kernels read them."""

from __future__ import annotations

import numpy as np

from mmref.kernels.target import LANES, round_up


def pack_channels(values: np.ndarray) -> np.ndarray:
    """(..., channels, n) -> (..., vectors, n, 16) float32: 16 channels side by side, zeros in the lanes beyond the
    last."""
    *outer, channels, n = values.shape
    padded = np.zeros((*outer, round_up(channels), n), np.float32)
    padded[..., :channels, :] = values
    vectors = padded.reshape(*outer, round_up(channels) // LANES, LANES, n)
    return np.ascontiguousarray(vectors.swapaxes(-1, -2))
