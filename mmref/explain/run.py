"""One run, operation by operation: what every operation of the network's graph read and gave.

The page is drawn from the graph of the network's own text and the values of this run, so it knows no network.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mmref.errors import ValueProblem
from mmref.graph.graph import Constant, Graph, Node
from mmref.graph.trace import trace
from mmref.nn.layer import Layer


@dataclass
class Run:
    """A network, its graph for one picture, and what the graph's nodes gave for it (`values`, batch axis kept)."""

    model: Layer
    graph: Graph
    values: dict[Node, np.ndarray] = field(default_factory=dict)
    read: dict[Node, dict[str, np.ndarray]] = field(default_factory=dict)  # operands of scans and wavelets, by name
    layers: dict[str, Layer] = field(default_factory=dict)                 # those that were called, by name

    @property
    def input(self) -> Node:
        return self.graph.inputs[0]

    @property
    def output(self) -> np.ndarray:
        """What the network answers."""
        return self.values[self.graph.outputs[0]]

    def inside(self, layer: str) -> list[Node]:
        """The nodes that a layer and those in it made."""
        return [node for node in self.graph if node.operation is not None and within(node.layer, layer)]

    def own(self, layer: str) -> list[Node]:
        """The nodes that a layer's own text made."""
        return [node for node in self.graph if node.operation is not None and node.layer == layer]

    def given(self, layer: str) -> Node | None:
        """What a layer reads first from outside; None for one that computes nothing."""
        inside = self.inside(layer)
        known = set(inside)
        return next((source for node in inside for source in node.sources if source not in known), None)


def within(name: str, layer: str) -> bool:
    """Whether a layer's name is that of `layer` or of one in it; "" is the network."""
    return not layer or name == layer or name.startswith(layer + ".")


def observe(model, x: np.ndarray) -> Run:
    """Run `model` on x (1, C, H, W). Raises NotTraceable where its text cannot be traced, ShapeError for an input it
    cannot run, ValueProblem where a layer gives NaN or infinity and for a network of several results."""
    model = model.frozen()
    model.check_input(x)
    graph = trace(model.forward, model, x.shape)
    if graph.structure != 0:
        raise ValueProblem(f"a page shows networks with one result, and {model.config.name} gives {len(graph.outputs)} "
                           f"maps, as detectors do: choose a classifier or a network for segmentation (mmref models)")
    run = Run(model, graph, {graph.inputs[0]: x})

    def seen(node, operands, value):
        if not np.isfinite(value).all():
            raise ValueProblem(f"{node.layer or 'the network'}: {node.name} gave NaN or infinity for this picture: "
                               f"there is nothing to draw")
        run.values[node] = value
        if node.name in ("selective_scan", "analysis", "synthesis"):
            run.read[node] = operands
    graph.run(x, seen=seen)
    run.layers = {path: layer for path, layer in model.walk() if path in graph.layers or not path}
    return run


def constant_names(node: Node) -> list[str]:
    """The parameters that an operation reads, by name."""
    return [operand.name for operand in node.operands.values() if isinstance(operand, Constant)]
