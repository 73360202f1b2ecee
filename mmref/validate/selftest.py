"""The published figures, batch independence and the backends against each other, on this machine and these weights."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import numpy as np

from mmref.errors import MissingBackend
from mmref.models.network import check_numpy_model
from mmref.models.parameters import expected_shapes, load_parameters
from mmref.models.variants import VARIANTS
from mmref.nn.layer import recording
from mmref.validate.golden import figures, synthetic_input, synthetic_parameters
from mmref.validate.trace import hash_weights, largest, record_name

EXACT, SINGLE, MIXED = 1e-12, 1e-5, 2e-6  # errors over the largest magnitude: float64, float32, batch in float32


@dataclass
class Check:
    """`passed` None where it could not be run; `error` relative to the largest magnitude, beside its `limit`."""

    name: str
    passed: bool | None
    error: float | None
    limit: float | None
    seconds: float
    note: str = ""


def selftest(model) -> dict:
    """Run all checks; `model` is the user's, NumPy, float32. Returns {"passed", "checks", "machine", "model"}."""
    from mmref.machine import describe_machine
    check_numpy_model(model)
    checks = []

    def run(name, limit, function):
        start, note = time.perf_counter(), ""
        try:
            error = float(function())
            passed = bool(error <= limit)
        except MissingBackend as missing:
            error, passed, note = None, None, str(missing)
        except Exception as problem:  # the report must come out whatever breaks
            error, passed, note = None, False, f"{type(problem).__name__}: {problem}"
        checks.append(Check(name, passed, error, limit, time.perf_counter() - start, " ".join(note.split())))
    for case, golden in figures().items():
        run(f"published figures {case}, numpy float64", EXACT, lambda g=golden: golden_error(g, np.float64))
        run(f"published figures {case}, numpy float32", SINGLE, lambda g=golden: golden_error(g, np.float32))
    run("published figures t2_3x64x64, numba", SINGLE, lambda: golden_error(figures()["t2_3x64x64"], backend="numba"))
    run("your weights: batch independence, float64", EXACT, lambda: batch_error(model.astype(np.float64)))
    run("your weights: batch independence, float32", MIXED, lambda: batch_error(model))
    run("your weights: numba against numpy", SINGLE, lambda: backend_error(model))
    return {"passed": all(check.passed is not False for check in checks),
            "checks": [asdict(check) for check in checks], "machine": describe_machine(),
            "model": {"name": model.config.name, "weights_sha256": hash_weights(model), "folded": model.folded}}


def golden_error(golden, dtype=np.float32, backend="numpy") -> float:
    """Largest relative error of logits and (numpy) of every module's mean, deviation and largest magnitude."""
    config = VARIANTS["mobilemamba_t2"]
    model = load_parameters(config, synthetic_parameters(expected_shapes(config), golden["seed"]), dtype)
    x, errors = synthetic_input(golden["seed"], golden["shape"]).astype(dtype), []

    def measure(name, value, layer):
        stats = golden["stats"].get(record_name(name, layer))
        if stats is not None:
            value = value.astype(np.float64)
            got = value.mean(), value.std(), np.abs(value).max()
            errors.append(np.abs(np.array(got) - stats).max() / stats[2])
    if backend == "numpy":
        with recording(measure):
            logits = model(x)
    else:
        logits = compiled(model)(x)
    return max([relative(logits, golden["logits"]), *errors])


def batch_error(model) -> float:
    """Largest difference between samples in a batch of three and by themselves."""
    x = synthetic_input(3, (3, model.config.in_chans, 83, 65)).astype(model.dtype)
    return relative(model(x), np.concatenate([model(sample[None]) for sample in x]))


def backend_error(model) -> float:
    """Largest difference between the compiled engine and NumPy's float64, over three shapes."""
    fast, exact = compiled(model), model.astype(np.float64)
    side, channels = model.config.img_size, model.config.in_chans
    shapes = ((1, channels, side, side), (2, channels, 65, 97), (3, channels, 1, 7))
    inputs = [synthetic_input(5, shape) for shape in shapes]
    return max(relative(fast(x), exact(x.astype(np.float64))) for x in inputs)


def compiled(model):
    from mmref.models.create import _compile
    return _compile(model, None)


def relative(actual, expected) -> float:
    return largest(actual.astype(np.float64) - expected) / max(largest(expected), 1e-30)


def report(result) -> str:
    """The page one pastes into a bug report."""
    machine, model = result["machine"], result["model"]
    lines = [f"mmref selftest: {'passed' if result['passed'] else 'FAILED'}", "",
             f"machine   {machine['cpu']}, {machine['cores']} logical processors, {' '.join(machine['vector'])}",
             f"system    {machine['system']}, Python {machine['python']}",
             f"libraries {', '.join(f'{name} {version}' for name, version in machine['libraries'].items())}",
             f"model     {model['name']}{' (folded)' if model['folded'] else ''}, "
             f"weights {model['weights_sha256'][:16]}",
             ""]
    for check in result["checks"]:
        word = {True: "ok", False: "FAIL", None: "not run"}[check["passed"]]
        figure = "" if check["error"] is None else f"{check['error']:.1e} (at most {check['limit']:.0e})"
        lines.append(f"{word:8} {check['name']:45} {figure:26} {check['seconds']:5.1f} s  {check['note']}".rstrip())
    return "\n".join(lines)
