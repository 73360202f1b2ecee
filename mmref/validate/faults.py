"""Mistakes that ports make, each as a change of operations of a network's graph.

`FAULTS[operation]` lists `Fault`s. `plant(graph, node)` gives {node: change} for one node of that operation, where a
change computes the node's value from its operands and attributes; None where the mistake cannot be made there. A fault
knows operations and no network, so it is tried wherever a network has such an operation. Keys are what
`mmref compare --json` reports; several faults may share one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmref.graph.graph import Node
from mmref.nn.operation import apply
from mmref.validate.replay import Indexed


@dataclass(frozen=True)
class Fault:
    """A mistake: `key` for programs, `text` for people."""

    key: str
    text: str
    plant: Callable[[Indexed, Node], dict | None]


FAULTS: dict[str, list[Fault]] = {}


def plants(operations, key, text):
    """Decorator: register `plant(graph, node)` for these operations."""
    def register(plant):
        for name in (operations,) if isinstance(operations, str) else operations:
            FAULTS.setdefault(name, []).append(Fault(key, text, plant))
        return plant
    return register


def gives(operations, key, text, function, when=lambda graph, node: True):
    """A fault that computes `function(result, operands, attributes)`, `result(**instead)` being the right operation,
    with other operands or attributes where they are given."""
    def plant(graph, node):
        if not when(graph, node):
            return None

        def change(operands, attributes):
            def result(**instead):
                return apply(node.operation, {n: instead.get(n, v) for n, v in operands.items()},
                             {n: instead.get(n, v) for n, v in attributes.items()})
            return function(result, operands, attributes)
        return {node: change}
    plants(operations, key, text)(plant)


def result_is(operations, key, text, function, when=lambda graph, node: True):
    """A fault that does something to the right result."""
    gives(operations, key, text, lambda result, o, a: function(result()), when)
