"""Every named activation of a run, and how far rounding alone moves each of them.

Records are named as checkpoints name modules, in the order in which they are finished; SS2D adds the inside of its
scan (`...global_atten:delta`). `input` is what went in, `output` what came out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from mmref.errors import ValueProblem
from mmref.layer import recording

# Names of a folded network's layers and what they compute in an unfolded one.
_FOLDED = (("local_op.0", "local_op.bn1"), ("local_op.2", "local_op.bn2"))


@dataclass
class Trace:
    """`records` {name: array} in network order; `manifest` what is known about the run (empty for foreign files).

    Manifest: format, version, model, weights (file, "pretrained" or ""), num_classes, dtype, folded, weights_sha256,
    input_sha256, order [names], shapes {name: shape}, noise {name: largest absolute error that float32 makes}."""

    records: dict[str, np.ndarray]
    manifest: dict = field(default_factory=dict)


def canonical(name: str) -> str:
    """The record name that both folded and unfolded networks are compared under."""
    for folded, plain in _FOLDED:
        if name.endswith(folded):
            return name[:-len(folded)] + plain
    return name or "output"


def run_recorded(model, x, keep=None, seen=None) -> dict[str, np.ndarray]:
    """{canonical name: output} of one run of `model` on x, `input` first.

    keep   function of a name: whether to keep it; seen   called with every record's name and value."""
    records = {}

    def record(name, value, layer=None):
        name = canonical(name)
        if seen is not None:
            seen(name, value)
        if keep is None or keep(name):
            records[name] = np.ascontiguousarray(value)
    record("input", x)
    with recording(record):
        model(x)
    return records


def trace_model(model, x, pattern: str = "*", seen=None) -> Trace:
    """Trace of a NumPy model (float32 or float64) on x (B, 3, H, W), converted to the model's dtype.

    pattern  comma-separated shell patterns of the names to keep. Raises ValueProblem if none matches."""
    patterns = [part.strip() for part in pattern.split(",") if part.strip()]

    def keep(name):
        return any(fnmatchcase(name, part) for part in patterns)
    records = run_recorded(model, np.asarray(x, model.dtype), keep, seen)
    if not records:
        raise ValueProblem(f"--filter must match a record (for instance 'blocks1.*'), got {pattern!r}")
    noise = rounding_noise(model, x, keep)
    from mmref import __version__
    return Trace(records, {
        "format": 1, "version": __version__, "model": model.config.name, "num_classes": model.config.num_classes,
        "dtype": str(model.dtype), "folded": model.folded, "weights_sha256": hash_weights(model),
        "input_sha256": hash_array(np.asarray(x, np.float32)), "order": list(records),
        "shapes": {name: list(array.shape) for name, array in records.items()},
        "noise": {name: noise.get(name, 0.0) for name in records}})


def rounding_noise(model, x, keep=None) -> dict[str, float]:
    """{name: largest absolute error of float32, unfolded and folded, against float64}, measured on this very input.

    Never below one unit in the last place of the record's largest value: a run that happens to round as ours does
    not make others wrong."""
    truth = run_recorded(model.astype(np.float64), np.asarray(x, np.float64), keep)
    noise = {name: float(np.finfo(np.float32).eps) * largest(array) for name, array in truth.items()}
    single = model.astype(np.float32)
    for variant in (single, single if model.folded else single.fold_batchnorm()):
        def measure(name, value):
            if name in truth and truth[name].shape == value.shape:
                noise[name] = max(noise[name], largest(value - truth[name]))
        run_recorded(variant, np.asarray(x, np.float32), lambda name: False, measure)
    return noise


def largest(array) -> float:
    """Largest magnitude, 0 of nothing."""
    return float(np.abs(array).max()) if array.size else 0.0


def hash_array(array) -> str:
    """SHA-256 of shape and little-endian values."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()


def hash_weights(model) -> str:
    """SHA-256 over names, shapes and float32 values of all parameters."""
    total = hashlib.sha256()
    for name, array in sorted(model.state_dict().items()):
        total.update(name.encode() + hash_array(np.asarray(array, np.float32)).encode())
    return total.hexdigest()
