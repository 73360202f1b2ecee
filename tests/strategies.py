"""What hypothesis draws: sizes that break things, seeds, dtypes. NumPy draws the values from the seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

import mmref
from mmref.bench.measure import settle_batch_norms
from mmref.models.variants import VARIANTS
from mmref.nn.layer import Scale

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([np.float32, np.float64])
batches = st.sampled_from([0, 1, 2, 3])
# 1, odd, prime, powers of two and one more (a tile of 16 lanes and its neighbour among them)
sides = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17])
channels = st.sampled_from([1, 2, 3, 5, 8, 13, 16, 17])
orders = st.sampled_from(["unidirectional", "bidirectional", "cross"])


def lively(name="mobilemamba_nano", **options):
    """An untrained network (NumPy, float32) that is fit for comparisons: see `enliven`."""
    return enliven(mmref.create_model(name, seed=3, **options))


def enliven(model):
    """Give an untrained network values of order one everywhere, as training leaves them, in place; returns it.

    Biases and scales count: zeros and ones could be forgotten. Without settled norms activations grow from block to
    block, the logits are what is left of numbers that cancel, and a test would see rounding only."""
    rng = np.random.default_rng(4)
    for _, layer, parameter in model.named_parameters():
        if parameter == "bias":
            setattr(layer, parameter, rng.normal(0, 0.2, layer.shapes[parameter]).astype(np.float32))
        if isinstance(layer, Scale):
            value = getattr(layer, parameter) * rng.uniform(0.5, 2, layer.shapes[parameter])
            setattr(layer, parameter, value.astype(np.float32))
    settle_batch_norms(model)
    return model


def normal(seed: int, *shape: int, dtype=np.float32, scale: float = 1.0) -> np.ndarray:
    """Standard normal values of a seed and shape."""
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(dtype)


@st.composite
def variants(draw):
    """A small network of any widths (not only multiples of 16), depths, orders, states, wavelets and levels."""
    def three(values):
        return tuple(draw(st.lists(st.sampled_from(values), min_size=3, max_size=3)))
    return replace(VARIANTS["mobilemamba_nano"], widths=three((20, 24, 33, 47, 64)), depths=three((0, 1, 1, 2)),
                   kernels=three((1, 3, 5, 7)), global_ratio=three((0.3, 0.5, 0.8)), local_ratio=three((0.1, 0.2, 0.5)),
                   ssm_ratio=draw(st.integers(1, 3)), d_state=draw(st.sampled_from((1, 1, 2, 5, 16))),
                   scan_order=draw(st.sampled_from(("unidirectional", "bidirectional", "cross", "atrous",
                                                    ("rows", "windows 3", "columns backwards")))),
                   wavelet=draw(st.sampled_from(("db1", "db2", "sym3", "bior2.2"))),
                   wavelet_levels=draw(st.integers(1, 3)), num_classes=draw(st.sampled_from((0, 1, 5, 17))),
                   in_chans=draw(st.integers(1, 4)))
