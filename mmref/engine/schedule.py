"""In which order a graph's operations run, and which of their results lie in one piece of memory.

Shared by all engines. A value of the graph is rows of channels: a pixel of a map, a step of a sequence or a sample's
features is a row. Three things cost nothing then: a slice of channels is an address; a concatenation of channels is a
buffer into which its parts are written; a sum with a shortcut that nobody needs afterwards is made in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mmref.errors import NotTraceable
from mmref.graph.graph import Graph, Node
from mmref.kernels.target import round_up

SEQUENCES = ("cross_scan", "project", "selective_scan")  # their results are (B, K, channels, L)


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
class Schedule:
    """Nodes that need an operation, in the order of their levels, and where every node's value lies."""

    order: list[Node]
    level: dict[Node, int]
    region: dict[Node, Region] = field(repr=False)
    last_level: int = 0


def channel_axis(node: Node) -> int:
    """1 for maps and features, 2 for sequences."""
    while node.name not in SEQUENCES:
        inherited = next((operand for operand in node.nodes() if operand.ndim == node.ndim), None)
        if inherited is None or node.name in ("cross_merge", "conv2d", "linear", "input"):
            return 1
        node = inherited
    return 2


def rows_of(node: Node) -> int:
    """Rows of one image."""
    axis, rows = channel_axis(node), 1
    for i, size in enumerate(node.shape):
        if i not in (0, axis):
            rows *= size
    return rows


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
    for node in graph:
        check_batch_stays(node)
    level = {}
    for node in graph:
        below = max((level[operand] for operand in node.nodes()), default=-1)
        level[node] = below if node.operation is not None and (is_view(node) or is_join(node)) else below + 1
    position = {node: i for i, node in enumerate(graph)}
    order = sorted((node for node in graph if not is_view(node)), key=lambda node: (level[node], position[node]))
    users = graph.users()
    region = _places(graph, level, users, exact, in_place, bordered)
    final = max(level.values(), default=0)
    for node in graph:
        buffer = region[node].buffer
        buffer.first = min(buffer.first, level[node])
        for reader in users[node]:
            buffer.last = max(buffer.last, level[reader])
    for node in graph.outputs:
        region[node].buffer.last = max(region[node].buffer.last, level[node])
    return Schedule(order, level, region, final)


def root(node: Node) -> Node:
    """The node whose memory a view shows."""
    while is_view(node):
        node = node.operands["x"]
    return node


def check_batch_stays(node: Node) -> None:
    """NotTraceable for an operation that cuts or joins the batch: engines run its samples one by one."""
    if node.attributes.get("axis") == 0:
        raise NotTraceable(f"layer {node.layer!r} uses {node.name} on the batch axis, which compiled backends do not "
                           f"know: samples must stay apart (backend 'numpy' runs it)")


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
        if sum(root(other) is operand for other in node.nodes()) != 1:
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
            if operand not in outputs and operand.shape == node.shape and dies(operand, node) and give(operand, place):
                break
    for node in graph.nodes:
        if is_view(node):
            source = region[node.operands["x"]]
            start = node.attributes["start"]
            region[node] = Region(source.buffer, source.start + start, node.attributes["stop"] - start)
    return region
