"""Every named activation of a run, and how far rounding alone moves each of them.

Records are named as checkpoints name modules, in the order in which they are finished; SS2D adds the inside of its
scan (`...global_atten:delta`). `input` is what went in, `output` what came out; of a network that gives several maps
`output.cls.0` and so on, by their place in its result. Of a layer that runs several times the last result is there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from mmref.arguments import check_kind, check_ndarray
from mmref.errors import ShapeError, ValueProblem
from mmref.models.network import check_numpy_model
from mmref.nested import named_arrays
from mmref.nn.layer import recording


@dataclass
class Trace:
    """`records` {name: array} in network order; `manifest` what is known about the run (empty for foreign files).

    Manifest: format, version, model, weights (file, "pretrained" or ""), num_classes, dtype, folded, weights_sha256,
    input_sha256, order [names], shapes {name: shape}, noise {name: largest absolute error that float32 makes},
    noise_float16 {name: the same of float16}, aliases {a folded network's name: ours} and exercise (what the input
    shows, see exercise.py)."""

    records: dict[str, np.ndarray]
    manifest: dict = field(default_factory=dict)


def canonical(name: str, aliases: dict[str, str] | None = None) -> str:
    """The record name that both folded and unfolded networks are compared under; `aliases` as in a manifest."""
    return (aliases or {}).get(name, name) or "output"


def record_name(name: str, layer) -> str:
    """`canonical` of what a layer of ours records: a convolution that a batch norm of another name was folded into
    stands for that."""
    norm = getattr(layer, "stands_for", "")
    return canonical(norm if norm and not norm.startswith(f"{name}.") else name)


def aliases_of(model) -> dict[str, str]:
    """{name of a layer once batch norms are folded: the name its records are compared under}, where they differ."""
    stands_for = {path: record_name(path, layer) for path, layer in model.fold_batchnorm().walk() if path}
    return {path: name for path, name in stands_for.items() if name != path}


def is_parameter(name: str) -> bool:
    """Whether a record is a parameter, which belongs to no sample and follows from no other record: a scan's A."""
    return name.endswith(":A")


def run_recorded(model, x, keep=None, seen=None) -> dict[str, np.ndarray]:
    """{canonical name: output} of one run of `model` on x, `input` first.

    keep  function of a name: whether to keep it
    seen  called with every record's name and value"""
    records = {}

    def record(name, value, layer=None):
        name = record_name(name, layer)
        if seen is not None:
            seen(name, value)
        if keep is None or keep(name):
            records[name] = np.ascontiguousarray(value)
    record("input", x)
    with recording(record):
        results = model(x)
    for path, value in named_arrays(results):
        if path:                                 # one array is recorded as the network's own
            record(f"output.{path}", value)
    return records


def trace_model(model, x, pattern: str = "*", seen=None) -> Trace:
    """Trace of a NumPy model (float32 or float64) on x (B, 3, H, W), converted to the model's dtype.

    pattern  comma-separated shell patterns of the names to keep
    seen     called with every record of each of the runs it takes (`runs`)

    Raises ValueProblem if no record matches or the model is not a NumPy model, ShapeError for an x that it cannot
    run."""
    check_numpy_model(model)
    check_kind("pattern", pattern, str, "comma-separated patterns of names such as 'blocks1.*,output'")
    check_ndarray("x", x, "batch channels height width")
    if x.dtype.kind not in "fiu":
        raise ShapeError(f"x must hold real numbers, got {x.dtype}")
    keep = keeping(pattern)
    truth = run_recorded(model.astype(np.float64), np.asarray(x, np.float64), keep, seen)
    if not truth:
        raise ValueProblem(f"--filter must match a record (for instance 'blocks1.*'), got {pattern!r}")
    records = truth if model.dtype == np.float64 else run_recorded(model, np.asarray(x, model.dtype), keep, seen)
    noise, half = rounding_noise(model, x, truth, seen), half_noise(model, x, truth, seen)
    from mmref import __version__
    from mmref.validate.exercise import exercise
    return Trace(records, {
        "format": 1, "version": __version__, "model": model.config.name, "num_classes": model.config.num_classes,
        "dtype": str(model.dtype), "folded": model.folded, "weights_sha256": hash_weights(model),
        "input_sha256": hash_array(np.asarray(x, np.float32)), "order": list(records),
        "shapes": {name: list(array.shape) for name, array in records.items()},
        "noise": noise, "noise_float16": half, "aliases": aliases_of(model),
        "exercise": exercise(model.astype(np.float64), np.asarray(x, np.float64))})


def runs(model) -> int:
    """How many times `trace_model` runs the network."""
    return 3 + (model.dtype != np.float64) + (not model.folded)


def keeping(pattern):
    """Whether a name matches one of the comma-separated shell patterns, as a function."""
    patterns = [part.strip() for part in pattern.split(",") if part.strip()]
    return lambda name: any(fnmatchcase(name, part) for part in patterns)


def estimate(model, x, pattern: str = "*") -> tuple[int, int]:
    """(records, bytes) that a trace of `model` on x will hold, from a run of the first sample alone."""
    keep, sizes = keeping(pattern), {}

    def measure(name, value):
        if keep(name):
            shared = is_parameter(name)
            sizes[name] = value.size * (1 if shared else len(x)) * model.dtype.itemsize
    run_recorded(model, np.asarray(x[:1], model.dtype), lambda name: False, measure)
    return len(sizes), sum(sizes.values())


def rounding_noise(model, x, truth, seen=None) -> dict[str, float]:
    """{name: largest absolute error of float32, unfolded and folded, against the float64 records `truth`}.

    Never below one unit in the last place of the record's largest value: a run that happens to round as ours does
    not make others wrong."""
    noise = {name: float(np.finfo(np.float32).eps) * largest(array) for name, array in truth.items()}
    single = model.astype(np.float32)
    for variant in (single,) if model.folded else (single, single.fold_batchnorm()):
        _measure(variant, np.asarray(x, np.float32), truth, noise, seen)
    return noise


def half_noise(model, x, truth, seen=None, rounding=None, step: float = 2.0 ** -11) -> dict[str, float]:
    """The same of a run that rounds weights and activations to float16 (and computes in float32, as hardware does), or
    as `rounding` does it, which moves 1 by up to `step`."""
    rounding = rounding or _float16
    noise = {name: step * largest(array) for name, array in truth.items()}
    with np.errstate(over="ignore", invalid="ignore"):  # what float16 cannot hold becomes infinity, noise 0 below
        _measure(halved(model, rounding), np.asarray(x, np.float32), truth, noise, seen)
    return {name: value if np.isfinite(value) else 0.0 for name, value in noise.items()}


def _float16(array):
    return np.asarray(array).astype(np.float16)


def _measure(model, x, truth, noise, seen):
    def measure(name, value):
        if seen is not None:
            seen(name, value)
        if name in truth and truth[name].shape == value.shape:
            noise[name] = max(noise[name], largest(value - truth[name]))
    run_recorded(model, x, lambda name: False, measure)


def halved(model, rounding=_float16):
    """A float32 copy of the model whose parameters, and every layer's output, are rounded to float16, or by another
    `rounding`."""
    model = model.astype(np.float32)
    for _, layer, attribute in model.named_parameters():
        setattr(layer, attribute, rounding(getattr(layer, attribute)).astype(np.float32))
    for path, layer in model.walk():
        if path:
            layer.forward = _rounded(layer.forward, rounding)
    return model


def _rounded(forward, rounding):
    def rounded(*inputs):
        return _each(forward(*inputs), rounding)
    return rounded


def _each(y, rounding):
    if isinstance(y, dict):
        return {name: _each(one, rounding) for name, one in y.items()}
    if isinstance(y, (list, tuple)):
        return type(y)(_each(one, rounding) for one in y)
    return rounding(y).astype(np.float32) if isinstance(y, np.ndarray) else y


def largest(array) -> float:
    """Largest magnitude, 0 of nothing."""
    return float(np.abs(array).max()) if array.size else 0.0


def rms(array) -> float:
    """Root mean square, 0 of nothing."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if array.size else 0.0


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
