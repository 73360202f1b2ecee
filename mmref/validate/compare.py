"""Two traces side by side: errors in units of what rounding does by itself, and the first layer that differs.

The unit of a record is its rounding noise: the largest absolute error that a float32 run, unfolded or folded, makes
against float64 on the same input, measured when the reference was traced and kept in its manifest. A faithful port
stays within a few units; LIMIT leaves room for other orders of summation. Any two recordings can be compared: where no
noise was measured, the unit is a share of each record's largest value.

What a candidate may compute in, and still be a faithful copy, is in precisions.py. What is compared with what is in
matching.py: a difference counts only between records that are known to be the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from mmref.arguments import check_choice, check_flag, check_kind
from mmref.errors import NotTraceable, ShapeError, ValueProblem
from mmref.models.network import check_numpy_model
from mmref.validate.exercise import declared, not_exercised
from mmref.validate.layouts import arranged
from mmref.validate.matching import Matched, match
from mmref.validate.precisions import FLIPS, HALVED, PRODUCTS, model_of, references
from mmref.validate.recordings import overwritten
from mmref.validate.replay import Indexed
from mmref.validate.statistics import not_finite, statistics
from mmref.validate.trace import Trace, is_parameter, largest, rms

LIMIT = 24.0  # units
SURE = 6.0     # units within which a right record nearly always lies: a faint fault may stay within LIMIT
FEWER_BITS = ("reduced-precision", "weights-rounded")  # mistakes that a faithful copy in fewer bits may have
FEW = 30       # runs of the whole network that a mistake as small as products in fewer bits is worth
FADING = 0.05  # what a record that was not found counts against one that agrees behind it


@dataclass
class Row:
    """One record of the table. `error` in units of rounding noise; `how` it was matched: mapping, name or value;
    verdict: same, DIFFERS, SHAPE, NOT FINITE, or RECORDING (not what the candidate computed with)."""

    name: str
    candidate: str
    shape: tuple[int, ...]
    layout: str
    max_abs: float
    max_relative: float
    error: float
    verdict: str
    how: str = "name"
    figures: dict = field(default_factory=dict)


@dataclass
class Comparison:
    """What `compare` found: rows in network order, `first` the name of the first record that differs (None: none does),
    `last` that of the last one before it that agrees, `output` "agrees", "differs" or "not compared".

    `located`: `first` differs by name; else it is the first that was not found again after `last`, perhaps because it
    was not recorded, and the mistake is somewhere after `last`. `causes`: the records that do not follow from the
    candidate's own ones before them."""

    rows: list[Row]
    matched_by: str
    precision: str
    first: str | None
    unmatched_reference: int
    unmatched_candidate: list[str]
    last: str | None = None
    output: str = "not compared"
    located: bool = True
    guesses: dict[str, str] = field(default_factory=dict)
    diagnoses: list = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    note: str = ""
    exercised: list[str] = field(default_factory=list)
    blind_spots: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return self.first is None

    @property
    def matched(self) -> int:
        return len(self.rows)

    def as_dict(self) -> dict:
        return {**asdict(self), "same": self.same, "matched": self.matched,
                "records": self.matched + self.unmatched_reference}


def compare(reference: Trace, candidate: Trace, mapping=None, model=None, precision: str = "auto",
            diagnose: bool = True, tolerance=None) -> Comparison:
    """Compare a candidate's trace with ours, or any two recordings.

    model      the reference's model (any dtype): wanted for diagnoses and for float16 weights; None goes without
    precision  "float32", "float64", "float16" (weights, or all of it) or "auto": what explains the candidate best
    tolerance  {shell pattern of names: share of a record's largest value that it may be off}; the last that fits counts

    Raises ValueProblem where nothing matches and for a tolerance that is no number from 0."""
    for name, trace in (("reference", reference), ("candidate", candidate)):
        check_kind(name, trace, Trace, "a Trace, what mmref.validate.trace_file.read_trace gives")
    if mapping is not None:
        check_kind("mapping", mapping, Mapping, "a dict {candidate's name: reference's name} or None")
    if model is not None:
        check_numpy_model(model)
    check_choice("precision", precision, ("auto", "float32", "float64", "float16"))
    diagnose = check_flag("diagnose", diagnose)
    tolerance = checked_tolerance(tolerance)
    graph = _graph(model, reference)
    best, sharp, aliases = None, None, reference.manifest.get("aliases")

    def exact():  # rounded weights, or products, leave no layer as it was
        return best is not None and any(row.verdict == "same" and row.name != "input" for row in best[-1].rows)
    for label, records, units in references(reference, candidate, model, precision, LIMIT, exact):
        allowed = _allowed(reference, records, units, label, tolerance)
        matched = match(records, candidate.records, lambda name, array, r=records, a=allowed: _agrees(
            r[name], array, *a[name]), mapping, aliases)
        rows = _rows(matched, records, candidate, units, allowed)
        found = _verdict(rows, matched, records, candidate, graph, model_of(label, model), allowed)
        if label == "float32":
            sharp = label, records, units, found
        score = found.first is None, found.first is None or _place(records, found.first), sum(
            row.verdict == "same" for row in rows)
        if best is None or score > best[0]:
            best = score, label, records, units, found
        if found.first is None and found.output != "not compared" or mapping is not None and found.first is None:
            break
    _, label, records, units, result = best
    told = None
    if result.same and label in PRODUCTS and diagnose and sharp:  # a mistake everywhere may be as small as rounding
        told, stored = in_full(model_of("float32", model), *sharp[1:], candidate)
        label, records, units, result = sharp if told else (label, records, units, result)
        result.note = stored
    result.precision = label
    used = {row.candidate for row in result.rows}
    result.unmatched_candidate = [name for name in candidate.records if name not in used]
    exercise = reference.manifest.get("exercise", {})
    outcome = next((row for row in result.rows if row.name == "output"), None)
    size = largest(records["output"]) if outcome else 0.0
    result.exercised = declared(exercise, LIMIT * units["output"] / size if size and units.get("output") else None)
    if result.same or not diagnose:
        result.blind_spots = blind_spots(result, exercise)
    recorded = [row.name for row in result.rows if row.verdict == "RECORDING"]
    if recorded:
        shown = ", ".join(recorded[:3]) + (", ..." if len(recorded) > 3 else "")
        result.note = (
            f"{len(recorded)} records ({shown}) hold something else, yet what was computed from them agrees: "
            f"recording, not arithmetic (overwritten in place after it was recorded?)"
        )
    if not result.same and diagnose:
        from mmref.validate.diagnose import diagnose as find
        result.diagnoses, result.causes, note = told or find(
            model_of(label, model), records, candidate, result, units)
        result.note = "; ".join(filter(None, (result.note, note)))
    return result


def in_full(model, records, units, found, candidate):
    """(what `diagnose` says of a candidate's differences in float32 where that accounts for all of them, else None;
    a note where they come from how its weights are stored, which accuses nobody)."""
    from mmref.validate.diagnose import accounts_for, diagnose
    told = diagnose(model, records, candidate, found, units, FEW)
    key, share, text = accounts_for(*told[:2])
    stored = f"computed in float32: {text}" if key == "weights-rounded" and share > 0.5 else ""
    return (told if key and key not in FEWER_BITS and share == 1 else None), stored


def checked_tolerance(tolerance) -> dict[str, float]:
    """`compare`'s tolerance as a dict; a number alone is one for every record. Raises ValueProblem."""
    if tolerance is None:
        return {}
    tolerance = tolerance if isinstance(tolerance, Mapping) else {"*": tolerance}
    for pattern, share in tolerance.items():
        if isinstance(share, bool) or not isinstance(share, (int, float, np.number)) or not 0 <= share < float("inf"):
            raise ValueProblem(f"--tolerance must be a number from 0 for {pattern!r}, got {share!r}")
    return dict(tolerance)


def _graph(model, reference):
    """The graph of the reference's network, to know what depends on what; None where there is none."""
    x = reference.records.get("input")
    if model is None or x is None:
        return None
    try:
        return Indexed(model, x.shape)
    except (NotTraceable, ShapeError):
        return None


def _allowed(reference, records, units, label, tolerance):
    """{name: (largest error, root mean square of errors that is enough)}: a record agrees that keeps to one of them."""
    flips = label in HALVED and HALVED[label][0]
    found = {}
    for name, array in records.items():
        shares = [share for pattern, share in tolerance.items() if fnmatchcase(name, pattern)]
        limit = shares[-1] * largest(array) if shares else LIMIT * units.get(name, 0.0)
        found[name] = limit, FLIPS * rms(array - reference.records[name]) if flips else 0.0
    return found


def _agrees(expected, got, limit, spread):
    with np.errstate(invalid="ignore", over="ignore"):
        error = got - expected
        return bool(np.isfinite(error).all()) and (largest(error) <= limit or rms(error) < spread)


def _rows(matched: Matched, records, candidate, units, allowed):
    rows = []
    for name, theirs in matched.pairs.items():
        got, layout = arranged(records[name], candidate.records[theirs])
        rows.append(_row(name, theirs, records[name], got, layout, units.get(name, 0.0), allowed[name],
                         candidate.records[theirs].shape))
        rows[-1].how = matched.how[name]
    return rows


def _row(name, theirs, expected, got, layout, noise, allowed, shape_got):
    shape, nan = tuple(expected.shape), float("nan")
    if got is None:
        words = f"candidate's shape {'x'.join(map(str, shape_got)) or 'of one value'}"
        return Row(name, theirs, shape, "", nan, nan, float("inf"), "SHAPE", figures={"shape": list(shape_got),
                                                                                      "text": words})
    if not np.isfinite(got).all():
        return Row(name, theirs, shape, layout, nan, nan, float("inf"), "NOT FINITE", figures=not_finite(got))
    error, size = largest(got - expected), largest(expected)
    in_units = error / noise if noise else (0.0 if error == 0 else float("inf"))
    same = _agrees(expected, got, *allowed)
    figures = statistics(expected, got, allowed[0]) if not same or name == "output" else {}
    return Row(name, theirs, shape, layout, error, error / size if size else error, in_units,
               "same" if same else "DIFFERS", figures=figures)


def _verdict(rows, matched, records, candidate, graph, model, allowed) -> Comparison:
    """The comparison as far as values alone tell."""
    agree = [row.name for row in rows if row.verdict == "same"]
    recordings = set(overwritten(model, records, candidate, rows, allowed)) if _later(rows, records) else ()
    for row in rows:
        if row.name in recordings:
            row.verdict = "RECORDING"
    wrong = [row.name for row in rows if row.verdict not in ("same", "RECORDING")]
    outcome = next((row.verdict for row in rows if row.name == "output"), None)
    result = Comparison(rows, matched.summary, "", wrong[0] if wrong else None, len(records) - len(rows), [],
                        guesses=matched.guesses)
    result.output = {None: "not compared", "same": "agrees"}.get(outcome, "differs")
    if wrong and wrong[0] != "input" and not matched.named and matched.summary != "mapping":
        sure = [row.name for row in rows if row.verdict == "same" and row.error <= SURE]
        result.first, result.located = _not_found(records, sure or agree, graph) or wrong[0], False
    before = list(records)[:_place(records, result.first) if wrong else len(records)]
    follows = _ancestors(graph, [result.first]) if wrong else None
    result.last = next((name for name in reversed(before) if name in agree and not is_parameter(name)
                        and (not follows or name in follows)), None)
    return result


def _later(rows, records):
    """Whether something agrees after the first record that differs."""
    first = next((i for i, row in enumerate(rows) if row.verdict == "DIFFERS"), None)
    return first is not None and any(row.verdict == "same" for row in rows[first:])


def _place(records, name):
    return list(records).index(name)


def _ancestors(graph, names) -> set[str]:
    """Names of the records that these depend on, themselves included; empty where that is not known."""
    if graph is None:
        return set()
    seen = {graph.names[name] for name in names if name in graph.names}
    pending = list(seen)
    while pending:
        for source in pending.pop().sources:
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return {other for other, node in graph.names.items() if node in seen}


def _not_found(records, agree, graph):
    """The first record that was not found again, of a kind that was found elsewhere, of those after the ones that agree
    and what they were computed from. Single records that agree far behind do not count: a fault may fade."""
    def kind(name):
        return re.sub(r"\d+", "#", name)
    records = [name for name in records if not is_parameter(name)]
    kinds, found = {kind(name) for name in agree}, set(agree)
    best, total, turn = 0.0, 0.0, 0
    for i, name in enumerate(records):
        if name in found:
            total += 1
            if total > best:
                best, turn = total, i + 1
        elif kind(name) in kinds:
            total -= FADING
    names = list(records)
    right = [name for name in names[:turn] if name in found]
    cleared = _ancestors(graph, right) if graph is not None else set(names[:turn])
    left = [name for name in names if name not in right and name not in cleared and name != "input"]
    return next((name for name in left if kind(name) in kinds), left[0] if left else None)


def blind_spots(result, exercise) -> list[str]:
    """What this comparison could not have shown, so that "same" is not taken for more than it is."""
    found = []
    if not any(row.name == "input" for row in result.rows):
        found.append("the inputs were not compared (record `input` too)")
    if result.output == "not compared":
        found.append("the output was not compared (record `output` too)")
    return found + not_exercised(exercise)
