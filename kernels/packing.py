"""Parameters of channels, laid out as the kernels read them."""

from __future__ import annotations

import numpy as np

from mmref.kernels.target import LANES, round_up


def pack_channels(values: np.ndarray) -> np.ndarray:
    """(channels, n) -> (vectors, n, 16) float32: 16 channels side by side, zeros in the lanes beyond the last."""
    channels, n = values.shape
    padded = np.zeros((round_up(channels), n), np.float32)
    padded[:channels] = values
    return np.ascontiguousarray(padded.reshape(-1, LANES, n).transpose(0, 2, 1))
