"""What a forward has to do, counted from a network's graph: nothing is measured, so no machine is in it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from mmref.graph.graph import Graph, Node
from mmref.graph.passes import fused
from mmref.graph.trace import trace

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Work:
    """Of one picture.

    macs           multiply-adds of convolutions and linear layers, as papers count them: without scans, norms, gates
                   and the wavelets' own filters
    state_updates  of all scans: steps times channels times states, each an exponential and two multiply-adds
    steps          that wait for each other: the lengths of all sequences, direction by direction
    bytes          that move at least: what every operation of the fused graph reads and writes, weights included, each
                   once; a cache may spare some of it, and parts of a map or joins of them cost nothing
    """

    macs: int
    state_updates: int
    steps: int
    bytes: int


def work(model, height: int | None = None, width: int | None = None) -> Work:
    """The work of a NumPy model on one picture of that size (default: the training size). NotTraceable as `trace`."""
    height = height or model.config.img_size
    graph = trace(model.forward, model, (1, model.config.in_chans, height, width or height))
    scans = [node for node in graph if node.name == "selective_scan"]
    return Work(sum(map(_macs, graph)), sum(prod(node.shape[1:]) * node.operands["A"].shape[2] for node in scans),
                sum(node.shape[1] * node.shape[3] for node in scans), _moved(fused(graph)))


def _macs(node: Node) -> int:
    """Every weight is used once for each pixel of the result, or each step."""
    if node.name in ("conv2d", "depthwise_conv2d"):
        return prod(node.operands["weight"].shape) * prod(node.shape[2:])
    if node.name == "conv_transpose2d":          # of the input
        return prod(node.operands["weight"].shape) * prod(node.operands["x"].shape[2:])
    if node.name in ("project", "causal_conv"):
        return prod(node.operands["weight"].shape) * node.shape[3]
    return prod(node.operands["weight"].shape) if node.name == "linear" else 0


def _moved(graph: Graph) -> int:
    return FLOAT_BYTES * sum(prod(value.shape) for node in graph
                             if node.operation is not None and node.name not in ("slice_axis", "concatenate")
                             for value in (node, *node.operands.values()))
