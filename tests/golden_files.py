"""The published model's figures: which files there are, and how to compare a run with one."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path

import numpy as np
from assertions import moves, tolerance_of

from mmref.models.parameters import load_parameters
from mmref.models.registry import resolve
from mmref.nn.layer import recording

FILES = ("t2_2x192x192", "t2_3x64x64", "t2_1x7x5", "t2_1x161x203", "t4_2x192x192", "s6_2x224x224", "b1_2x256x256",
         "b1_2x225x96", "b2_1x384x384", "b4_1x512x512")


@cache
def synthetic(folder: Path):
    """`params.py` of the golden folder, which makes parameters and inputs from a seed."""
    spec = importlib.util.spec_from_file_location("golden_params", folder / "params.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(folder: Path, name: str):
    """(figures, variant's Variant, float32 state dict, float32 input) of a golden file."""
    figures = np.load(folder / f"{name}.npz")
    variant = name.split("_")[0]
    shapes = json.loads((folder / f"state_dict_{variant}.json").read_text())
    seed, params = int(figures["seed"]), synthetic(folder)
    config = resolve(f"mobilemamba_{variant}")[0]
    return (figures, config, params.synthetic_state_dict(shapes, seed),
            params.synthetic_input(seed, tuple(figures["input_shape"])))


def run(config, state, x, dtype, folded):
    """(logits, {layer name: output}) of the NumPy model."""
    model = load_parameters(config, state, dtype)
    model = model.fold_batchnorm() if folded else model
    taps = {}
    with recording(lambda name, y, layer: taps.__setitem__(name, y)):
        logits = model(x.astype(dtype))
    return logits, taps


@cache
def tolerances(folder: Path, name: str) -> dict[str, float]:
    """{tap: what float32's rounding can do to it, over its largest magnitude}; "" is the logits."""
    _, config, state, x = load(folder, name)
    _, truth = run(config, state, x, np.float64, folded=False)
    largest, changes = {tap: float(np.abs(value).max()) for tap, value in truth.items()}, dict.fromkeys(truth, 0.0)
    for move in moves(3):  # of so many values that one draw would do
        _, taps = run(config, {key: move(value) for key, value in state.items()}, move(x), np.float64, folded=False)
        for tap, value in taps.items():
            changes[tap] = max(changes[tap], float(np.abs(value - truth[tap]).max()))
    return {tap: tolerance_of(change, largest[tap]) for tap, change in changes.items()}


def tap_error(figures, name, output) -> float:
    """Largest error of a tap's samples, mean, deviation and maximum, over the tap's largest magnitude."""
    assert output.shape == tuple(figures[f"tap/{name}/shape"]), (name, output.shape)
    flat, samples = output.ravel().astype(np.float64), figures[f"tap/{name}/samples"]
    stats, largest = figures[f"tap/{name}/stats"], figures[f"tap/{name}/stats"][2]
    got = flat[np.linspace(0, flat.size - 1, len(samples)).astype(int)]
    mine = np.array([flat.mean(), flat.std(), np.abs(flat).max()])
    return max(np.abs(got - samples).max(), np.abs(mine - stats).max()) / largest
