"""In which order a graph's operations run, and which of their results lie in one piece of memory.

Shared by all engines. A value of the graph is rows of channels: a pixel of a map, a step of a sequence or a sample's
features is a row. Three things cost nothing then: a slice of channels is an address; a concatenation of channels is a
buffer into which its parts are written; a sum with a shortcut that nobody needs afterwards is made in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

from mmref.graph.graph import Graph, Node
from mmref.kernels.target import round_up

# their results are (B, K, channels, L)
SEQUENCES = ("cross_scan", "project", "selective_scan", "causal_conv", "path_conv")
OF_SEQUENCES = ("cross_merge", "project", "selective_scan", "causal_conv", "sequence_scan")  # they read such
INHERITING = frozenset(("slice_axis", "concatenate", "add", "multiply", "relu", "relu6", "sigmoid", "silu", "softplus",
                        "gelu"))


@dataclass(eq=False)
class Buffer:
    """One piece of memory: `rows` of each image, `channels` side by side. Lives from level `first` to level `last`."""

    rows: int
    channels: int
    first: int
    last: int
    border: int | None = None  # a map for window convolutions: so many pixels of zeros on every side


@dataclass(frozen=True)
class Region:
    """Some channels of a buffer."""

    buffer: Buffer
    start: int
    channels: int


@dataclass
class Stage:
    """What belongs to one level: nodes that may run at once, outputs that are done, buffers used first and last."""

    nodes: list[Node] = field(default_factory=list)
    results: list[int] = field(default_factory=list)
    first: list[Buffer] = field(default_factory=list)
    last: list[Buffer] = field(default_factory=list)


@dataclass
class Schedule:
    """Levels in order, and where every node's value lies."""

    stages: list[Stage]
    region: dict[Node, Region] = field(repr=False)

    @property
    def order(self) -> list[Node]:
        return [node for stage in self.stages for node in stage.nodes]


def channel_axis(node: Node) -> int:
    """1 for maps and features, 2 for sequences."""
    while node.name in INHERITING:
        node = next(operand for operand in node.operands.values() if isinstance(operand, Node))
    return 2 if node.name in SEQUENCES else 1


def fits_layout(operand: Node, node: Node) -> bool:
    """Whether an operand's rows hold the channels that the node's kernel takes them for."""
    if node.name in INHERITING:
        return channel_axis(operand) == channel_axis(node)
    of_sequences = node.name in OF_SEQUENCES and operand is not node.operands.get("factor")  # which is a map
    return channel_axis(operand) == (2 if of_sequences else 1)


def rows_of(node: Node) -> int:
    """Rows of one image."""
    return prod(node.shape[1:]) // max(node.shape[channel_axis(node)], 1)


def is_view(node: Node) -> bool:
    """Whether it is a slice of channels that lie side by side: an address, not an operation."""
    return (node.name == "slice_axis" and node.attributes["step"] == 1
            and node.attributes["axis"] == channel_axis(node))


def is_join(node: Node) -> bool:
    """Whether it puts channels side by side, so that its parts can be written where they belong."""
    return node.name == "concatenate" and node.attributes["axis"] == channel_axis(node)


def schedule(graph: Graph, exact: Callable[[Node], bool], in_place: Callable[[Node], list[Node]],
             bordered: Callable[[Node], int | None]) -> Schedule:
    """Order and memory of a graph.

    exact(node)     whether the kernel writes no more than the node's channels, so that others may lie beside them
    in_place(node)  operands in whose place the kernel may write its result, best first
    bordered(node)  width of the border of zeros that all readers of the node want around it, None for plain rows
    """
    level = {}
    for node in graph:
        below = max((level[operand] for operand in node.sources), default=-1)
        level[node] = below if node.operation is not None and (is_view(node) or is_join(node)) else below + 1
    stages = [Stage() for _ in range(max(level.values(), default=-1) + 1)]
    for node in graph:
        if not is_view(node):
            stages[level[node]].nodes.append(node)
    users = graph.users()
    region = _places(graph, level, users, exact, in_place, bordered)
    for node in graph:
        buffer = region[node].buffer
        buffer.first = min(buffer.first, level[node])
        for reader in users[node]:
            buffer.last = max(buffer.last, level[reader])
    for index, node in enumerate(graph.outputs):
        region[node].buffer.last = max(region[node].buffer.last, level[node])
        stages[level[node]].results.append(index)
    for buffer in dict.fromkeys(place.buffer for place in region.values()):
        stages[buffer.first].first.append(buffer)
        stages[buffer.last].last.append(buffer)
    return Schedule(stages, region)


def root(node: Node) -> Node:
    """The node whose memory a view shows."""
    while is_view(node):
        node = node.operands["x"]
    return node


def _places(graph, level, users, exact, in_place, bordered):
    """{node: Region}. Later nodes say where earlier ones may be written, so the graph is walked backwards."""
    region: dict[Node, Region] = {}
    outputs = set(graph.outputs)

    def own(node):
        channels = node.shape[channel_axis(node)]
        return Region(Buffer(rows_of(node), channels, level[node], level[node], bordered(node)), 0, channels)

    def give(node, wanted):
        """Have a node written to a region, if it has none yet and would write nothing beside it."""
        if node in region or node.operation is None or is_view(node) or bordered(node) is not None \
                or rows_of(node) != wanted.buffer.rows or wanted.buffer.border is not None:
            return False
        fits = wanted.start + round_up(wanted.channels) <= round_up(wanted.buffer.channels)
        tail = wanted.start + wanted.channels == wanted.buffer.channels and fits
        if not (exact(node) or wanted.channels == round_up(wanted.channels) or tail):
            return False
        region[node] = wanted
        return True

    def dies(operand, node):
        """Whether `node` is the last to read an operand, and reads it once: then it may be overwritten."""
        if sum(root(other) is operand for other in node.sources) != 1:
            return False
        pending = list(users[operand])
        while pending:
            reader = pending.pop()
            if is_join(reader) or reader in outputs and is_view(reader):
                return False
            if is_view(reader):
                pending += users[reader]
            elif reader is not node and level[reader] >= level[node]:
                return False
        return True

    for node in reversed(graph.nodes):
        if is_view(node):
            continue
        if node not in region:
            region[node] = own(node)
        place = region[node]
        if is_join(node):
            start = place.start
            for part in node.operands.values():
                channels = part.shape[channel_axis(node)]
                give(part, Region(place.buffer, start, channels))
                start += channels
            continue
        for operand in in_place(node):
            if operand not in outputs and operand.shape == node.shape and fits_layout(operand, node) \
                    and dies(operand, node) and give(operand, place):
                break
    for node in graph.nodes:
        if is_view(node):
            source = region[node.operands["x"]]
            start = node.attributes["start"]
            region[node] = Region(source.buffer, source.start + start, node.attributes["stop"] - start)
    return region
