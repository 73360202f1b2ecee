"""A graph of operations: what a network's text does to arrays of given shapes.

A `Node` is one call of an operation; a `Constant` is an array that does not depend on the input: a parameter,
something that the text computes from parameters, or something that a pass derives from them (passes.py). Nodes stand in
the order in which the text makes them, so each comes after those it reads. Nothing in a graph is ever changed: a pass
makes another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mmref.arguments import Shaped
from mmref.nn.operation import apply


class Constant(Shaped):
    """An array known before any input is: `value()` computes it anew, so that nobody keeps what is needed once.

    name   a parameter's checkpoint name, or what was done to which ("blocks1.0.dw0.m.c.weight, batch norm folded")
    key    equal for two constants of one model that have one value: what a backend has laid out once serves every graph
    """

    __slots__ = ("name", "key", "shape", "dtype", "make")

    def __init__(self, name: str, key, shape, dtype, make: Callable[[], np.ndarray]):
        self.name, self.key, self.shape, self.dtype, self.make = name, key, tuple(shape), np.dtype(dtype), make

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def value(self) -> np.ndarray:
        array = self.make()
        return array if array.dtype == self.dtype else array.astype(self.dtype)

    def __repr__(self):
        return f"Constant({self.name}, {self.shape})"


def derived(what: str, shape, function: Callable, *sources: Constant) -> Constant:
    """A constant computed from others, in their dtype: `function(*their values)`. `what` says what was done, in words;
    the same `what` with the same sources must mean the same function."""
    first = sources[0]
    return Constant(f"{first.name}, {what}", (what, *(source.key for source in sources)), shape, first.dtype,
                    lambda: function(*(source.value() for source in sources)))


@dataclass(eq=False, slots=True)
class Node(Shaped):
    """One call of an operation. The input of a graph is a node too, of operation None."""

    operation: Callable | None
    operands: dict[str, Node | Constant]   # by the operation's parameter names
    attributes: dict[str, object]          # its other arguments
    layer: str                             # path of the layer that made the call
    shape: tuple[int, ...]
    dtype: np.dtype
    elsewhere: tuple[int, ...] = ()        # the shape for another batch and size of picture
    sources: tuple[Node, ...] = field(init=False, repr=False)  # the operands that are nodes

    def __post_init__(self):
        self.sources = tuple([value for value in self.operands.values() if type(value) is Node])

    @property
    def name(self) -> str:
        return self.operation.name if self.operation else "input"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def constants(self) -> list[Constant]:
        """The operands that are constants."""
        return [value for value in self.operands.values() if isinstance(value, Constant)]

    def __repr__(self):
        return f"Node({self.name}, {self.layer}, {self.shape})"


@dataclass
class Graph:
    """Nodes in order; `inputs` first. `outputs` lie in `structure` as the traced function returned them: an index of
    `outputs`, or tuples, lists and dictionaries of such."""

    nodes: list[Node]
    inputs: list[Node]
    outputs: list[Node]
    structure: object = 0
    layers: dict[str, Node] = field(default_factory=dict)  # what each layer that was called returned
    fixed_by: str | None = None  # a layer that computes with the input's size: then the graph holds for that one only

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def users(self) -> dict[Node, list[Node]]:
        """{node: those that read it, once for each time}; an output is read by nobody in the graph."""
        readers = {node: [] for node in self.nodes}
        for node in self.nodes:
            for operand in node.sources:
                readers[operand].append(node)
        return readers

    def run(self, *arrays: np.ndarray, seen: Callable[[Node, dict, np.ndarray], None] | None = None):
        """The graph computed in NumPy, operation by operation, on arrays of its inputs' shapes. `seen` is called for
        every node with the values of its operands by name, and its own."""
        values = dict(zip(self.inputs, arrays, strict=True))
        for node in self.nodes:
            if node.operation is not None:
                operands = {name: operand.value() if isinstance(operand, Constant) else values[operand]
                            for name, operand in node.operands.items()}
                attributes = {name: getattr(value, "value", value) for name, value in node.attributes.items()}
                values[node] = apply(node.operation, operands, attributes)
                if seen is not None:
                    seen(node, operands, values[node])
        return self.arrange([values[node] for node in self.outputs])

    def arrange(self, results):
        """Values of `outputs`, in the structure in which the traced function returned them."""
        return _arranged(self.structure, results)


def _arranged(part, results):
    """No function within `arrange` that calls itself: it would be a cycle, which keeps results alive until Python looks
    for such, and the logits of a large picture are 150 MB."""
    if isinstance(part, int):
        return results[part]
    if isinstance(part, dict):
        return {name: _arranged(inner, results) for name, inner in part.items()}
    return type(part)(_arranged(inner, results) for inner in part)


def rewrite(graph: Graph, rule: Callable[[Node, Callable[[Node], bool]], Node | None]) -> Graph:
    """The graph in which every node is what `rule(node, only)` makes of it, None for the node itself.

    The rule sees nodes in order, their operands being rewritten already. `only(operand)` tells whether the node in hand
    is all that reads that operand, which may then vanish into it. What nothing reads afterwards is left out.
    """
    readers = dict.fromkeys(graph.nodes, 0)
    for node in graph.nodes:
        for source in node.sources:
            readers[source] += 1
    for node in graph.outputs:
        readers[node] += 2                       # whoever asked for it reads it too, and it must stay
    new: dict[Node, Node] = {}
    origin: dict[Node, Node] = {}                # rewritten node: the node of `graph` whose value it has

    def only(operand):
        old = origin.get(operand)                # None for a node that a rule has made beside the one it returned
        return old is None or readers[old] == 1

    for old in graph.nodes:
        node = old
        for source in old.sources:
            if new[source] is not source:
                operands = {name: new.get(value, value) for name, value in old.operands.items()}
                node = Node(old.operation, operands, old.attributes, old.layer, old.shape, old.dtype, old.elsewhere)
                break
        origin[node] = old
        made = rule(node, only) if old.operation is not None else None
        if made is not None:
            origin.setdefault(made, old)
            node = made
        new[old] = node
    return collect(graph, new)


def collect(graph: Graph, new: dict[Node, Node]) -> Graph:
    """The graph made of the values that `new` gives for the old nodes: in the old order, whatever a node reads before
    it; what nothing reads is left out."""
    outputs = [new[node] for node in graph.outputs]
    wanted, pending = set(), list(outputs)
    while pending:
        node = pending.pop()
        if node not in wanted:
            wanted.add(node)
            pending += node.sources
    order: dict[Node, None] = {}

    def place(node):
        for source in node.sources:
            if source not in order:              # a rule has made it beside the one it returned
                place(source)
        order[node] = None
    for old in graph.nodes:
        node = new[old]
        if (node in wanted or old.operation is None) and node not in order:
            place(node)
    layers = {name: new[node] for name, node in graph.layers.items() if new[node] in order}
    return Graph(list(order), [new[node] for node in graph.inputs], outputs, graph.structure, layers,
                 graph.fixed_by)
