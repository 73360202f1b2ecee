"""Which causes reproduce a candidate that differs: every record held against what follows from those before it.

The reference's graph is run on the candidate's own records (replay.py). A record that does not follow from them is a
cause, the others are consequences. For each cause mistakes are tried in the operations between it and the records
before it: one at a time, everywhere at once, another layer's parameters, and weights recovered from input and output. A
diagnosis must reproduce the record to rounding and contradict no other; those that are left are ranked, simple ones
first. Without one nothing is said but where.
"""

from __future__ import annotations

import itertools

import numpy as np

from mmref.errors import MmrefError
from mmref.validate.findings import Diagnosis
from mmref.validate.inputs import of_input
from mmref.validate.layouts import arranged
from mmref.validate.patterns import patterns
from mmref.validate.replay import Replay
from mmref.validate.search import CLOSER, LIMIT, SHOWN, WEAKER, WORK, Search
from mmref.validate.statistics import said
from mmref.validate.trace import largest


def diagnose(model, reference, candidate, comparison, noise,
             work: int = WORK) -> tuple[list[Diagnosis], list[str], str]:
    """(diagnoses, best first; the records that do not follow from the candidate's own; a note). `reference` records
    by name, `candidate` a Trace, `comparison` what is known so far, `noise` {name: unit}; `work`: what the search may
    cost, in runs of the whole network."""
    rows = {row.name: row for row in comparison.rows}
    values = {name: arranged(reference[name], candidate.records[row.candidate])[0] for name, row in rows.items()
              if row.verdict != "RECORDING"}
    values |= _inputs(candidate, rows)
    if comparison.first == "input":
        return _other_input(model, reference, values, noise)
    if model is None:
        found = _patterns(comparison.first, reference, values, noise)
        note = "" if found else "no known pattern; with the reference's weights (--weights) mistakes can be tried"
        return found, [], _why_not(rows.get(comparison.first)) or note
    if "input" not in reference:
        return [], [], "the reference trace lacks its input, so no mistake can be tried"
    search, note = _search(model, reference, values, noise, work)
    if search is None:
        return _patterns(comparison.first, reference, values, noise), [], note
    found, causes = search.run()
    if not found and not model.folded:  # whoever folded batch norms may have made the mistake in the folded layers
        folded, _ = _search(model.fold_batchnorm(), reference, values, noise, work)
        found = folded.run()[0] if folded is not None else []
    notes = [_why_not(rows.get(comparison.first))]
    if not found and not notes[0]:
        notes.append(_only_if_wanted(search, comparison))
        if "input" not in values:
            notes.append("the candidate's `input` was not recorded: perhaps it was prepared otherwise")
    return found, causes, "; ".join(filter(None, notes))


def accounts_for(found: list[Diagnosis], causes: list[str]) -> tuple[str, float, str]:
    """(key, share of the causes, text) of the mistake that explains most of them; other weights count for all where
    every cause that was looked into has them."""
    weights = [one for one in found if one.key == "weights"]
    if len({one.layer for one in weights}) >= SHOWN:
        return "weights", 1.0, weights[0].text
    planted = [one for one in found if one.key not in WEAKER]
    if not planted or not causes:
        return "", 0.0, ""
    best = max(planted, key=lambda one: one.explains)
    return best.key, min(1.0, best.explains / len(causes)), best.text


def _inputs(candidate, rows):
    """{"layer:in": array} of what the candidate recorded as inputs of layers, under the reference's names."""
    ours = {row.candidate: name for name, row in rows.items()}
    return {f"{ours[name[:-3]]}:in": np.asarray(array, np.float64) for name, array in candidate.records.items()
            if name.endswith(":in") and name[:-3] in ours}


def _only_if_wanted(search, comparison):
    if not search.misfits:
        return ("every record follows from the candidate's own earlier ones: a difference grows from below what shows "
                "in any one of them")
    if search.spent >= search.budget:
        return ("no mistake that mmref knows reproduces this difference, of those that could be tried: record more "
                "layers")
    return "no mistake that mmref knows reproduces this difference"


def _why_not(row):
    """What a record that cannot be compared value by value shows."""
    if row is None:
        return ""
    if row.verdict == "SHAPE":
        expected = "x".join(map(str, row.shape))
        return f"{row.figures['text']}, expected {expected}: padding, stride or a split of channels"
    if row.verdict == "NOT FINITE":
        return f"{row.name} is the first record that is not finite: {said(row.figures)}"
    return ""


def _search(model, reference, values, noise, work=WORK):
    own = {"input": reference["input"], **{name: array for name, array in values.items() if array is not None}}
    try:
        return Search(Replay(model.astype(np.float64), own, reference["input"].shape), reference, noise, work), ""
    except MmrefError as error:
        return None, f"no mistakes tried: the network's text gives no graph ({error})"


def _other_input(model, reference, values, noise):
    """The candidate's own input through the reference's network: a wrong preparation and a wrong network are apart."""
    found, note = of_input(reference["input"], values["input"])
    notes, causes = [note], []
    if model is not None and values["input"] is not None and len(values) > 1 and np.isfinite(values["input"]).all():
        search, _ = _search(model, reference, values, noise)
        if search is not None:
            more, causes = search.run()
            if search.misfits:
                notes.append(f"the network differs too: {causes[0]} does not follow from the candidate's own input")
                found += more
            else:
                notes.append("given its own input, the candidate's network is right: only the preparation differs")
    return found, causes, "; ".join(filter(None, notes))


def _patterns(first, reference, values, noise):
    got = values.get(first)
    if got is None or not np.isfinite(got).all():
        return []
    unit = max(noise.get(first, 0.0), 1e-300)
    error = largest(got - reference[first])

    def explains(array):
        if array.shape != got.shape:
            return None
        left = largest(array - got)
        return left / unit if left <= min(CLOSER * error, LIMIT * unit) else None
    earlier = dict(itertools.takewhile(lambda item: item[0] != first, reference.items()))
    return list(patterns(first, reference[first], earlier, explains))
