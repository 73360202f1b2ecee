"""The wavelet transform against PyTorch's convolutions and PyWavelets."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
from assertions import assert_close, rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches, dtypes, normal, seeds, sides

from mmref.errors import ShapeError, ValueProblem
from mmref.models.mrffi import WaveletMamba, filter_bank_of
from mmref.nn.wavelet import analysis, filter_bank, synthesis

pytest.importorskip("torch")

import torch

WAVELETS = ["db1", "db2", "db4", "sym3", "bior2.2", "coif1"]


def bank(dim, wavelet, dtype, which=0):
    return np.tile(filter_bank(wavelet)[which][:, None], (dim, 1, 1, 1)).astype(dtype)


@given(seeds, dtypes, batches, st.sampled_from([1, 3, 17]), sides, sides, st.sampled_from(WAVELETS))
def test_analysis_and_synthesis_equal_pytorch(seed, dtype, batch, dim, height, width, wavelet):
    """Catches swapped sub-bands, flipped filters, zeros added at the top or left of an odd map."""
    x, k = normal(seed, batch, dim, height, width, dtype=dtype), filter_bank(wavelet)[0].shape[-1]
    w, inverse = (bank(dim, wavelet, dtype, which) for which in (0, 1))
    options = dict(stride=2, padding=k // 2 - 1, groups=dim)

    def theirs(move):
        padded = torch.nn.functional.pad(torch.from_numpy(move(x)), (0, width % 2, 0, height % 2))
        return torch.nn.functional.conv2d(padded, torch.from_numpy(move(w)), **options)

    def and_back(move):
        back = torch.nn.functional.conv_transpose2d(theirs(move), torch.from_numpy(move(inverse)), **options)
        return back[..., :height, :width].numpy()
    bands = analysis(x, w)
    assert_close(bands, *rounding(lambda move: theirs(move).numpy(), dtype), dtype=dtype)
    assert_close(synthesis(bands, inverse, height, width), *rounding(and_back, dtype), dtype=dtype)


def stacked(bands):
    """PyWavelets' (approximation, (horizontal, vertical, diagonal)) as (1, 4, H, W), in our order."""
    approximation, details = bands
    return np.stack([approximation, *details])[None]


def within_the_banks_rounding(actual, expected, magnitudes):
    """A bank is kept in float32: each of its values is off by up to half a unit in the last place, so a sum by up to
    that share of the sum of the magnitudes."""
    assert actual.shape == expected.shape and actual.dtype == np.float64
    assert (np.abs(actual - expected) <= (2.0 ** -24 + 1e-12) * magnitudes + 1e-30).all()


@pytest.mark.parametrize("wavelet", pywt.wavelist(kind="discrete"))
@pytest.mark.parametrize("height, width", [(6, 5), (3, 8)])
def test_analysis_equals_pywavelets(wavelet, height, width):
    """Catches a filter read backwards, the order of the sub-bands, an offset of long filters, for every wavelet.

    PyWavelets' dwt2 with mode "zero" (x is zero outside), coefficient m along an axis: the sum over j of
    dec[j] x[2m + 1 - j]. Ours, r, pads k/2 - 1 zeros in front: the sum of dec[j] x[2r + k/2 - j]. So ours are the ones
    from m = (k/2 - 1) / 2 on where that is whole; elsewhere ours are of the other phase, that of x with one more zero
    in front. They agree everywhere, the border included."""
    x, k = normal(7, 1, 1, height, width, dtype=np.float64), pywt.Wavelet(wavelet).dec_len
    late = 1 - k // 2 % 2
    first = (k // 2 - 1 + late) // 2
    theirs = stacked(pywt.dwt2(np.pad(x[0, 0], ((late, 0), (late, 0))), wavelet, mode="zero"))
    rows, columns = -(-height // 2), -(-width // 2)
    filters = bank(1, wavelet, np.float64)
    within_the_banks_rounding(analysis(x, filters), theirs[:, :, first:first + rows, first:first + columns],
                              analysis(abs(x), abs(filters)))


@pytest.mark.parametrize("wavelet", pywt.wavelist(kind="discrete"))
@pytest.mark.parametrize("height, width", [(6, 5), (3, 8)])
def test_synthesis_equals_pywavelets(wavelet, height, width):
    """Catches the analysis bank used for the synthesis, or an offset of long filters.

    PyWavelets' idwt2, pixel n along an axis: sum over m of rec[n + k - 2 - 2m] c[m]; ours: sum over r of
    rec[n + k/2 - 1 - 2r] c[r]. So with p zeros in front of the coefficients, and as many behind, ours begin at
    n = 2p - k/2 + 1."""
    k = pywt.Wavelet(wavelet).dec_len
    p = k // 4 + 1
    first = 2 * p - k // 2 + 1
    bands = normal(8, 1, 4, -(-height // 2), -(-width // 2), dtype=np.float64)
    padded = np.pad(bands[0], ((0, 0), (p, k), (p, k)))
    theirs = pywt.idwt2((padded[0], tuple(padded[1:])), wavelet, mode="zero")[None, None]
    filters = bank(1, wavelet, np.float64, 1)
    within_the_banks_rounding(synthesis(bands, filters, height, width),
                              theirs[:, :, first:first + height, first:first + width],
                              synthesis(abs(bands), abs(filters), height, width))


@given(seeds, st.sampled_from(pywt.wavelist(kind="discrete")), sides, sides)
@settings(max_examples=30)
def test_synthesis_is_the_adjoint_of_analysis(seed, wavelet, height, width):
    """Catches a border that one of them has and the other has not: <analysis(x), y> = <x, synthesis(y)>, one bank."""
    x, filters = normal(seed, 1, 1, height, width, dtype=np.float64), bank(1, wavelet, np.float64)
    bands = analysis(x, filters)
    y = normal(seed, *bands.shape, dtype=np.float64)
    magnitudes = np.vdot(analysis(abs(x), abs(filters)), abs(y))
    assert abs(np.vdot(bands, y) - np.vdot(x, synthesis(y, filters, height, width))) <= 1e-13 * magnitudes


@given(seeds, sides, sides)
def test_haar_reconstructs_any_size(seed, height, width):
    """Catches a crop at the wrong side of an odd map."""
    x = normal(seed, 2, 3, height, width, dtype=np.float64)
    haar = bank(3, "db1", np.float64)
    assert_close(synthesis(analysis(x, haar), haar, height, width), x)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_long_wavelets_reconstruct_the_inside(wavelet):
    """Catches a synthesis bank that does not belong to its analysis bank."""
    x, k = normal(5, 1, 2, 40, 38, dtype=np.float64), filter_bank(wavelet)[0].shape[-1]
    y = synthesis(analysis(x, bank(2, wavelet, np.float64)), bank(2, wavelet, np.float64, 1), 40, 38)
    inside = np.s_[:, :, k:40 - k, k:38 - k]
    assert_close(y[inside], x[inside], 1e-6)  # the bank is kept in float32, as a checkpoint keeps it


def test_the_haar_bank_is_exact_and_pywavelets_own():
    """Catches 0.49999997 where PyWavelets' rounding would give it, and a bank with other signs."""
    for ours, theirs in zip(filter_bank_of("db1"), filter_bank("db1"), strict=True):
        assert set(np.abs(ours).ravel()) == {0.5}
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


@given(seeds, st.sampled_from([1, 5, 12]), st.sampled_from([3, 8]), st.sampled_from(["db1", "db2"]), st.integers(1, 3))
def test_several_levels(seed, height, width, wavelet, levels):
    """Catches a level that is convolved with another's kernel, or a low-low band that is not passed on."""
    layer, rng = WaveletMamba(4, 3, wavelet=wavelet, levels=levels), np.random.default_rng(seed)
    for _, owner, name in layer.named_parameters():
        setattr(owner, name, owner.initial(name, rng).astype(np.float64))
    x = normal(seed, 2, 4, height, width, dtype=np.float64)

    def expected(x, level):
        height, width = x.shape[2:]
        f, g = (torch.from_numpy(a) for a in (layer.wt_filter, layer.iwt_filter))
        margin = f.shape[-1] // 2 - 1
        padded = torch.nn.functional.pad(x, (0, width % 2, 0, height % 2))
        bands = torch.nn.functional.conv2d(padded, f, stride=2, padding=margin, groups=4)
        kernel = torch.from_numpy(layer.wavelet_convs.children[str(level)].weight)
        scale = torch.from_numpy(layer.wavelet_scale.children[str(level)].weight)
        out = torch.nn.functional.conv2d(bands, kernel, padding=1, groups=16) * scale
        if level + 1 < levels:
            out = out.view(len(x), 4, 4, *out.shape[2:]).clone()
            out[:, :, 0] += expected(bands.view(out.shape)[:, :, 0], level + 1)
            out = out.flatten(1, 2)
        return torch.nn.functional.conv_transpose2d(out, g, stride=2, padding=margin, groups=4)[..., :height, :width]

    assert_close(layer.wavelet(x, 0), expected(torch.from_numpy(x), 0).numpy())


def test_errors():
    """Catches a bank of another number of channels, and names that are no discrete wavelet."""
    with pytest.raises(ShapeError, match=r"bank must be \(12, 1, k, k\)"):
        analysis(np.zeros((1, 3, 4, 4), np.float32), bank(2, "db1", np.float32))
    with pytest.raises(ShapeError, match="bands must be 2x2"):
        synthesis(np.zeros((1, 8, 3, 2), np.float32), bank(2, "db1", np.float32), 4, 4)
    with pytest.raises(ValueProblem, match="gauss"):
        filter_bank("gauss")
