"""The published network's figures, and the parameters and inputs that they were made with.

`golden_t2.npz` holds, for two inputs, the logits of the published PyTorch model (commit 0980f48, CPU, float64, samples
kept apart) and mean, deviation and largest magnitude of every module's output. It is an excerpt of the figures in
tests/golden, made by

    python -m mmref.validate.golden tests/golden

Parameters are drawn from a seed with NumPy's PCG64, each from a generator of its own name's CRC-32, so nothing large
has to be shipped.
"""

from __future__ import annotations

import sys
import zlib
from importlib.resources import files

import numpy as np

from mmref.models.mrffi import filter_bank_of

CASES = ("t2_1x7x5", "t2_3x64x64")


def figures() -> dict[str, dict]:
    """{case: {"seed", "shape", "logits", "stats": {module: (mean, deviation, largest)}}}."""
    with (files("mmref.validate") / "golden_t2.npz").open("rb") as file, np.load(file, allow_pickle=False) as data:
        return {case: {"seed": int(data[f"{case}/seed"]), "shape": tuple(map(int, data[f"{case}/shape"])),
                       "logits": data[f"{case}/logits"],
                       "stats": dict(zip(data[f"{case}/names"].tolist(), data[f"{case}/stats"], strict=True))}
                for case in CASES}


def _rng(seed, name):
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))


def synthetic_parameters(shapes, seed) -> dict[str, np.ndarray]:
    """float32 parameters for {name: shape}: every layer does something, nothing grows or dies."""
    return {name: _parameter(name, tuple(shape), seed) for name, shape in shapes.items()}


def _parameter(name, shape, seed):
    rng, path = _rng(seed, name), name.split(".")
    leaf, owner = path[-1], path[-2] if len(path) > 1 else ""

    def normal(scale, mean=0.0):
        return (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    def uniform(low, high):
        return rng.uniform(low, high, shape).astype(np.float32)
    if leaf in ("wt_filter", "iwt_filter"):
        return np.tile(filter_bank_of("db1")[0][:, None], (shape[0] // 4, 1, 1, 1))
    if leaf == "running_mean":
        return normal(0.2)
    if leaf == "running_var":
        return uniform(8.0, 24.0) if "conv1" in path[1:-1] else uniform(0.5, 1.5)
    if owner.startswith(("bn", "out_norm")):
        if leaf == "bias":
            return normal(0.2)
        return uniform(0.1, 0.4) if path[-3] in ("m", "pw2", "1") else uniform(0.5, 1.5)
    if leaf == "dt_projs_bias":
        step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), shape))
        return (step + np.log(-np.expm1(-step))).astype(np.float32)
    if leaf == "Ds" or "base_scale" in path:
        return normal(0.2, 1.0)
    if "wavelet_scale" in path:
        return normal(0.1, 0.5)
    scales = {"A_logs": 0.5, "dt_projs_weight": 0.5 * shape[-1] ** -0.5, "x_proj_weight": shape[-1] ** -0.5,
              "bias": 0.1}
    return normal(scales.get(leaf, int(np.prod(shape[1:])) ** -0.5))


def synthetic_input(seed, shape) -> np.ndarray:
    """float32 batch: blocks of 16 x 16 pixels of one colour, and noise."""
    rng, (batch, channels, height, width) = _rng(seed, f"input{shape}"), shape
    colours = rng.standard_normal((batch, channels, -(-height // 16), -(-width // 16)))
    blocks = colours.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
    return (blocks + 0.5 * rng.standard_normal(shape)).astype(np.float32)


def excerpt(folder, path) -> None:
    """Write golden_t2.npz from the full figures in `folder`."""
    arrays = {}
    for case in CASES:
        with np.load(f"{folder}/{case}.npz", allow_pickle=False) as full:
            names = sorted(key.split("/")[1] for key in full.files if key.endswith("/stats"))
            arrays |= {f"{case}/seed": full["seed"], f"{case}/shape": full["input_shape"],
                       f"{case}/logits": full["logits"], f"{case}/names": np.array(names),
                       f"{case}/stats": np.stack([full[f"tap/{name}/stats"] for name in names])}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    excerpt(sys.argv[1], files("mmref.validate") / "golden_t2.npz")
