"""Two traces side by side: errors in units of what rounding does by itself, and the first layer that differs.

The unit of a record is its rounding noise: the largest absolute error that a float32 run, unfolded or folded, makes
against float64 on the same input, measured when the reference was traced and kept in its manifest. A faithful port
stays within a few units; LIMIT leaves room for other orders of summation.

A float64 candidate is held to float64's noise as long as that is what it shows (the same noise, 2^-29 as large).
Weights stored as float16 move everything by much more than float32 does, so such a candidate is compared with our
own run on weights rounded the same way, which makes it as sharp a test; that needs the reference's model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np

from mmref.errors import ValueProblem
from mmref.validate.matching import arranged, match
from mmref.validate.trace import Trace, largest, run_recorded

LIMIT = 24.0  # units
_SMALLER = 2.0 ** -29  # float64's rounding beside float32's


@dataclass
class Row:
    """One record of the table. `error` in units of rounding noise; verdict: same, DIFFERS, SHAPE, NOT FINITE."""

    name: str
    candidate: str
    shape: tuple[int, ...]
    layout: str
    max_abs: float
    max_relative: float
    error: float
    verdict: str


@dataclass
class Comparison:
    rows: list[Row]
    matched_by: str
    precision: str
    first: str | None
    unmatched_reference: int
    unmatched_candidate: list[str]
    diagnoses: list = field(default_factory=list)
    note: str = ""

    @property
    def same(self) -> bool:
        return self.first is None

    def as_dict(self) -> dict:
        return {**asdict(self), "same": self.same}


def compare(reference: Trace, candidate: Trace, mapping=None, model=None, precision: str = "auto",
            diagnose: bool = True) -> Comparison:
    """Compare a candidate's trace with ours.

    model      the reference's model (any dtype): wanted for diagnoses and for float16 weights; None goes without
    precision  "float32", "float64", "float16" (weights stored so) or "auto": what explains the candidate best

    Raises ValueProblem where nothing matches, or the reference has no noise levels and no model to measure them."""
    pairs, how = match(reference.records, candidate.records, mapping)
    noise = reference.manifest.get("noise")
    if not noise:
        if model is None or "input" not in reference.records:
            raise ValueProblem("REFERENCE must be a trace that `mmref trace` wrote (it holds the rounding noise), "
                               "got one without a manifest")
        from mmref.validate.trace import rounding_noise
        noise = rounding_noise(model, reference.records["input"])
    values = {name: arranged(reference.records[name], candidate.records[theirs]) for name, theirs in pairs.items()}
    tries = _references(reference, model, precision, values)
    best = None
    for label, records, scale in tries:
        rows = [_row(name, pairs[name], records[name], *values[name], noise.get(name, 0.0) * scale)
                for name in pairs if name in records]
        first = next((i for i, row in enumerate(rows) if row.verdict != "same"), len(rows))
        if best is None or first > best[0]:
            best = first, label, records, rows, scale
        if first == len(rows):
            break
    first, label, records, rows, scale = best
    used = set(pairs.values())
    result = Comparison(rows, how, label, rows[first].name if first < len(rows) else None,
                        len(reference.records) - len(pairs), [n for n in candidate.records if n not in used])
    if not result.same and diagnose:
        from mmref.validate.diagnose import diagnose as find
        scaled = {name: value * scale for name, value in noise.items()}
        result.diagnoses, result.note = find(model_of(label, model), records, values, result, scaled)
    return result


def _references(reference, model, precision, values):
    """(label, records, scale of the noise) of what the candidate may be a faithful copy of, sharpest first."""
    records = {name: np.asarray(array, np.float64) for name, array in reference.records.items()}
    if precision in ("auto", "float64") and reference.manifest.get("dtype") == "float64" and _double(values):
        yield "float64", records, _SMALLER
    if precision in ("auto", "float32"):
        yield "float32", records, 1.0
    if precision in ("auto", "float16") and model is not None and "input" in records:
        for label in ("float16 weights", "float16 folded weights"):
            if not (model.folded and "folded" not in label):
                again = run_recorded(model_of(label, model), records["input"])
                yield label, {name: again[name] for name in records if name in again}, 1.0
    elif precision == "float16":
        raise ValueProblem("--precision float16 needs the reference's model and input (--weights FILE)")


def _double(values):
    """Whether some record holds more digits than float32 has."""
    for name, (array, _) in values.items():
        if name != "input" and array is not None and array.size:
            with np.errstate(over="ignore", invalid="ignore"):
                return bool((array.astype(np.float32) != array).mean() > 0.5)
    return False


def model_of(label, model):
    """The float64 model whose run the comparison was made with."""
    if model is None:
        return None
    model = model.astype(np.float64)
    if label.startswith("float16"):
        if "folded" in label:
            model = model.astype(np.float32).fold_batchnorm().astype(np.float64)
        for _, layer, attribute in model.named_parameters():
            rounded = getattr(layer, attribute).astype(np.float16)
            setattr(layer, attribute, rounded.astype(np.float64))
    return model


def _row(name, theirs, expected, got, layout, noise):
    shape = tuple(expected.shape)
    if got is None:
        return Row(name, theirs, shape, "", float("nan"), float("nan"), float("inf"), "SHAPE")
    if not np.isfinite(got).all():
        return Row(name, theirs, shape, layout, float("nan"), float("nan"), float("inf"), "NOT FINITE")
    error, size = largest(got - expected), largest(expected)
    units = error / noise if noise else (0.0 if error == 0 else float("inf"))
    return Row(name, theirs, shape, layout, error, error / size if size else error, units,
               "same" if units <= LIMIT else "DIFFERS")
