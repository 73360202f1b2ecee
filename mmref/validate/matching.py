"""Which record of a candidate is which of the reference, and how its axes lie."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np

from mmref.errors import ValueProblem
from mmref.validate.trace import canonical

# How a map may be stored: name and the axes of the stored array that give (B, C, H, W).
LAYOUTS = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 3, 1, 2), "HWNC": (2, 3, 0, 1)}
MAX_ALIGNED = 4000  # records per side; alignment takes the product of the two in steps


def read_mapping(path) -> dict[str, str]:
    """{candidate's name: reference's name} of a JSON object, or of lines `candidate = reference` (# comments)."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if text.lstrip().startswith("{"):
            mapping = json.loads(text)
        else:
            lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
            mapping = dict(tuple(part.strip() for part in line.split("=", 1)) for line in lines)
    except (ValueError, RecursionError) as error:
        raise ValueProblem(f"{path}: --map must be a JSON object or lines `candidate = reference`: {error}") from error
    if not all(isinstance(name, str) for name in mapping.values()):
        raise ValueProblem(f"{path}: --map must give names")
    if len(set(mapping.values())) < len(mapping):
        raise ValueProblem(f"{path}: --map must give every name of the reference once")
    return mapping


def match(reference, candidate, mapping=None) -> tuple[dict[str, str], str]:
    """({reference's name: candidate's name}, how): "mapping", "names" or "shape and order".

    Raises ValueProblem if a mapping names what is not there, or nothing matches at all."""
    if mapping is not None:
        for ours, names, side in ((mapping.values(), reference, "reference"), (mapping, candidate, "candidate")):
            unknown = [name for name in ours if name not in names]
            if unknown:
                raise ValueProblem(f"--map must give names of the {side}, got {unknown[0]!r}")
        return {ours: theirs for theirs, ours in mapping.items()}, "mapping"
    ours = {canonical(name): name for name in reference}
    exact = {}
    for name in candidate:
        if canonical(name) in ours:
            exact.setdefault(ours[canonical(name)], name)
    if set(exact) - {"input"}:
        return {name: exact[name] for name in reference if name in exact}, "names"
    pairs = align(reference, candidate)
    if not pairs:
        first = ", ".join(list(candidate)[:5])
        raise ValueProblem(f"CANDIDATE must share names or shapes with REFERENCE, got {first}, "
                           "... (--map FILE says which is which)")
    return pairs, "shape and order"


def align(reference, candidate) -> dict[str, str]:
    """The longest common subsequence of shapes; among records of equal shape in the reference the one that is nearest
    in value is not looked for: a wrong value is what a comparison is to find."""
    ours, theirs = list(reference), list(candidate)
    if max(len(ours), len(theirs)) > MAX_ALIGNED:
        raise ValueProblem(f"at most {MAX_ALIGNED} records can be aligned by shape, got {len(ours)} and {len(theirs)}; "
                           "--map FILE says which is which")
    fits = [[bool(layouts(reference[a].shape, candidate[b].shape)) for b in theirs] for a in ours]
    best = np.zeros((len(ours) + 1, len(theirs) + 1), np.int32)
    for i, j in itertools.product(reversed(range(len(ours))), reversed(range(len(theirs)))):
        best[i, j] = max(best[i + 1, j], best[i, j + 1], best[i + 1, j + 1] + 1 if fits[i][j] else 0)
    pairs, i, j = {}, 0, 0
    while i < len(ours) and j < len(theirs):
        if fits[i][j] and best[i, j] == best[i + 1, j + 1] + 1:
            pairs[ours[i]] = theirs[j]
            i, j = i + 1, j + 1
        elif best[i + 1, j] >= best[i, j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def layouts(expected: tuple, got: tuple) -> list[tuple[str, tuple]]:
    """(name, axes) of the ways to turn an array of shape `got` into `expected`; the plain one first."""
    if len(expected) == 4 and len(got) == 4:
        return [(name, axes) for name, axes in LAYOUTS.items() if tuple(got[i] for i in axes) == tuple(expected)]
    if tuple(expected) == tuple(got):
        return [("", tuple(range(len(got))))]
    if tuple(n for n in expected if n != 1) == tuple(n for n in got if n != 1):
        return [("squeezed", ())]
    return []


def arranged(reference, candidate) -> tuple[np.ndarray | None, str]:
    """`candidate` as float64 with the reference's axes, and the name of its layout; None where no layout fits.

    Where several fit (a square map with as many channels) the nearest is taken."""
    ways = layouts(reference.shape, candidate.shape)
    found = []
    for name, axes in ways:
        array = candidate.transpose(axes) if axes else candidate
        found.append((np.asarray(array, np.float64).reshape(reference.shape), name))
    if len(found) < 2:
        return found[0] if found else (None, "")
    with np.errstate(invalid="ignore", over="ignore"):
        return min(found, key=lambda item: np.nan_to_num(np.abs(item[0] - reference).max(), nan=np.inf))
