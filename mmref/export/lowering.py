"""From a graph of operations to ONNX: what the emitters (operations.py, scans.py) have in common.

There is one emitter for each operation. It is called with the lowering `g` and the operation's own arguments: operands
are nodes or constants of the graph, and where a length of the input stands for a number (height, width, start, stop) a
node of operation `size`. It returns the ONNX value of the result as it is, or (form, value).

A value may stand in several forms, whatever its readers like best; each is made once, when first asked for:

    AS_IS    the array as the text has it
    PIXELS   a map (B, C, H, W) as (H, W, B, C)
    STEPS    sequences (B, K, C, L) as K values (L, B, C), a list: one for each direction
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mmref.errors import NotTraceable
from mmref.export.builder import GraphBuilder
from mmref.export.graph import size
from mmref.graph.graph import Constant, Graph, Node
from mmref.nn.operation import apply

AS_IS, PIXELS, STEPS = "as is", "pixels", "steps"
POSITIONS = {PIXELS: (2, 3, 0, 1), STEPS: (1, None, 2, 0)}  # of the text's axes in these forms

EMITTERS: dict[Callable, Callable] = {}  # by operation


def emits(operation: Callable):
    """Decorator: what it decorates is the emitter of this operation."""
    def register(emitter):
        EMITTERS[operation] = emitter
        return emitter
    return register


class Axis(NamedTuple):
    """A length that is known when the graph runs: that of an axis of an ONNX value."""

    value: str
    position: int


class Lowering(GraphBuilder):
    """Appends nodes for every node of a graph.

    scopes      the layer after which a graph's node is named
    parameters  names of constants that are kept; what is computed from parameters is named after layer and operand
    """

    def __init__(self, scopes: dict[Node, str], parameters):
        super().__init__()
        self.scopes, self.parameters = scopes, frozenset(parameters)
        self.values: dict[Node, dict[str, str | list[str]]] = {}
        self.inputs: list[str] = []            # values of the graph's inputs
        self.here: Node | None = None          # the node in hand
        self._known: dict[tuple, str] = {}     # initialisers by constant and what became of it
        self._shapes: dict[tuple, str] = {}    # values that hold sizes
        self._cuts: dict[tuple, list] = {}
        self._splits: dict[tuple, tuple] = {}

    def lower(self, graph: Graph, inputs: list[str]) -> list[str]:
        """Append everything; returns the outputs' values, as they are. NotTraceable for what has no emitter."""
        self.inputs = [self.unique(name) for name in inputs]
        self.values = {node: {AS_IS: name} for node, name in zip(graph.inputs, self.inputs, strict=True)}
        self._cuts = _cuts(graph)
        for node in graph:
            if node.operation in (None, size):
                continue
            self.here, self.scope = node, self.scopes[node]
            if node.operation not in EMITTERS:
                raise NotTraceable(f"operation {node.name!r}, which layer {node.layer!r} uses, cannot be written in "
                                   f"ONNX (backend 'numpy' runs it)")
            made = apply(node.operation, {"g": self, **node.operands}, node.attributes, EMITTERS[node.operation])
            self.values[node] = dict([made]) if isinstance(made, tuple) else {AS_IS: made}
        return [self.take(node) for node in graph.outputs]

    # ------------------------------------------------------------------------------------------------ operands

    def form(self, *operands: Node | Constant) -> str:
        """The form in which all operands are there already (constants are in any), AS_IS where there is none."""
        forms = [set(self.values[operand]) for operand in operands if isinstance(operand, Node)]
        common = set.intersection(*forms)
        return next((form for form in (AS_IS, PIXELS, STEPS) if form in common), AS_IS)

    def take(self, operand: Node | Constant, form: str = AS_IS):
        """The value of an operand, in this form: a list for STEPS."""
        if isinstance(operand, Constant):
            if form == AS_IS:
                return self.known(operand)
            if form == PIXELS:
                return self.known(operand, PIXELS, lambda array: array.transpose(2, 3, 0, 1))
            return [self.known(operand, f"[{k}]", lambda array, k=k: array[:, k].transpose(2, 0, 1))
                    for k in range(operand.shape[1])]
        forms = self.values[operand]
        if AS_IS not in forms and form not in forms:
            forms[AS_IS] = self.transpose(forms[PIXELS], 2, 3, 0, 1) if PIXELS in forms else self._joined(forms[STEPS])
        if form not in forms:
            forms[form] = self.transpose(forms[AS_IS], 2, 3, 0, 1) if form == PIXELS else self._apart(operand)
        return forms[form]

    def position(self, axis: int, form: str) -> int | None:
        """Where an axis of the text's stands in this form; None for the directions of STEPS, which are a list."""
        return axis if form == AS_IS else POSITIONS[form][axis]

    def each(self, function: Callable, form: str, *operands: Node | Constant):
        """(form, function of the operands' values), applied to every direction for STEPS; one value goes with all."""
        values = [self.take(operand, form) for operand in operands]
        if form != STEPS:
            return form, function(*values)
        count = max(map(len, values))
        return form, [function(*(value[k % len(value)] for value in values)) for k in range(count)]

    def known(self, operand: Constant, what: str = "", change: Callable = np.asarray) -> str:
        """The initialiser of a constant, or of what `change` makes of it; `what` tells the changes apart."""
        if not isinstance(operand, Constant):
            raise NotTraceable(f"layer {self.here.layer!r} computes {self._name_of(operand)!r} of operation "
                               f"{self.here.name!r} from the network's input, which cannot be written in ONNX")
        key = operand.key, what
        if key not in self._known:
            known = operand.name in self.parameters
            name = operand.name if known else self.scoped(self._name_of(operand))
            index = what if what.startswith("[") else ""
            self._known[key] = self.constant(self.unique(name + index), change(operand.value()))
        return self._known[key]

    def _name_of(self, operand):
        return next(name for name, value in self.here.operands.items() if value is operand)

    def _joined(self, sequences):
        apart = [self.node("Unsqueeze", [sequence, self.integers(2)]) for sequence in sequences]
        return self.transpose(self.concatenate(apart, 2), 1, 2, 3, 0)       # (L, B, K, C) -> (B, K, C, L)

    def _apart(self, node):
        K = node.shape[1]
        apart = self.split(self.transpose(self.values[node][AS_IS], 3, 0, 1, 2), [1] * K, 2)
        return [self.node("Squeeze", [value, self.integers(2)]) for value in apart]

    # --------------------------------------------------------------------------------------------------- sizes

    def axis(self, x: Node, axis: int) -> Axis | int:
        """The length of an axis of x: a number where it is the same for all inputs."""
        if x.shape[axis] == x.elsewhere[axis]:
            return x.shape[axis]
        form, value = next(iter(self.values[x].items()))
        position = self.position(axis, form)
        return Axis(value[0] if form == STEPS else value, position)

    def sizes(self, *parts: Node | Axis | int) -> str:
        """A vector of integers: numbers, lengths of axes, nodes of operation `size`."""
        parts = [self.axis(part.operands["x"], **part.attributes) if isinstance(part, Node) else part for part in parts]
        runs: list[list] = []
        for part in parts:
            if runs and _continues(runs[-1][-1], part):
                runs[-1].append(part)
            else:
                runs.append([part])
        vectors = [self._shape(run[0], len(run)) if isinstance(run[0], Axis) else self.integers(*run) for run in runs]
        return vectors[0] if len(vectors) == 1 else self._once("Concat", vectors, axis=0)

    def _shape(self, first, count):
        return self._once("Shape", [first.value], start=first.position, end=first.position + count)

    def _once(self, op, inputs, **attributes):
        key = op, *inputs, *attributes.values()
        if key not in self._shapes:
            self._shapes[key] = self.node(op, inputs, **attributes)
        return self._shapes[key]

    # -------------------------------------------------------------------------------------------------- slices

    def sliced(self, x: Node, axis: int, start, stop, step: int):
        """(form, part) of x along an axis. Parts that make up the whole are cut off at once."""
        form, cuts = self.form(x), self._cuts.get((x, axis), ())
        position = self.position(axis, form)
        if position is None:
            return form, self.take(x, form)[start:stop:step]
        if (start, stop, step) in cuts:
            if (x, axis) not in self._splits:
                widths = [end - begin for begin, end, _ in cuts]
                self._splits[x, axis] = self.each(lambda value: self.split(value, widths, position), form, x)
            (form, parts), i = self._splits[x, axis], cuts.index((start, stop, step))
            return form, [part[i] for part in parts] if form == STEPS else parts[i]
        bounds = self.sizes(start), self.sizes(stop), self.integers(position), self.integers(step)
        return self.each(lambda value: self.node("Slice", [value, *bounds]), form, x)

    def cropped(self, x: str, height: Node | int, width: Node | int) -> str:
        """The first rows and columns of a map (B, C, H, W)."""
        bounds = self.integers(0, 0), self.sizes(height, width), self.integers(2, 3)
        return self.node("Slice", [x, *bounds])


def _continues(last, part):
    """Whether a size follows another in one vector: numbers do, and neighbouring axes of one value."""
    if isinstance(last, Axis) and isinstance(part, Axis):
        return last.value == part.value and last.position + 1 == part.position
    return not isinstance(last, Axis) and not isinstance(part, Axis)


def _cuts(graph):
    """{(node, axis): [(start, stop, 1), ...]} where slices of the node make up its whole axis, one after another."""
    found: dict[tuple, set] = {}
    for node in graph:
        bounds = tuple(node.attributes.get(name) for name in ("start", "stop", "step"))
        if node.name == "slice_axis" and None not in bounds:
            found.setdefault((node.operands["x"], node.attributes["axis"]), set()).add(bounds)
    cuts = {key: sorted(parts) for key, parts in found.items()}
    return {(x, axis): parts for (x, axis), parts in cuts.items()
            if len(parts) > 1 and [start for start, _, _ in parts] == [0, *(stop for _, stop, _ in parts[:-1])]
            and parts[-1][1] == x.shape[axis] and all(step == 1 for _, _, step in parts)}
