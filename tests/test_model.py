"""`create_model` and the model's public face."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from assertions import assert_close, of_layer, relative_error, rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import lively, normal, seeds

import mmref
from mmref.errors import MissingBackend, ParameterMismatch, ShapeError, ValueProblem
from mmref.models.parameters import expected_shapes
from mmref.models.registry import resolve
from mmref.models.variants import VARIANTS
from mmref.nn.layer import recording


@pytest.fixture(scope="module")
def nano():
    """An untrained network whose every branch is alive."""
    return lively()


@given(seeds, st.integers(1, 5), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=25)
def test_samples_never_influence_one_another(nano, seed, batch, height, width):
    """Catches the published CPU path's fault: permute, split and repeat the batch, and nothing else changes.

    In float64 and in float32, but for the order in which the matrix product adds up."""
    picture = normal(seed, batch, 3, height, width)
    _, single = rounding(of_layer(nano, picture))
    for dtype in (np.float64, np.float32):
        model, x, tolerance = nano.astype(dtype), picture.astype(dtype), single * np.finfo(dtype).eps / 2.0 ** -23
        together, permutation = model(x), np.random.default_rng(seed).permutation(batch)
        assert_close(model(x[permutation]), together[permutation], tolerance)
        assert_close(np.concatenate([model(x[i:i + 1]) for i in range(batch)]), together, tolerance)
        assert_close(model(np.concatenate([x, x])), np.concatenate([together, together]), tolerance)
        assert_close(model(np.concatenate([x, 1000 * x]))[:batch], together, tolerance)


def test_empty_batch_and_single_pixel(nano):
    """Catches reshapes and means that cannot stand nothing, or a picture smaller than a kernel."""
    assert nano(np.zeros((0, 3, 17, 9), np.float32)).shape == (0, 10)
    assert np.isfinite(nano(np.ones((1, 3, 1, 1), np.float32))).all()


def test_repeats_to_the_last_bit_and_leaves_its_input_alone(nano):
    """Catches state kept between calls, and layers that write to their input."""
    x = normal(1, 2, 3, 33, 47)
    before = x.copy()
    x.flags.writeable = False
    first = nano(x)
    assert (nano(x) == first).all() and (x == before).all() and first.dtype == np.float32
    assert_close(nano(np.asfortranarray(x)), first, rounding(of_layer(nano, x))[1])


def test_features_and_intermediates(nano):
    """Catches a stage too many or too few, and a head that pools twice."""
    x = normal(2, 2, 3, 70, 40)
    last, maps = nano.forward_intermediates(x)
    assert [m.shape for m in maps] == [(2, 64, 5, 3), (2, 64, 5, 3), (2, 128, 3, 2), (2, 160, 2, 1)]
    assert nano.strides == (16, 16, 32, 64)
    assert (last == nano.forward_features(x)).all() and (nano.forward_head(last) == nano(x)).all()
    assert nano.forward_head(last, pre_logits=True).shape == (2, 160)
    only = nano.forward_intermediates(x, indices=[-1, 0], intermediates_only=True)
    assert (only[0] == maps[3]).all() and (only[1] == maps[0]).all()
    assert len(nano.forward_intermediates(x, indices=2)[1]) == 2
    with pytest.raises(ValueProblem, match="indices"):
        nano.forward_intermediates(x, indices=[4])


def test_folding_keeps_the_function_and_the_original(nano):
    """Catches folding in place, and a second folding that folds again."""
    x, names = normal(3, 2, 3, 40, 40), set(nano.state_dict())
    folded = nano.fold_batchnorm()
    assert folded.folded and not nano.folded and set(nano.state_dict()) == names
    assert_close(folded(x), *rounding(of_layer(nano, x)), dtype=np.float32)
    assert_close(folded.fold_batchnorm()(x), folded(x), 0)
    assert set(folded.state_dict()) == set(expected_shapes(nano.config, folded=True))


def test_every_layer_is_named(nano):
    """Catches layers that a trace would miss or call by another's name."""
    for model in (nano, nano.fold_batchnorm()):
        seen = []
        with recording(lambda name, y, layer, seen=seen: seen.append(name)):
            model(np.zeros((1, 3, 32, 32), np.float32))
        assert len(seen) == len(set(seen)) and "blocks2.3.mixer.m.attn.global_op.global_atten:delta" in seen
        assert seen[-1] == "" and all(name == layer.name for name, layer in model.walk())


def test_names_and_aliases():
    """Catches an alias that builds another network."""
    assert mmref.list_models()[:len(VARIANTS)] == list(VARIANTS)
    assert mmref.list_models("*_b?") == [f"mobilemamba_b{i}" for i in (1, 2, 4)]
    assert mmref.list_models("*_fpn") == [f"{name}_fpn" for name in VARIANTS]
    assert resolve("MobileMamba_T2") == (VARIANTS["mobilemamba_t2"], False)
    assert resolve("mobilemamba_t2s") == (VARIANTS["mobilemamba_t2"], True)
    assert resolve("MobileMamba_B4s")[1]
    with pytest.raises(ValueProblem, match="mobilemamba_t2, .*got 'mobilemamba_x9'"):
        mmref.create_model("mobilemamba_x9")


def test_weights_are_matched_strictly(nano):
    """Catches weights loaded by position, broadcast, or left at random where the file has none."""
    state = nano.state_dict()
    assert_close(mmref.create_model("mobilemamba_nano", state)(np.ones((1, 3, 9, 9), np.float32)),
                 nano(np.ones((1, 3, 9, 9), np.float32)), 0)
    missing = {k: v for k, v in state.items() if k != "blocks1.0.dw0.m.c.weight"}
    with pytest.raises(ParameterMismatch, match=r"missing blocks1.0.dw0.m.c.weight \(64, 1, 3, 3\)"):
        mmref.create_model("mobilemamba_nano", missing)
    with pytest.raises(ParameterMismatch, match="unexpected extra"):
        mmref.create_model("mobilemamba_nano", {**state, "extra": np.zeros(3, np.float32)})
    with pytest.raises(ParameterMismatch, match="They fit mobilemamba_nano with num_classes=10"):
        mmref.create_model("mobilemamba_t4", state)
    with pytest.raises(ParameterMismatch, match="num_classes must be 10"):
        mmref.create_model("mobilemamba_nano", state, num_classes=7)
    headless = mmref.create_model("mobilemamba_nano", state, num_classes=0)
    assert headless(np.ones((2, 3, 9, 9), np.float32)).shape == (2, 160)
    tracked = {**state, "patch_embed.0.bn.num_batches_tracked": np.array(5)}
    mmref.create_model("mobilemamba_nano", tracked)
    folded = mmref.create_model("mobilemamba_nano", nano.fold_batchnorm().state_dict())
    assert folded.folded
    with pytest.raises(ParameterMismatch, match="They fit mobilemamba_nano"):
        mmref.create_model("mobilemamba_t2", folded.state_dict())


def test_untrained_networks_with_other_options():
    """Catches options that are accepted and ignored."""
    cross = mmref.create_model("mobilemamba_nano", scan_order="cross", d_state=2, wavelet="db2", wavelet_levels=2)
    assert cross.state_dict()["blocks1.0.mixer.m.attn.global_op.global_atten.A_logs"].shape == (4 * 96, 2)
    assert cross(np.ones((1, 3, 50, 30), np.float32)).shape == (1, 10)
    assert relative_error(mmref.create_model(seed=1)(np.ones((1, 3, 9, 9), np.float32)),
                          mmref.create_model(seed=2)(np.ones((1, 3, 9, 9), np.float32))) > 1e-3
    with pytest.raises(ValueProblem, match="changes"):
        mmref.create_model("mobilemamba_nano", colour="red")


@pytest.mark.parametrize("x, error, message", [
    (np.zeros((3, 8, 8), np.float32), ShapeError, r"x must have shape \(batch, 3, .*got \(3, 8, 8\)"),
    (np.zeros((1, 4, 8, 8), np.float32), ShapeError, r"got \(1, 4, 8, 8\)"),
    (np.zeros((1, 3, 0, 8), np.float32), ShapeError, "height and width >= 1"),
    (np.zeros((1, 3, 8, 8)), ShapeError, "x must be float32, .*got float64"),
    (np.zeros((1, 3, 8, 8), np.uint8), ShapeError, "got uint8"),
    ([[1]], ShapeError, "got list"),
    (np.full((1, 3, 8, 8), np.nan, np.float32), ValueProblem, "finite"),
    (np.full((1, 3, 8, 8), np.inf, np.float32), ValueProblem, "finite"),
])
def test_the_door(nano, x, error, message):
    """Catches NaN, other dtypes and other layouts going in unseen."""
    with pytest.raises(error, match=message):
        nano(x)


def test_backends_are_never_replaced_in_silence():
    """Catches a fall-back: a backend that is not there must be an error that says what to install."""
    with pytest.raises(MissingBackend, match="numpy, numba, cuda, got 'tpu'"):
        mmref.create_model("mobilemamba_nano", backend="tpu")


def test_import_is_cheap():
    """Catches heavy imports at the top of the package."""
    code = ("import sys, mmref; heavy = {'numba', 'torch', 'matplotlib', 'scipy', 'pywt', 'PIL', 'dask', 'onnx'};"
            "print(sorted(heavy & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    code += "; mmref.create_model(); print(sorted({'numba', 'torch', 'matplotlib', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n[]\n"
