"""Which record of a candidate is which of the reference.

Values decide first: a record that equals one of the reference's to rounding is that record, whatever it is called.
Names come next (names.py); a name counts as evidence of a difference only where the names of records that do agree
bear it out. Shape and order are a guess, shown as such, which accuses nobody.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmref.errors import ValueProblem
from mmref.validate.layouts import arranged, layouts
from mmref.validate.names import behind, paired
from mmref.validate.trace import canonical

MAX_ALIGNED = 1000  # records per side; alignment takes the product of the two in steps
BORNE_OUT = 0.8     # the share of agreeing records whose names say the same, from which names are believed
TRIVIAL = 4         # values up to which, or if all are alike, two records may agree by chance


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


@dataclass
class Matched:
    """`pairs` {reference's name: candidate's name}, in the reference's order; `how` each was found: "mapping",
    "name" or "value". `guesses` the same by shape and order, of what is left."""

    pairs: dict[str, str]
    how: dict[str, str]
    guesses: dict[str, str] = field(default_factory=dict)
    named: bool = False  # whether names were believed

    @property
    def summary(self) -> str:
        """How most of it was matched, in words."""
        kinds = set(self.how.values())
        return "mapping" if "mapping" in kinds else "names" if self.named else "values"


def match(reference, candidate, agrees, mapping=None, aliases=None) -> Matched:
    """Match the records of two traces.

    agrees   function(reference's name, candidate's array with the reference's axes): whether they are equal to rounding
    aliases  {a name that a folded network has: the reference's}

    Raises ValueProblem if a mapping names what is not there, or nothing at all can be matched or guessed."""
    if mapping is not None:
        for ours, names, side in ((mapping.values(), reference, "reference"), (mapping, candidate, "candidate")):
            unknown = [name for name in ours if name not in names]
            if unknown:
                raise ValueProblem(f"--map must give names of the {side}, got {unknown[0]!r}")
        pairs = {ours: theirs for theirs, ours in mapping.items()}
        return Matched({name: pairs[name] for name in reference if name in pairs}, dict.fromkeys(pairs, "mapping"))
    known = {canonical(name, aliases): name for name in candidate}
    names = {name: [known.get(theirs, theirs) for theirs in found] for name, found in paired(reference, known).items()}
    by_value = equal_records(reference, candidate, agrees, names)
    chosen, believed = by_name(reference, candidate, names, by_value)
    pairs, how = {}, {}
    for name in reference:
        if name in chosen:
            pairs[name], how[name] = chosen[name], "name"
        elif name in by_value:
            own = [theirs for theirs in names.get(name, ()) if theirs in by_value[name]]
            pairs[name], how[name] = (own or by_value[name])[0], "name" if own and believed else "value"
    guesses = {}
    if not believed:
        used = set(pairs.values())
        guesses = align({n: a for n, a in reference.items() if n not in pairs},
                        {n: a for n, a in candidate.items() if n not in used})
    if not pairs and not guesses:
        first = ", ".join(list(candidate)[:5])
        raise ValueProblem(f"CANDIDATE must share values, names or shapes with REFERENCE, got {first}, "
                           "... (--map FILE says which is which)")
    return Matched(pairs, how, guesses, believed)


def equal_records(reference, candidate, agrees, names) -> dict[str, list[str]]:
    """{reference's name: the candidate's records that equal it}, in the candidate's order."""
    sizes = defaultdict(list)
    for name, array in candidate.items():
        if array.size:
            sizes[array.size].append((name, _print(array)))
    found = {}
    for name, array in reference.items():
        near = [theirs for theirs in names.get(name, ()) if _equal(name, array, candidate[theirs], agrees)]
        if not near and informative(array):
            size, spread = _print(array), 1e-2
            near = [theirs for theirs, other in sizes.get(array.size, ())
                    if np.all(np.abs(np.subtract(other, size)) <= spread * max(size[1], 1e-30))
                    and _equal(name, array, candidate[theirs], agrees)]
        if near:
            found[name] = near
    return found


def informative(array) -> bool:
    """Whether equality with this record means anything: it holds more than a few different values."""
    return array.size > TRIVIAL and bool((array != array.flat[0]).any())


def _print(array) -> tuple[float, float]:
    """Mean and root mean square: what reordered axes keep."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.asarray(array, np.float64)
        return float(np.nan_to_num(values.mean())), float(np.nan_to_num(np.sqrt(np.square(values).mean())))


def _equal(name, expected, got, agrees):
    if not layouts(expected.shape, got.shape):
        return False
    array, _ = arranged(expected, got)
    return array is not None and agrees(name, array)


def by_name(reference, candidate, names, by_value) -> tuple[dict[str, str], bool]:
    """({reference's name: the candidate's record of that name} for those whose own record agrees with nothing, whether
    names are believed).

    Believed are names that the agreeing records bear out; where no record agrees (another checkpoint), names that are
    the reference's own, letter by letter."""
    equals = defaultdict(list)
    for name, found in by_value.items():
        for theirs in found:
            equals[theirs].append(name)
    names = moved(names, equals, list(reference))
    meant = {theirs: name for name, found in names.items() for theirs in found}
    judged = [theirs for theirs in meant if theirs in equals and meant[theirs] not in ("input", "output")]
    right = sum(meant[theirs] in equals[theirs] for theirs in judged)
    literal = sum(theirs in reference for theirs in meant if theirs not in ("input", "output"))
    believed = right >= BORNE_OUT * len(judged) if judged else literal >= 2 or literal == len(candidate) - 1 > 0
    chosen = {}
    for name, found in names.items():
        if name not in reference:
            continue
        if name in by_value:  # the value is there, but what the candidate calls by this very name is something else
            if (believed or name in ("input", "output")) and found == [name] and name not in equals:
                chosen[name] = name
        elif believed or name in ("input", "output"):
            # a record that is another of the reference's is no evidence against the one it is named after, unless
            # the names are the reference's own
            free = [theirs for theirs in found if theirs not in equals or theirs in reference]
            if free:
                chosen[name] = free[-1]
    return chosen, believed and bool(judged or chosen)


def moved(names, equals, order) -> dict[str, list[str]]:
    """`names` with whole kinds of records renamed whose values are regularly another's: an exporter that folds batch
    norms calls the result after the convolution, and one that fuses a layer's last operation calls it after that. A
    kind is the last part of a name with the operation behind it; one whose layer's value is regularly found elsewhere
    is a value inside the layer, and left out. A kind of which none agrees goes by its operation: where that regularly
    has the value of the record behind (`order`: the reference's names), it has it here."""
    following = dict(itertools.pairwise(order))
    turns: dict[tuple, Counter] = defaultdict(Counter)
    habits: dict[tuple, Counter] = defaultdict(Counter)
    found_again = {name for records in equals.values() for name in records}
    for name, found in names.items():
        stem, _, last = name.rpartition(".")
        for theirs in found:
            operation = behind(theirs, last)
            near = [other for other in equals.get(theirs, ()) if other == name or
                    other.rpartition(".")[0] == stem or other.partition(":")[0] in (stem, name)]
            if near:
                chosen = name if name in near else max(near, key=len)
                turns[last, operation][chosen[len(stem):] if chosen.startswith(stem) else f".{last}"] += 1
                habits[_words(operation)]["follows" if following.get(name) in near and name not in near else ""] += 1
            elif operation and name in found_again:
                turns[last, operation][None] += 1
    result: dict[str, list[str]] = {}
    for name, found in names.items():
        stem, _, last = name.rpartition(".")
        for theirs in found:
            operation = behind(theirs, last)
            target = name
            if turns[last, operation]:
                turn = _usual(turns[last, operation])
                target = turn if turn is None else name if turn == f".{last}" or not stem else stem + turn
            elif operation and _usual(habits[_words(operation)]) == "follows":
                target = following.get(name, "")
                target = target if target.rpartition(".")[0] == stem else None
            if target is not None:
                result.setdefault(target, []).append(theirs)
    return result


def _words(operation):
    return tuple(word for word in operation if not word.isdigit())


def _usual(counter):
    return max(counter, key=counter.get, default=None)


def align(reference, candidate) -> dict[str, str]:
    """The longest common subsequence of shapes: a guess at which record is which. {} where there are too many."""
    ours, theirs = list(reference), list(candidate)
    if max(len(ours), len(theirs), 1) > MAX_ALIGNED:
        return {}
    shapes: dict[tuple, bool] = {}

    def fit(a, b):
        key = tuple(reference[a].shape), tuple(candidate[b].shape)
        if key not in shapes:
            shapes[key] = bool(layouts(*key))
        return shapes[key]
    fits = [[fit(a, b) for b in theirs] for a in ours]
    best = np.zeros((len(ours) + 1, len(theirs) + 1), np.int32).tolist()
    for i, j in itertools.product(reversed(range(len(ours))), reversed(range(len(theirs)))):
        best[i][j] = max(best[i + 1][j], best[i][j + 1], best[i + 1][j + 1] + 1 if fits[i][j] else 0)
    pairs, i, j = {}, 0, 0
    while i < len(ours) and j < len(theirs):
        if fits[i][j] and best[i][j] == best[i + 1][j + 1] + 1:
            pairs[ours[i]] = theirs[j]
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs
