"""A network's graph run on a candidate's own records: what each of them should be, given those before it.

Every record of the candidate takes the place of the value it names, so a record is computed from the candidate's
nearest earlier ones. One that does not follow from them is wrong by itself, whatever happened before it: that tells a
wrong layer from a right layer with a wrong input, and finds several causes in one run. Mistakes are tried by running
the few operations between records again with one of them changed. Nothing here knows a network: it walks the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from mmref.graph.graph import Constant, Graph, Node
from mmref.graph.trace import plain, trace
from mmref.nn.operation import apply
from mmref.validate.trace import record_name

# What a scan records of its inside, as operands of the operation; `y` is its result, `merged` what is made of it.
SCAN_OPERANDS = ("u", "delta", "B", "C")
Change = Callable[[dict, dict], np.ndarray]  # (operands by name, attributes) -> the node's value


def graph_of(model, shape) -> tuple[Graph, dict[str, Node]]:
    """(graph of `model` for inputs of that shape, {record name: the node that makes it}). Raises NotTraceable."""
    graph = trace(model.forward, model, shape)
    stands_for = {path: record_name(path, layer) for path, layer in model.walk()}
    names = {"input": graph.inputs[0], **{stands_for.get(name, name): node for name, node in graph.layers.items()}}
    if graph.structure == 0:
        names["output"] = graph.outputs[0]
    users = graph.users()
    for node in graph:
        layer = node.layer
        while layer:  # what goes into every layer around the operation from outside it
            for source in node.sources:
                if source.layer != layer and not source.layer.startswith(f"{layer}."):
                    names.setdefault(f"{layer}:in", source)
            layer = layer.rpartition(".")[0]
        if node.name == "selective_scan":
            inside = {name: node.operands[name] for name in SCAN_OPERANDS} | {"y": node}
            if users[node]:
                inside["merged"] = users[node][0]
            names |= {f"{node.layer}:{name}": value for name, value in inside.items() if isinstance(value, Node)}
    return graph, names


def compute(node: Node, values, change: Change | None = None, dtype=None) -> np.ndarray:
    """The value of a node from those of its operands, or what `change` makes of them."""
    operands = {name: operand.value() if isinstance(operand, Constant) else values[operand]
                for name, operand in node.operands.items()}
    if dtype is not None:
        operands = {name: np.asarray(value, dtype) for name, value in operands.items()}
    attributes = plain(node.attributes)
    return change(operands, attributes) if change else apply(node.operation, operands, attributes)


def observe(graph: Graph, x) -> Iterator[tuple[Node, np.ndarray, dict[str, np.ndarray]]]:
    """(node, value, the values of its operands that are nodes) of one run on x; values are dropped once read."""
    readers = {node: len(users) for node, users in graph.users().items()}
    values = {graph.inputs[0]: x}
    for node in graph:
        if node.operation is None:
            continue
        values[node] = compute(node, values)
        operands = {name: values[operand] for name, operand in node.operands.items() if isinstance(operand, Node)}
        yield node, values[node], operands
        for operand in node.sources:
            readers[operand] -= 1
            if not readers[operand]:
                values.pop(operand, None)


class Indexed:
    """A graph that knows the readers of its nodes and their order."""

    def __init__(self, model, shape):
        self.graph, self.names = graph_of(model, shape)
        self.index = {node: i for i, node in enumerate(self.graph)}
        self.users, self.outputs = self.graph.users(), self.graph.outputs

    def __iter__(self) -> Iterator[Node]:
        return iter(self.graph)


class Replay(Indexed):
    """One run of the graph on the candidate's records `own` {record name: array of the reference's axes}.

    values    {node: the candidate's value, or what follows from the candidate's values before it}
    expected  {recorded node: what follows from the recorded ones before it}"""

    def __init__(self, model, own: dict[str, np.ndarray], shape):
        super().__init__(model, shape)
        self.own = {}
        for name, node in self.names.items():
            if name in own and own[name].shape == node.shape:
                self.own.setdefault(node, own[name])
        self.values, self.expected = {}, {}
        with np.errstate(all="ignore"):
            for node in self.graph:
                if node.operation is not None:
                    self.expected[node] = self.values[node] = compute(node, self.values)
                if node in self.own:
                    self.values[node] = self.own[node]
        self.expected = {node: value for node, value in self.expected.items() if node in self.own}

    def suspects(self, node: Node) -> list[Node]:
        """The operations between the recorded values and `node`, itself included, last ones first."""
        found, pending = {node}, [node]
        while pending:
            for source in pending.pop().sources:
                if source not in self.own and source not in found and source.operation is not None:
                    found.add(source)
                    pending.append(source)
        return sorted(found, key=self.index.get, reverse=True)

    def before(self, node: Node) -> set[Node]:
        """The recorded nodes that `node` is computed from without another record between."""
        return {source for one in self.suspects(node) for source in one.sources if source in self.own}

    def reached(self, nodes) -> list[Node]:
        """The recorded nodes that depend on `nodes` without another record between, in order."""
        found, seen, pending = set(), set(), list(nodes)
        while pending:
            node = pending.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in self.own:
                found.add(node)
            else:
                pending += self.users[node]
        return sorted(found, key=self.index.get)

    def changed(self, changes: dict[Node, Change], dtype=None, until: Node | None = None
                ) -> Iterator[tuple[Node, np.ndarray]]:
        """(recorded node, its value with these changes), in order, of those that they reach directly."""
        wanted, dirty = self.reached(changes), {}
        if not wanted:
            return
        last = self.index[wanted[-1] if until is None else until]
        values = _Layered(dirty, self.values)
        for node in self.graph.nodes[min(map(self.index.get, changes)):last + 1]:
            if node not in changes and not any(source in dirty for source in node.sources):
                continue
            value = compute(node, values, changes.get(node), dtype)
            if node in self.own:
                yield node, value
            else:
                dirty[node] = value


class _Layered:
    """Values with those that a change has made on top."""

    def __init__(self, top, below):
        self.top, self.below = top, below

    def __getitem__(self, node):
        return self.top[node] if node in self.top else self.below[node]
