"""A graph as a table for people."""

from __future__ import annotations

from mmref.graph.graph import Constant, Graph
from mmref.graph.trace import Extent

TITLES = ("#", "operation", "layer", "reads", "constants", "attributes", "result")


def rows(graph: Graph) -> list[tuple[str, ...]]:
    """One row per node, in order: number, operation, layer, numbers of the nodes it reads, shapes of its constants,
    other arguments, shape of its result."""
    number = {node: str(i) for i, node in enumerate(graph)}
    found = []
    for node in graph:
        reads = " ".join(number[source] for source in node.sources)
        constants = " ".join(f"{name}:{_shape(value.shape)}" for name, value in node.operands.items()
                             if isinstance(value, Constant))
        attributes = " ".join(f"{name}={_value(value, number)}" for name, value in node.attributes.items())
        found.append((number[node], node.name, node.layer or "(input)" * (node.operation is None), reads, constants,
                      attributes, _shape(node.shape)))
    return found


def _shape(shape):
    return "x".join(map(str, shape))


def _value(value, number):
    if isinstance(value, Extent):  # a size that follows the picture's
        axis = "batch channels height width".split()[value.axis]
        return f"{axis} of {number[value.node]}" if value.node in number else str(value)
    return value if isinstance(value, str) else repr(value)
