"""From a graph to operations of kernels: memory for every value, one method for each kind of node.

What CPU and device plans share. A subclass has a method for each operation of the graphs that it takes, named like the
operation, which calls `emit` once for each kernel; a node without a method is an error that names operation and layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from mmref.engine.memory import Arena, Map
from mmref.engine.schedule import Buffer, Region, Schedule, is_join
from mmref.errors import NotTraceable
from mmref.graph.graph import Graph, Node

TOGETHER = -1


@dataclass
class Operation:
    """One row of a plan. `fields` are what its kernel is given."""

    kernel: str
    layer: str                    # the layer that it computes
    shape: tuple[int, ...]        # of the output, images first
    fields: dict[str, object]
    macs: int
    bytes: int                    # weights, inputs and outputs, each once
    owner: int = TOGETHER         # CPU: the thread that works on it alone
    barrier: bool = True          # CPU: whether the next one must wait for it
    touches: list[Touch] = field(default_factory=list, repr=False)


class Touch(NamedTuple):
    """Memory that an operation uses: channels low .. high - 1 of a buffer at bytes start .. end - 1 of the arena."""

    start: int
    end: int
    buffer: object
    low: int
    high: int
    written: bool

    def conflicts(self, other: Touch) -> bool:
        """Whether the two must not be in use at once."""
        if not (self.written or other.written):
            return False
        if self.buffer is other.buffer:
            return self.low < other.high and other.low < self.high
        return self.start < other.end and other.start < self.end


class Lowering:
    """Emits the operations of some images, in order, on one arena."""

    backend = ""

    def __init__(self, graph: Graph, plan: Schedule, images: int, arena: Arena):
        self.graph, self.plan, self.images, self.arena = graph, plan, images, arena
        self.operations: list[Operation] = []
        self.maps: dict[Buffer, Map] = {}
        self.node: Node | None = None
        self.scratch: list[Map] = []

    def lower(self, levels: Iterable[int]) -> None:
        """Emit everything that belongs to these levels."""
        for level in levels:
            stage = self.plan.stages[level]
            for buffer in stage.first:
                if buffer not in self.maps:
                    self.maps[buffer] = self.allocate(buffer)
            for node in stage.nodes:
                self.node = node
                self.lower_node(node)
            for index in stage.results:
                self.node = self.graph.outputs[index]
                self.result(self.node, index)
            for buffer in stage.last:
                self.release(buffer)
            self.arena.free(*self.scratch)
            self.scratch.clear()

    def lower_node(self, node: Node) -> None:
        method = getattr(self, "join" if is_join(node) else f"lower_{node.name}", None)
        if method is None:
            raise NotTraceable(f"backend {self.backend!r} has no kernel for operation {node.name!r}, which layer "
                               f"{node.layer!r} uses (backend 'numpy' runs it)")
        method(node, **{name if name.isidentifier() else f"part{name}": value for name, value in node.operands.items()})

    def allocate(self, buffer: Buffer) -> Map:
        return self.arena.map(self.images * buffer.rows, buffer.channels)

    def release(self, buffer: Buffer) -> None:
        self.arena.free(self.maps[buffer])

    def join(self, node: Node, **parts) -> None:
        """Copy what could not be written where it belongs."""
        whole, start = self.plan.region[node], 0
        for part in node.operands.values():
            channels = self.plan.region[part].channels
            here = Region(whole.buffer, whole.start + start, channels)
            if self.plan.region[part] != here:
                self.copy(part, here)
            start += channels

    # ---------------------------------------------------------------------------------- for subclasses

    def map(self, node: Node) -> Map:
        """Where a node's value lies."""
        return self.map_of(node)

    def map_of(self, value: Node | Region | Map) -> Map:
        """Likewise of a region; a map is itself."""
        if isinstance(value, Node):
            value = self.plan.region[value]
        return value if isinstance(value, Map) else self.maps[value.buffer].part(value.start, value.channels)

    def temporary(self, rows: int, channels: int) -> Map:
        """Memory until the end of this level."""
        self.scratch.append(self.arena.map(rows, channels))
        return self.scratch[-1]

    def shape(self, node: Node) -> tuple[int, ...]:
        """The node's shape for this many images."""
        return self.images, *node.shape[1:]

    def emit(self, kernel: str, macs: int, moved: int, reads, writes, /, **fields) -> Operation:
        """Append an operation of the node in hand. reads, writes: nodes, or temporary maps."""
        node = self.node
        touches = [self._touch(value, False) for value in reads] + [self._touch(value, True) for value in writes]
        self.operations.append(Operation(kernel, node.layer or "(input)", self.shape(node), fields, macs, moved,
                                         touches=touches))
        return self.operations[-1]

    def _touch(self, value, written):
        if isinstance(value, Map):
            return Touch(value.place.offset, value.place.offset + value.size, value.place, 0, value.channels, written)
        region = value if isinstance(value, Region) else self.plan.region[value]
        whole = self.maps[region.buffer]
        return Touch(whole.place.offset, whole.place.offset + whole.size, region.buffer, region.start,
                     region.start + region.channels, written)

    def copy(self, source: Node, target: Region) -> None:
        raise NotImplementedError

    def result(self, node: Node, index: int) -> None:
        raise NotImplementedError
