"""The search for the mistakes that reproduce a candidate, on a replay of its own records.

For each record that does not follow from those before it, mistakes are tried in the operations between: one at a time,
everywhere at once, another layer's parameters, and weights recovered from input and output.
"""

from __future__ import annotations

import numpy as np

from mmref.errors import MmrefError
from mmref.graph.graph import Constant
from mmref.nn.operation import apply
from mmref.validate import layer_faults, map_faults, scan_faults, sum_faults  # noqa: F401  (they register theirs)
from mmref.validate.faults import FAULTS, Fault
from mmref.validate.findings import Diagnosis
from mmref.validate.patterns import patterns
from mmref.validate.recover import described, recovered, recovered_eps
from mmref.validate.replay import Replay
from mmref.validate.trace import largest

LIMIT = 60.0      # units of rounding noise within which a mistake reproduces the candidate,
CLOSER = 0.02     # and the share of the difference it may leave unexplained;
FAINT = 8.0, 0.3  # or fewer units and a larger share: a difference that hardly stands out of the noise
SHOWN = 3         # diagnoses of one cause, and causes that are searched
WORK = 150        # values that may be computed in the search, in runs of the whole network
# Ways to say the same: where one of the first explains, the second are left out.
WEAKER = ("wiring", "permuted", "weights", "zero")


class Search:
    """The search for causes on one replay."""

    def __init__(self, replay: Replay, reference, noise, work=WORK):
        self.replay, self.reference = replay, reference
        name_of = {}
        for name, node in replay.names.items():
            if name in reference and node not in name_of:
                name_of[node] = name
        for name, node in replay.names.items():
            if node in replay.own and node in replay.expected:
                name_of.setdefault(node, name)
        self.name_of, self.units = name_of, {}
        for node, got in replay.own.items():
            if node in name_of:
                if name_of[node] not in reference:  # an input of a layer: what float32 makes of one operation, amply
                    self.units[node] = max(2.0 ** -20 * largest(replay.expected[node]), 1e-300)
                    continue
                ours = largest(reference[name_of[node]])
                finite = got[np.isfinite(got)]
                scale = max(1.0, largest(finite) / ours) if ours and finite.size else 1.0
                self.units[node] = max(noise.get(name_of[node], 0.0), 1e-300) * scale
        self.misfits = [node for node in replay.expected if node in self.units and not self._follows(node)]
        self.spent, self.budget = 0, work * sum(int(np.prod(node.shape)) for node in replay)

    def _follows(self, node):
        expected, got = self.replay.expected[node], self.replay.own[node]
        with np.errstate(invalid="ignore", over="ignore"):
            if not np.isfinite(got).all():  # what is not finite follows from what is not finite
                sources = [self.replay.values[source] for source in node.sources]
                return not all(np.isfinite(value).all() for value in sources)
            error = np.abs(expected - got)
        return bool(not np.isfinite(error).all() or error.max(initial=0) <= LIMIT / 2.5 * self.units[node])

    def run(self) -> tuple[list[Diagnosis], list[str]]:
        """(diagnoses, names of the causes)."""
        found: list[Diagnosis] = []
        plants: dict[str, tuple] = {}
        explained, searched = set(), 0
        for node in self.misfits:
            again = [diagnosis for diagnosis, fault in plants.values() if self._again(node, fault)]
            for diagnosis in again:
                diagnosis.explains += 1
            if again:
                explained.add(node)
            if again or searched >= SHOWN:
                continue
            searched += 1
            # what stands on a record that nothing explains may be a part of the same mistake
            wanted = {other for other in self.replay.before(node) if other in self.misfits} - explained
            for diagnosis, fault, reproduced in self.causes(node):
                if not wanted <= reproduced:
                    continue
                explained |= reproduced | {node}
                found.append(diagnosis)
                if fault is not None:
                    plants[diagnosis.text] = diagnosis, fault
        for diagnosis in found:
            if diagnosis.explains > 1:
                diagnosis.text += f" (and in {diagnosis.explains - 1} more records)"
        return found, [self.name_of[node] for node in self.misfits]

    def _again(self, node, fault):
        """Whether a mistake that explained another record explains this one too."""
        suspects = [one for one in self.replay.suspects(node) if fault in FAULTS.get(one.name, ())]
        return any(self.explains(node, self._plant(fault, nodes)) is not None
                   for nodes in ([one] for one in suspects)) or (
            len(suspects) > 1 and self.explains(node, self._plant(fault, suspects)) is not None)

    def _plant(self, fault: Fault, nodes):
        changes = {}
        for node in nodes:
            changes |= fault.plant(self.replay, node) or {}
        return changes

    def causes(self, node) -> list[tuple[Diagnosis, Fault | None, set]]:
        """(diagnosis, the mistake if it is one that is planted, the misfits it reproduces) of one record, ranked."""
        got = self.replay.own[node]
        suspects, found = self.replay.suspects(node), []
        if not np.isfinite(got).any():
            return []
        for fault, nodes in _plants(suspects):
            if self.spent > self.budget:
                break
            explained = self.explains(node, self._plant(fault, nodes))
            if explained is not None:
                layers = dict.fromkeys(one.layer for one in nodes)
                at = f"{len(layers)} layers up to {self.name_of[node]}" if len(layers) > 1 else nodes[0].layer
                left, reproduced = explained
                found.append((Diagnosis(fault.key, fault.text, at or self.name_of[node], left), fault, reproduced))
        found += [(diagnosis, None, {node}) for diagnosis in self._others_parameters(node, suspects)]
        if np.isfinite(got).all():
            expected = self.replay.expected[node]
            found += [(diagnosis, None, {node}) for diagnosis in patterns(
                self.name_of[node], expected, self._earlier(node), lambda array: self._left(node, array))]
            if not found:
                found += [(diagnosis, None, {node}) for diagnosis in self._recovered(node)]
        return self._ranked(node, found)

    def _ranked(self, node, found):
        """The best few; none where a difference is so faint that mistakes of several kinds would do."""
        if not found:
            return []
        least = min(item[0].left for item in found)
        best = [item for item in found if item[0].left <= max(8 * least, 4.0)]
        if any(item[0].key not in WEAKER for item in best):
            best = [item for item in best if item[0].key not in WEAKER]
        best.sort(key=lambda item: (-len(item[2]), item[0].left))
        error = self._error(node)
        if least > CLOSER * error and len({item[0].key for item in best}) > 1:
            return []
        return list({item[0].key + item[0].text: item for item in reversed(best)}.values())[::-1][:SHOWN]

    def _earlier(self, node):
        """{name: value} of the candidate's records before one."""
        index = self.replay.index
        return {self.name_of[other]: value for other, value in self.replay.own.items()
                if other in self.name_of and index[other] < index[node]}

    def _error(self, node):
        """How far the record is from what follows from the ones before it, in units."""
        got, fine = self.replay.own[node], np.isfinite(self.replay.own[node])
        return largest((got - self.replay.expected[node])[fine]) / self.units[node]

    def _left(self, node, array, exact=False):
        """Units that `array` leaves unexplained of a record; None where it does not reproduce it."""
        got, error = self.replay.own[node], self._error(node)
        if array.shape != got.shape:
            return None
        if not np.isfinite(got).all():
            return overflows_alike(array, got)
        with np.errstate(invalid="ignore", over="ignore"):
            left = float(np.abs(array - got).max()) / self.units[node]
        fits = left <= min(CLOSER * error, LIMIT) or left <= min(FAINT[1] * error, FAINT[0])
        return left if fits else None

    def explains(self, node, changes) -> tuple[float, set] | None:
        """(units that changes leave unexplained of a record, the misfits they reproduce, this one among them); None
        where they do not reproduce it, or contradict another record."""
        if not changes:
            return None
        left, reproduced, finite = None, set(), bool(np.isfinite(self.replay.own[node]).all())
        with np.errstate(all="ignore"):
            try:
                for other, value in self.replay.changed(changes, None if finite else np.float32):
                    self.spent += value.size
                    if other in self.units and other not in self.misfits:
                        if finite and largest(value - self.replay.own[other]) > LIMIT * self.units[other]:
                            return None  # a record that was found right would be wrong
                        continue
                    fits = self._left(other, value) if other in self.units else None
                    if other is node and fits is None:
                        return None
                    if fits is not None:
                        reproduced.add(other)
                        left = fits if other is node else left
            except (MmrefError, ValueError, IndexError, KeyError):  # a mistake that cannot be made with these shapes
                return None
        return None if left is None else (left, reproduced)

    def _others_parameters(self, node, suspects):
        """Another layer's parameters in place of a layer's own: of one operation, or of all in a layer around it."""
        inside = set(suspects)
        for depth in (0, 1):
            for place in dict.fromkeys(_above(one.layer, depth) for one in suspects):
                mine = self._with_constants(place)
                if not mine or not set(mine) <= inside or depth and len(mine) < 2:
                    continue
                for other in dict.fromkeys(_above(one.layer, depth) for one in self.replay):
                    if other == place or self.spent > self.budget:
                        continue
                    theirs = self._with_constants(other)
                    if [_kind(one) for one in theirs] != [_kind(one) for one in mine]:
                        continue
                    explained = self.explains(node, {a: _with(b) for a, b in zip(mine, theirs, strict=True)})
                    if explained is not None:
                        yield Diagnosis("weights-exchanged", f"holds the parameters of {other}", place, explained[0])

    def _with_constants(self, place):
        if not hasattr(self, "_places"):
            self._places = {}
            for one in self.replay:
                if any(isinstance(value, Constant) for value in one.operands.values()):
                    for depth in (0, 1):
                        nodes = self._places.setdefault(_above(one.layer, depth), [])
                        if one not in nodes:
                            nodes.append(one)
        return self._places.get(place, [])

    def _recovered(self, node):
        got = self.replay.own[node]
        values = _Known(self.replay)

        def fits(array):
            return self._left(node, array) is not None
        try:
            eps = recovered_eps(node, values, got, fits)
            if eps is not None:
                yield Diagnosis("bn-eps", f"batch norm's eps is {eps:.2g} instead of the reference's",
                                self.name_of[node], 0.0)
                return
            weights = recovered(node, values, got, fits)
        except MmrefError:
            return
        if weights:
            kind, ours, theirs = weights
            yield Diagnosis("weights", f"right arithmetic, other weights: {described(kind, ours, theirs)}",
                            self.name_of[node], 0.0)


def _plants(suspects):
    """(mistake, the operations it is made in): in all of a kind at once, then in one at a time, last ones first."""
    kinds = {}
    for one in suspects:
        kinds.setdefault(one.name, []).append(one)
    for kind, nodes in kinds.items():
        if len(nodes) > 1:
            yield from ((fault, nodes) for fault in FAULTS.get(kind, ()))
    for one in suspects:
        yield from ((fault, [one]) for fault in FAULTS.get(one.name, ()))


class _Known:
    """Values by node, and which of them the candidate recorded."""

    def __init__(self, replay):
        self.values, self.recorded = replay.values, set(replay.own)

    def __getitem__(self, node):
        return self.values[node]

    def __contains__(self, node):
        return node in self.values


def _above(layer, depth):
    return layer.rsplit(".", depth)[0] if depth else layer


def _kind(node):
    return node.name, tuple((name, value.shape) for name, value in node.operands.items() if isinstance(value, Constant))


def _with(other):
    constants = {name: value for name, value in other.operands.items() if isinstance(value, Constant)}

    def computed(operands, attributes):
        theirs = {name: value.value().astype(operands[name].dtype) for name, value in constants.items()}
        return apply(other.operation, {**operands, **theirs}, attributes)
    return computed


def overflows_alike(array, got):
    """0 where two arrays are finite in the same places and alike there (what is near overflow is rounded coarsely)."""
    fine = np.isfinite(got)
    both = fine & np.isfinite(array)
    alike = (np.isfinite(array) == fine).mean() > 0.99
    if both.sum() < max(32, 0.01 * got.size):  # too little is left to tell causes apart
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(array - got)[both] <= 1e-2 * np.abs(got[both]) + 1e-3 * largest(got[both])
    return 0.0 if alike and not np.isfinite(array).all() and near.all() else None
