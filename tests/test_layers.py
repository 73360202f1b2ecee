"""SS2D, the wavelet branch, MRFFI and the blocks, each alone against the PyTorch reference with the same parameters."""

from __future__ import annotations

import numpy as np
import pytest
from assertions import assert_close, of_layer, rounding
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from strategies import batches, dtypes, normal, orders, seeds, sides

from mmref.errors import ValueProblem
from mmref.models.mobilemamba import FFN, Block, PatchMerging, SqueezeExcite, Stem
from mmref.models.mrffi import MRFFI, WaveletMamba, nearest_multiple, split_channels
from mmref.nn.ss2d import SS2D

pytest.importorskip("torch")

import torch

from mmref.bench import torch_network


def twin(layer, module, seed, dtype):
    """Give both the same random, everywhere alive parameters of `dtype`, to PyTorch in double precision."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, owner, attribute in layer.named_parameters():
        value = owner.initial(attribute, rng)
        if owner.learned(attribute) or attribute.startswith("running"):
            value = value + 0.2 * rng.standard_normal(value.shape)
        value = np.abs(value) + 0.1 if attribute == "running_var" else value
        state[name] = value.astype(dtype)
        setattr(owner, attribute, state[name])
    torch_state = {k: torch.from_numpy(v) for k, v in state.items()}
    missing = module.double().load_state_dict(torch_state, strict=False)
    assert not missing.unexpected_keys and all(k.endswith("num_batches_tracked") for k in missing.missing_keys)
    return layer, module.eval()


def compare(layer, module, seed, dtype, batch, dim, height, width):
    """Unfolded and folded, on the same input, to what rounding can do: layer norm over two channels magnifies it."""
    layer, module = twin(layer, module, seed, dtype)
    x = normal(seed, batch, dim, height, width, dtype=dtype)
    x.flags.writeable = False
    with torch.no_grad():
        expected = module(torch.from_numpy(x.astype(np.float64))).numpy()
    _, tolerance = rounding(of_layer(layer, x), dtype)
    assert_close(layer(x), expected, tolerance, dtype=dtype)
    assert_close(layer.fold_batchnorm()(x), expected, tolerance, dtype=dtype)


@given(seeds, dtypes, batches, st.sampled_from([1, 8, 17]), sides, sides, orders, st.integers(1, 3))
@example(454, np.float32, 1, 1, 7, 8, "bidirectional", 2)  # two channels that nearly agree, before a layer norm
@settings(max_examples=40)
def test_ss2d(seed, dtype, batch, dim, height, width, order, d_state):
    """Catches x and z exchanged, SiLU at the wrong place, directions' parameters exchanged, softplus forgotten."""
    compare(SS2D(dim, d_state, order=order), torch_network.SS2D(dim, d_state, order=order), seed, dtype, batch, dim,
            height, width)


@given(seeds, dtypes, batches, st.sampled_from([1, 16]), sides, sides, st.sampled_from([3, 5, 7]))
@settings(max_examples=30)
def test_wavelet_mamba(seed, dtype, batch, dim, height, width, kernel):
    """Catches base_scale on the wrong branch and a wavelet scale of another sub-band."""
    compare(WaveletMamba(dim, kernel), torch_network.WaveletMamba(dim, kernel), seed, dtype, batch, dim, height,
            width)


@given(seeds, dtypes, batches, st.sampled_from([20, 32, 45]), sides, sides, st.sampled_from([3, 5]),
       st.sampled_from([(0.8, 0.2), (0.6, 0.3), (0.7, 0.2), (0.8, 0.5)]))
@settings(max_examples=30)
def test_mrffi(seed, dtype, batch, dim, height, width, kernel, ratios):
    """Catches channels split in another order, ReLU before the join, a missing identity."""
    assume(split_channels(dim, *ratios)[1])  # PyTorch has no convolution of no channels
    compare(MRFFI(dim, *ratios, kernel), torch_network.MRFFI(dim, *ratios, kernel), seed, dtype, batch, dim, height,
            width)


@given(seeds, dtypes, batches, sides, sides)
@settings(max_examples=12)
def test_block_and_its_parts(seed, dtype, batch, height, width):
    """Catches a missing shortcut (the block's outer one among them) and ReLU where there is none."""
    size = (seed, dtype, batch, 24, height, width)
    options = {"global_ratio": 0.7, "local_ratio": 0.2, "kernel": 5}
    compare(Block(24, **options), torch_network.Block(24, **options), *size)
    compare(FFN(24), torch_network.FFN(24), *size)
    compare(SqueezeExcite(24, 8), torch_network.SqueezeExcite(24, 8), *size)
    compare(PatchMerging(24, 40), torch_network.PatchMerging(24, 40), *size)


@given(seeds, dtypes, batches, st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=20)
def test_stem(seed, dtype, batch, height, width):
    """Catches a ReLU after the last convolution, and padding at the wrong side of odd sizes."""
    module = torch_network.stem(16)
    compare(Stem(3, 16), module, seed, dtype, batch, 3, height, width)


def test_rounding_to_a_multiple():
    """Catches the tie of the multiple of 16 going down (Python's round would), and zero for small numbers."""
    assert [nearest_multiple(n, 16) for n in (1, 8, 23, 24, 25, 40, 56)] == [16, 16, 16, 32, 32, 48, 64]
    assert split_channels(50, 0.8, 0.2) == (48, 2, 0)  # int(40.0) = 40 is a tie; local is what is left
    assert split_channels(100, 0.24, 0.3) == (32, 30, 38)
    with pytest.raises(ValueProblem, match="global_ratio"):
        split_channels(45, 0.9, 0.1)  # 40 rounds up to 48, more than there are


@pytest.mark.parametrize("dim, ratios, expected", [
    (144, (0.8, 0.2), (112, 28, 4)), (272, (0.7, 0.2), (192, 54, 26)), (368, (0.6, 0.3), (224, 110, 34)),
    (176, (0.8, 0.2), (144, 32, 0)), (368, (0.7, 0.2), (256, 73, 39)), (448, (0.6, 0.3), (272, 134, 42)),
    (192, (0.8, 0.2), (160, 32, 0)), (384, (0.7, 0.2), (272, 76, 36)), (200, (0.8, 0.2), (160, 40, 0)),
    (376, (0.7, 0.2), (256, 75, 45))])
def test_published_channel_splits(dim, ratios, expected):
    """Catches any other rounding of the published variants' ratios."""
    assert split_channels(dim, *ratios) == expected
