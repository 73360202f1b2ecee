"""The whole network against figures of the published model."""

from __future__ import annotations

import json

import golden_files
import numpy as np
import pytest
from assertions import assert_close, relative_error

from mmref.models.parameters import expected_shapes, load_parameters
from mmref.models.registry import resolve
from mmref.models.variants import VARIANTS

EXACT = 1e-10  # of the largest magnitude: the published float64 figures, four decades above what rounding does


def limits(folder, name, dtype):
    """{tap: limit of its relative error}; "" is the logits."""
    tolerances = golden_files.tolerances(folder, name)
    return tolerances if dtype == np.float32 else dict.fromkeys(tolerances, EXACT)


@pytest.mark.parametrize("folded", [False, True], ids=["unfolded", "folded"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", golden_files.FILES)
def test_logits_and_every_tap(shared_golden, name, dtype, folded):
    """Catches anything in the network that differs from the published model, and names the layer."""
    figures, config, state, x = golden_files.load(shared_golden, name)
    logits, taps = golden_files.run(config, state, x, dtype, folded)
    allowed = limits(shared_golden, name, dtype)
    assert logits.dtype == dtype and {tap.dtype for tap in taps.values()} == {np.dtype(dtype)}
    wanted = [str(tap) for tap in figures["taps"]]
    if folded:  # what stands between a convolution and its batch norm does not exist any more
        wanted = [tap for tap in wanted if not tap.endswith(("dwconv3x3", "dwconv1x1"))]
    errors = {tap: golden_files.tap_error(figures, tap, taps[tap]) for tap in wanted}
    assert not {tap: error for tap, error in errors.items() if error > allowed[tap]}
    assert relative_error(logits, figures["logits"]) <= allowed[""]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["t2_1x7x5", "t2_3x64x64"])
def test_figures_in_the_repository(own_golden, name, dtype):
    """The same for who has this repository alone: logits and taps of T2 on a tiny and a small picture."""
    figures, config, state, x = golden_files.load(own_golden, name)
    logits, taps = golden_files.run(config, state, x, dtype, folded=False)
    allowed = limits(own_golden, name, dtype)
    assert all(golden_files.tap_error(figures, tap, taps[tap]) <= allowed[tap] for tap in map(str, figures["taps"]))
    assert relative_error(logits, figures["logits"]) <= allowed[""]


@pytest.mark.parametrize("variant", ["t2", "t4", "s6", "b1", "b2", "b4", "t2_fused"])
def test_parameter_names_and_shapes(shared_golden, variant):
    """Catches a parameter under another name or shape than the published checkpoints have."""
    published = json.loads((shared_golden / f"state_dict_{variant}.json").read_text())
    published = {k: tuple(v) for k, v in published.items() if not k.endswith("num_batches_tracked")}
    name, folded = variant.removesuffix("_fused"), variant.endswith("_fused")
    assert expected_shapes(resolve(f"mobilemamba_{name}")[0], folded) == published


def test_folded_values(shared_golden):
    """Catches batch norm folded with another eps, or shortcuts folded where upstream does not."""
    figures = np.load(shared_golden / "t2_fused_samples.npz")
    shapes = json.loads((shared_golden / "state_dict_t2.json").read_text())
    state = golden_files.synthetic(shared_golden).synthetic_state_dict(shapes, 0)
    folded = load_parameters(resolve("mobilemamba_t2")[0], state, np.float64).fold_batchnorm().state_dict()
    names = [key for key in figures.files if key in folded]
    assert len(names) == len(folded) == 234
    for name in names:
        flat, samples = folded[name].ravel(), figures[name]
        got = flat[np.linspace(0, flat.size - 1, min(8, flat.size)).astype(int)]
        np.testing.assert_allclose(got, samples, rtol=1e-6, atol=1e-6 * np.abs(samples).max(), err_msg=name)


@pytest.mark.parametrize("name", ["mobilemamba_nano", "mobilemamba_b1"])
def test_the_torch_network_is_the_same_network(name):
    """Catches a drift of the two statements apart, on untrained parameters and for the variant we designed."""
    torch = pytest.importorskip("torch")
    from mmref import create_model
    from mmref.bench import torch_network
    model = create_model(name, dtype=np.float64, num_classes=10)
    module = torch_network.create(name.removeprefix("mobilemamba_"), 10).double().eval()
    module.load_state_dict({k: torch.from_numpy(v) for k, v in model.state_dict().items()}, strict=False)
    x = np.random.default_rng(0).standard_normal((2, 3, 50, 33))
    with torch.no_grad():
        assert_close(model(x), module(torch.from_numpy(x)).numpy(), 1e-11)


LEARNED = {"t2": 8_806_682, "t4": 14_137_690, "s6": 14_996_696, "b1": 17_070_625, "b2": 17_070_625, "b4": 17_070_625}


@pytest.mark.parametrize("variant", LEARNED)
def test_learned_parameter_counts(variant):
    """Catches statistics or filter banks counted as learned, and any layer of another width."""
    from mmref.models.mobilemamba import MobileMamba
    assert MobileMamba(VARIANTS[f"mobilemamba_{variant}"]).parameter_count() == LEARNED[variant]
