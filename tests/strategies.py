"""What hypothesis draws: sizes that break things, seeds, dtypes. NumPy draws the values from the seed."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from mmref.nn.layer import Scale

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([np.float32, np.float64])
batches = st.sampled_from([0, 1, 2, 3])
# 1, odd, prime, powers of two and one more (a tile of 16 lanes and its neighbour among them)
sides = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17])
channels = st.sampled_from([1, 2, 3, 5, 8, 13, 16, 17])
orders = st.sampled_from(["unidirectional", "bidirectional", "cross"])


def enliven(model):
    """Give an untrained network's biases, means and scales values that count: zeros and ones could be forgotten."""
    rng = np.random.default_rng(4)
    for _, layer, name in model.named_parameters():
        if name in ("running_mean", "bias"):
            setattr(layer, name, rng.normal(0, 0.2, layer.shapes[name]).astype(np.float32))
        if isinstance(layer, Scale):
            setattr(layer, name, getattr(layer, name) * rng.uniform(0.5, 2, layer.shapes[name]).astype(np.float32))
    return model


def normal(seed: int, *shape: int, dtype=np.float32, scale: float = 1.0) -> np.ndarray:
    """Standard normal values of a seed and shape."""
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(dtype)
