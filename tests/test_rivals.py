"""LocalVim and EfficientVMamba against figures of the published models."""

from __future__ import annotations

import json
from functools import cache
from importlib import import_module

import golden_files
import numpy as np
import pytest
from assertions import relative_error

import mmref
from mmref.models.parameters import expected_shapes, load_parameters
from mmref.models.registry import resolve
from mmref.nn.layer import recording

LIMITS = {np.float64: 1e-10, np.float32: 5e-6}  # of the largest magnitude; upstream's own float32 run: up to 2e-6
FILES = ("localvim_t_1x192x192", "localvim_t_1x224x224", "localvim_t_2x200x200", "localvim_t_2x224x224",
         "efficientvmamba_t_1x224x224", "efficientvmamba_t_2x100x132")
LEARNED = {"localvim_t": 7_994_152, "localvim_s": 27_783_784, "efficientvmamba_t": 6_493_660}


@cache
def load(folder, name):
    """(figures, model's name, float32 state dict, float32 input) of a golden file."""
    figures, model = np.load(folder / f"{name}.npz"), name[:name.rindex("_")]
    golden_files.synthetic(folder)
    import sys
    sys.path.insert(0, str(folder))
    try:
        make = import_module("params_localvim").localvim_state_dict if model == "localvim_t" \
            else import_module("params_rivals").rival_state_dict
        draw = import_module("params").synthetic_input
    finally:
        sys.path.remove(str(folder))
    shapes = json.loads((folder / f"state_dict_{model}.json").read_text())
    seed = int(figures["seed"])
    return figures, model, make(shapes, seed), draw(seed, tuple(figures["input_shape"]))


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", FILES)
def test_logits_and_every_tap(shared_golden, name, dtype):
    """Catches anything in these networks that differs from the published ones, and names the layer. Upstream has
    tokens as (B, L, C) or (B, H, W, C), here they are maps."""
    figures, model, state, x = load(shared_golden, name)
    taps = {}
    with recording(lambda tap, y, layer: taps.__setitem__(tap, y)):
        logits = load_parameters(resolve(model)[0], state, dtype)(x.astype(dtype))
    assert logits.dtype == dtype and {tap.dtype for tap in taps.values()} == {np.dtype(dtype)}
    errors = {}
    for tap in map(str, figures["taps"]):
        y, shape = taps[tap], tuple(figures[f"tap/{tap}/shape"])
        y = y if y.shape == shape else y.transpose(0, 2, 3, 1).reshape(shape)
        errors[tap] = golden_files.tap_error(figures, tap, y)
    assert not {tap: error for tap, error in errors.items() if error > LIMITS[dtype]}
    assert relative_error(logits, figures["logits"]) <= LIMITS[dtype]


@pytest.mark.parametrize("name", ["localvim_t", "efficientvmamba_t"])
def test_parameter_names_and_shapes(shared_golden, name):
    """Catches a parameter under another name or shape than the published checkpoints have."""
    published = json.loads((shared_golden / f"state_dict_{name}.json").read_text())
    published = {k: tuple(v) for k, v in published.items() if not k.endswith("num_batches_tracked")}
    assert expected_shapes(resolve(name)[0]) == published


@pytest.mark.parametrize("name", LEARNED)
def test_learned_parameter_counts(name):
    """Catches tables of positions counted as learned, and any layer of another width."""
    assert resolve(name)[0].build().parameter_count() == LEARNED[name]


def test_published_files(tmp_path):
    """Catches a .ckpt that is not read as the PyTorch file it is, and names that are not strict: the variant with a
    class token has other parameters, and must not run as this one."""
    torch = pytest.importorskip("torch")
    state = resolve("localvim_t")[0].build().initialise(seed=3).state_dict()
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    torch.save({"state_dict": tensors, "epoch": 299}, tmp_path / "localvim_t.ckpt")
    read = mmref.create_model("localvim_t", tmp_path / "localvim_t.ckpt").state_dict()
    assert read.keys() == state.keys() and all(np.array_equal(read[name], state[name]) for name in state)
    tensors["cls_token"] = torch.zeros(1, 1, 192)
    torch.save({"state_dict": tensors}, tmp_path / "localvim_t.ckpt")
    with pytest.raises(mmref.MmrefError, match=r"unexpected cls_token \(1, 1, 192\)"):
        mmref.create_model("localvim_t", tmp_path / "localvim_t.ckpt")
