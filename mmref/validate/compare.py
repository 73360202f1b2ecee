"""Two traces side by side: errors in units of what rounding does by itself, and the first layer that differs.

The unit of a record is its rounding noise: the largest absolute error that a float32 run, unfolded or folded, makes
against float64 on the same input, measured when the reference was traced and kept in its manifest. A faithful port
stays within a few units; LIMIT leaves room for other orders of summation.

A candidate is held to the sharpest precision that its values show:

    float64          where float32 cannot hold them: float64's noise, which is float32's, 2^-29 as large
    float32
    float16 weights  (as in HALVED) compared with our own run on weights rounded the same
                     way, which makes it as sharp a test as float32's; that needs the reference's model. Where
                     folding was done in other steps, single weights round the other way: FLIPS
    float16          weights and activations, only where float16 can hold every value: the error of our own such run
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from mmref.arguments import check_choice, check_flag, check_kind
from mmref.errors import ValueProblem
from mmref.models.network import check_numpy_model
from mmref.validate.matching import arranged, match
from mmref.validate.trace import Trace, largest, run_recorded

LIMIT = 24.0  # units
_SMALLER = 2.0 ** -29  # float64's rounding beside float32's
# Ways to store weights in float16: (batch norms folded before, A stored instead of A_logs, as graphs do).
HALVED = {"float16 weights": (False, False), "float16 folded weights": (True, False),
          "float16 folded weights and A": (True, True)}
# Folding in float32 moves a weight across a rounding boundary of float16 once in some thousand, a step of 2^-11 each:
# the share of float16's own effect (root mean square) that this may make. A float32 candidate differs by all of it.
FLIPS = 0.5


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
    """What `compare` found: rows in network order, `first` the name of the first that differs (None: all the same)."""

    rows: list[Row]
    matched_by: str
    precision: str
    first: str | None
    unmatched_reference: int
    unmatched_candidate: list[str]
    diagnoses: list = field(default_factory=list)
    note: str = ""
    blind_spots: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return self.first is None

    def as_dict(self) -> dict:
        return {**asdict(self), "same": self.same}


def compare(reference: Trace, candidate: Trace, mapping=None, model=None, precision: str = "auto",
            diagnose: bool = True) -> Comparison:
    """Compare a candidate's trace with ours.

    model      the reference's model (any dtype): wanted for diagnoses and for float16 weights; None goes without
    precision  "float32", "float64", "float16" (weights, or all of it) or "auto": what explains the candidate best

    Raises ValueProblem where nothing matches, or the reference has no noise levels and no model to measure them."""
    for name, trace in (("reference", reference), ("candidate", candidate)):
        check_kind(name, trace, Trace, "a Trace, what mmref.validate.trace_file.read_trace gives")
    if mapping is not None:
        check_kind("mapping", mapping, Mapping, "a dict {candidate's name: reference's name} or None")
    if model is not None:
        check_numpy_model(model)
    check_choice("precision", precision, ("auto", "float32", "float64", "float16"))
    diagnose = check_flag("diagnose", diagnose)
    pairs, how = match(reference.records, candidate.records, mapping)
    noise, half = _noise(reference, model)
    values = {name: arranged(reference.records[name], candidate.records[theirs]) for name, theirs in pairs.items()}
    best = None
    for label, records, units in _references(reference, model, precision, values, noise, half):
        flips = label in HALVED and HALVED[label][0]
        rows = [_row(name, pairs[name], records[name], *values[name], units.get(name, 0.0),
                     FLIPS * rms(records[name] - reference.records[name]) if flips else 0.0)
                for name in pairs if name in records]
        first = next((i for i, row in enumerate(rows) if row.verdict != "same"), len(rows))
        if best is None or first > best[0]:
            best = first, label, records, rows, units
        if first == len(rows):
            break
    first, label, records, rows, units = best
    used = set(pairs.values())
    result = Comparison(rows, how, label, rows[first].name if first < len(rows) else None,
                        len(reference.records) - len(pairs), [n for n in candidate.records if n not in used])
    if result.same:
        result.blind_spots = blind_spots(reference.records, pairs)
    elif diagnose:
        from mmref.validate.diagnose import diagnose as find
        result.diagnoses, result.note = find(model_of(label, model), records, values, result, units)
    return result


def _noise(reference, model):
    """The two noise levels of a trace: its own, or measured now."""
    manifest = reference.manifest
    if manifest.get("noise"):
        return manifest["noise"], manifest.get("noise_float16", {})
    if model is None or "input" not in reference.records:
        raise ValueProblem("REFERENCE must be a trace that `mmref trace` wrote (it holds the rounding noise), "
                           "got one without a manifest")
    from mmref.validate.trace import half_noise, rounding_noise
    x = reference.records["input"]
    return tuple(measure(model, x, reference.records) for measure in (rounding_noise, half_noise))


def _references(reference, model, precision, values, noise, half):
    """(label, records, unit of every record) of what the candidate may be a faithful copy of, sharpest first."""
    records = {name: np.asarray(array, np.float64) for name, array in reference.records.items()}
    held = [array for name, (array, _) in values.items() if name != "input" and array is not None and array.size]
    if precision == "float64" and reference.manifest.get("dtype") == "float32":
        raise ValueProblem("--precision float64 needs a reference traced in float64, got float32")
    if precision == "float64" or (precision == "auto" and reference.manifest.get("dtype") == "float64"
                                  and held and _beyond(held[0], np.float32)):
        yield "float64", records, {name: value * _SMALLER for name, value in noise.items()}
    if precision in ("auto", "float32"):
        yield "float32", records, noise
    if precision in ("auto", "float16") and model is not None and "input" in records:
        for label, (folded, _) in HALVED.items():
            if folded or not model.folded:
                again = run_recorded(model_of(label, model), records["input"])
                yield label, {name: again[name] for name in records
                              if name in again and again[name].shape == records[name].shape}, noise
    if half and (precision == "float16" or precision == "auto" and not any(_beyond(a, np.float16) for a in held)):
        yield "float16", records, half
    elif precision == "float16" and model is None:
        raise ValueProblem("--precision float16 needs a trace of `mmref trace`, or its weights (--weights FILE)")


def _beyond(array, dtype):
    """Whether most values of a record hold more digits than `dtype` does."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool((array.astype(dtype) != array).mean() > 0.5)


def blind_spots(records, pairs) -> list[str]:
    """What a comparison on this input could not have shown, so that "same" is not taken for more than it is."""
    found, x = [], records.get("input")
    if "input" not in pairs:
        found.append("the inputs were not compared (record `input` too)")
    if x is not None and x.ndim == 4:
        if len(x) < 2 or any(np.array_equal(x[0], other) for other in x[1:]):
            found.append("samples that mix: use a batch of two or more different ones")
        if x.shape[2] == x.shape[3]:
            found.append("height and width exchanged: use an input that is not square")
    maps = [array for name, array in records.items() if name.endswith("global_op") and array.ndim == 4]
    for axis, word in ((2, "height"), (3, "width")):
        if maps and not any(array.shape[axis] % 2 for array in maps):
            found.append(f"padding of odd maps: no map had an odd {word} (83 x 145 pixels give both)")
    before = [array for name, array in records.items() if name.endswith((".pw1", ".bn1"))]
    if before and max(map(largest, before)) <= 6:
        found.append("ReLU6 in place of ReLU: nothing came near 6 (multiply the input)")
    return found


def model_of(label, model):
    """The float64 model whose run the comparison was made with."""
    if model is None:
        return None
    model = model.astype(np.float64)
    if label in HALVED:
        folded, exponential = HALVED[label]
        model = model.fold_batchnorm() if folded else model
        for _, layer, attribute in model.named_parameters():
            array = getattr(layer, attribute)
            if exponential and attribute == "A_logs":
                array = np.log(np.maximum(_halved(np.exp(array)), 1e-300))
            else:
                array = _halved(array)
            setattr(layer, attribute, array)
    return model


def _halved(array):
    return array.astype(np.float32).astype(np.float16).astype(np.float64)


def rms(array):
    """Root mean square, 0 of nothing."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if array.size else 0.0


def _row(name, theirs, expected, got, layout, noise, allowed):
    shape = tuple(expected.shape)
    if got is None:
        return Row(name, theirs, shape, "", float("nan"), float("nan"), float("inf"), "SHAPE")
    if not np.isfinite(got).all():
        return Row(name, theirs, shape, layout, float("nan"), float("nan"), float("inf"), "NOT FINITE")
    error, size = largest(got - expected), largest(expected)
    units = error / noise if noise else (0.0 if error == 0 else float("inf"))
    return Row(name, theirs, shape, layout, error, error / size if size else error, units,
               "same" if units <= LIMIT or rms(got - expected) < allowed else "DIFFERS")
