"""From a graph to operations of kernels: memory for every value, one method for each kind of node.

What CPU and device plans share. A subclass has a method for each operation of the graphs that it takes, named like the
operation, which calls `emit` once for each kernel; a node without a method is an error that names operation and layer.
What becomes of copies, slices, joins and elementwise operations is the same everywhere, and stands here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import numpy as np

from mmref.engine.memory import Arena, Map
from mmref.engine.schedule import Buffer, Region, Schedule, channel_axis, fits_layout, is_join, rows_of
from mmref.errors import NotTraceable
from mmref.graph.graph import Constant, Graph, Node, derived
from mmref.kernels.target import FLOAT_BYTES
from mmref.nn.paths import PADDING

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


# ------------------------------------------------------------------------------------------- what nodes are

def place_of_call(node: Node) -> str:
    """What stands for a layer where no layer's text makes the call: the network's own does, or it is the input."""
    return "(network)" if node.operation else "(input)"


def is_pointwise(node: Node) -> bool:
    """Whether a convolution is a matrix product of rows."""
    return node.name == "convolution" and node.operands["weight"].shape[2:] == (1, 1) \
        and node.attributes["stride"] == 1 and node.attributes["padding"] == 0


def is_window(node: Node) -> bool:
    """Whether it is a convolution that reads neighbourhoods."""
    return node.name in ("convolution", "conv2d") and not is_pointwise(node)


IN_PLACE = {"convolution": ("shortcut", "shortcut2"), "product": ("shortcut", "shortcut2"), "norm_gate": ("y",),
            "add": ("x", "y"), "multiply": ("x", "y")}
IN_ITS_PLACE = {"gate", "layer_norm_channels", "batch_norm", "relu", "silu", "sigmoid", "softplus", "gelu",
                "rms_norm_channels", "rotary"}


def in_place(node: Node) -> list[Node]:
    """Operands that a kernel may overwrite with its result: it reads a value of them before it writes it."""
    names = ("x",) if node.name in IN_ITS_PLACE else IN_PLACE.get(node.name, ())
    return [node.operands[name] for name in names if isinstance(node.operands.get(name), Node)]


# ---------------------------------------------------------- multiply-adds, and bytes that each move once at least

def product_cost(rows: int, depth: int, columns: int, shortcuts: int = 0) -> tuple[int, int]:
    """Of rows (rows, depth) times a matrix."""
    return rows * depth * columns, FLOAT_BYTES * (rows * (depth + columns * (1 + shortcuts)) + depth * columns)


def window_cost(images: int, x: Node, node: Node, depth: int, shortcuts: int) -> tuple[int, int]:
    """Of a convolution over windows of `depth` values."""
    channels, pixels = node.shape[1], images * prod(node.shape[2:])
    return (depth * channels * pixels,
            FLOAT_BYTES * (images * prod(x.shape[1:]) + channels * pixels * (1 + shortcuts) + depth * channels))


def depthwise_cost(images: int, x: Node, node: Node, taps: int) -> tuple[int, int]:
    """Of filters of `taps` values."""
    results = images * prod(node.shape[1:])
    return results * taps, FLOAT_BYTES * (images * prod(x.shape[1:]) + results)


def wavelet_branch_cost(images: int, x: Node, kernel: int) -> tuple[int, int]:
    """Of four sub-bands, convolved."""
    _, channels, height, width = x.shape
    squares = 4 * (-(-height // 2)) * (-(-width // 2))
    return images * channels * kernel ** 2 * squares, 8 * images * channels * height * width


def scan_cost(steps: int, directions: int, channels: int, rank: int) -> tuple[int, int]:
    """Of a scan of `steps` in all directions together, step sizes inside."""
    return steps * channels * rank, 12 * steps // directions * channels


class Lowering:
    """Emits the operations of some images, in order, on one arena.

    A subclass has, beside its methods for operations, `result(node, index)`, `weights`, a convolution over windows,
    `window(node, x, matrix, filter_shape, shortcut, shortcut2)`, and what the kernels are given that all have:
    `move_fields`, `combine_fields`, `norm_fields`, `gate_fields`; `gather(node, x, table, key)`, which has row i of
    the node be row table[0, i] of x, zeros for -1."""

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
                self._lower(node)
            for index in stage.results:
                self.node = self.graph.outputs[index]
                self.result(self.node, index)
            for buffer in stage.last:
                self.release(buffer)
            self.arena.free(*self.scratch)
            self.scratch.clear()

    def _lower(self, node: Node) -> None:
        method = getattr(self, "join" if is_join(node) else f"lower_{node.name}", None)
        if method is None:
            raise NotTraceable(f"backend {self.backend!r} has no kernel for operation {node.name!r}, which layer "
                               f"{node.layer!r} uses (backend 'numpy' runs it)")
        if node.name not in ("add", "multiply") and not all(fits_layout(operand, node) for operand in node.sources):
            raise NotTraceable(f"backend {self.backend!r} has no kernel for operation {node.name!r} of sequences where "
                               f"it has one of maps, or the other way round, which layer {node.layer!r} uses "
                               f"(backend 'numpy' runs it)")
        method(node, **{name if name.isidentifier() else f"part{name}": value for name, value in node.operands.items()})

    def allocate(self, buffer: Buffer) -> Map:
        return self.arena.map(self.images * buffer.rows, buffer.channels)

    def release(self, buffer: Buffer) -> None:
        self.arena.free(self.maps[buffer])

    # ------------------------------------------------------------------------------------------ memory

    def rows(self, node: Node) -> int:
        """Rows of a node's value, of all images."""
        return self.images * rows_of(node)

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
        layer = node.layer or place_of_call(node)
        self.operations.append(Operation(kernel, layer, self.shape(node), fields, macs, moved, touches=touches))
        return self.operations[-1]

    def _touch(self, value, written):
        if isinstance(value, Map):
            return Touch(value.place.offset, value.place.offset + value.size, value.place, 0, value.channels, written)
        region = value if isinstance(value, Region) else self.plan.region[value]
        whole = self.maps[region.buffer]
        return Touch(whole.place.offset, whole.place.offset + whole.size, region.buffer, region.start,
                     region.start + region.channels, written)

    # ---------------------------------------------------------------------------- copies, slices, joins

    def join(self, node: Node, **parts) -> None:
        """Copy what could not be written where it belongs."""
        whole, start = self.plan.region[node], 0
        for part in node.operands.values():
            channels = self.plan.region[part].channels
            self.copy(part, Region(whole.buffer, whole.start + start, channels))
            start += channels

    def copy(self, source: Node, target: Region) -> None:
        """Have a node's value there, if it is not."""
        if self.plan.region[source] != target:
            self.combine("copy", source, None, target)

    def lower_slice_axis(self, node, x):
        """Any other slice than neighbouring channels: values copied one by one."""
        axis, start, step = (node.attributes[name] for name in ("axis", "start", "step"))
        strides = self.strides(x)
        self.move(x, [s * (step if i == axis else 1) for i, s in enumerate(strides)], node.shape, node,
                  self.strides(node), start=start * strides[axis])

    def lower_concatenate(self, node, **parts):
        """Along another axis than the channels."""
        axis, start = node.attributes["axis"], 0
        strides = self.strides(node)
        for part in node.operands.values():
            self.move(part, self.strides(part), part.shape, node, strides, to=start * strides[axis])
            start += part.shape[axis]

    def lower_flatten(self, node, x):
        if rows_of(x) == 1:
            return self.copy(x, self.plan.region[node])
        (_, channels, height, width), out = x.shape, self.map(node)
        target = out.pitch, width * FLOAT_BYTES, FLOAT_BYTES, height * width * FLOAT_BYTES
        image, channel, row, column = self.strides(x)
        fields = self.move_fields(x, 0, (image, row, column, channel), node, 0, target,
                                  (self.images, height, width, channels), 0)
        self.emit("move", 0, 8 * self.images * prod(x.shape[1:]), (x,), (node,), **fields)

    def lower_low_low(self, node, bands):
        strides = self.strides(bands)
        strides[1] *= 4
        self.move(bands, strides, node.shape, node, self.strides(node))

    def lower_add_to_low_low(self, node, bands, low):
        self.copy(bands, self.plan.region[node])
        target = self.strides(node)
        target[1] *= 4
        self.move(low, self.strides(low), low.shape, node, target, add=1)

    def strides(self, node, pitch=None):
        """Bytes from one index to the next, for every axis."""
        axis, pitch = channel_axis(node), pitch or self.map(node).pitch
        strides, step = [0] * node.ndim, pitch
        for i in reversed(range(node.ndim)):
            if i == axis:
                strides[i] = FLOAT_BYTES
            else:
                strides[i] = step
                step *= node.shape[i] if i else 1
        return strides

    def move(self, x: Node, strides, shape, out: Node | Map, target, start=0, to=0, add=0):
        """A box of `shape` from x, `start` bytes on, with these strides, to `out`, `to` bytes on, with strides
        `target`; `add` 1: added to what is there."""
        axis = channel_axis(self.node)
        first, second = ([i for i in range(1, len(shape)) if i != axis] + [None, None])[:2]

        def of(values, nothing):
            """Of images, rows, columns and channels."""
            return values[0], *(nothing if i is None else values[i] for i in (first, second)), values[axis]
        sizes = self.images, *of(shape, 1)[1:]
        self.emit("move", 0, 8 * prod(sizes), (x,), (out,),
                  **self.move_fields(x, start, of(strides, 0), out, to, of(target, 0), sizes, add))

    def spread(self, value: Node, node: Node) -> Map:
        """A copy of a value with its axes of length 1 as long as those of `node`."""
        shape, axis = node.shape, channel_axis(node)
        strides = [0 if size == 1 and i else step
                   for i, (size, step) in enumerate(zip(value.shape, self.strides(value), strict=True))]
        copy = self.temporary(self.rows(node), shape[axis])
        self.move(value, strides, shape, copy, self.strides(node, copy.pitch))
        return copy

    # ------------------------------------------------------------------------------------- convolutions

    def tiling_stride(self, node, weight) -> int:
        """The stride of a transposed convolution whose filters lie side by side. Raises NotTraceable for others."""
        stride = node.attributes["stride"]
        if weight.shape[2:] != (stride, stride) or node.attributes["padding"]:
            raise NotTraceable(f"backend {self.backend!r} has no kernel for transposed convolutions whose filters "
                               f"overlap or are cut, which layer {node.layer!r} uses (backend 'numpy' runs it)")
        return stride

    def lower_convolution(self, node, x, weight, bias=None, shortcut=None, shortcut2=None):
        if is_pointwise(node):
            return self.lower_product(node, x, weight, bias, shortcut, shortcut2)
        return self.window(node, x, self.weights.window(weight, bias), weight.shape[2:], shortcut, shortcut2)

    def lower_conv2d(self, node, x, weight, bias=None):
        """A convolution in groups: their filters lie on the diagonal of one matrix."""
        matrix = self.weights.window(weight, bias, node.attributes["groups"])
        self.window(node, x, matrix, weight.shape[2:])

    def lower_pad_to_multiple(self, node, x):
        height, width = node.shape[2:]
        numbers = np.full((height, width), PADDING)
        numbers[:x.shape[2], :x.shape[3]] = np.arange(rows_of(x)).reshape(x.shape[2:])
        self.gather(node, x, numbers.reshape(1, -1), ("padded", *x.shape[2:], height, width))

    # ------------------------------------------------------------------------------- elementwise, norms

    def lower_sigmoid(self, node, x):
        self.combine(node.name, x, None, node)

    lower_silu = lower_softplus = lower_relu = lower_relu6 = lower_gelu = lower_sigmoid

    def lower_add(self, node, x, y):
        if isinstance(x, Constant) or isinstance(y, Node) and not self.is_like(x, node):  # both operations commute
            x, y = y, x
        self.combine(node.name, x if self.is_like(x, node) else self.spread(x, node), y, node)

    lower_multiply = lower_add

    @staticmethod
    def is_like(value: Node, node: Node) -> bool:
        """Whether its rows are the node's."""
        return value.shape == node.shape and fits_layout(value, node)

    def combine(self, operation, x, y, target):
        """target = operation(x, y), row by row, of nodes, regions or temporary maps; y may be a constant, or None."""
        node, length, reads = self.node, 1, [x]
        if isinstance(y, Node) and not self.is_like(y, node):
            if fits_layout(y, node) and rows_of(y) == 1 and self.map(y).channels == self.map_of(x).channels:
                length = rows_of(node)           # one row for each image
            else:
                y = self.spread(y, node)
        if y is not None and not isinstance(y, Constant):
            reads.append(y)
        rows, channels = self.rows(node), self.map_of(x).channels
        self.emit("combine", 0, FLOAT_BYTES * rows * channels * (2 + (y is not None)), reads, (target,),
                  **self.combine_fields(operation, x, y, length, target))

    def lower_batch_norm(self, node, x, weight, bias, running_mean, running_var):
        """A batch norm that no convolution could take over: one factor and one shift a channel."""
        eps, shape = node.attributes["eps"], (1, node.shape[1], *(1,) * (node.ndim - 2))

        def scale(weight, variance):
            return (weight / np.sqrt(variance.astype(np.float64) + eps)).reshape(shape)

        def shift(weight, variance, bias, mean):
            return bias.reshape(shape) - mean.reshape(shape) * scale(weight, variance)
        factor = derived(f"batch norm's scale {shape}, eps {eps}", shape, scale, weight, running_var)
        added = derived(f"batch norm's shift {shape}, eps {eps}", shape, shift, weight, running_var, bias, running_mean)
        self.combine("multiply", x, factor, node)
        self.combine("add", node, added, node)

    def lower_layer_norm_channels(self, node, x, weight, bias):
        self.emit("norm", 0, 8 * self.rows(node) * node.shape[1], (x,), (node,),
                  **self.norm_fields(x, weight, bias, node.attributes["eps"], node))

    def norm_and_gate(self, node, y, weight, bias, z):
        """`norm_gate` in three steps."""
        self.lower_layer_norm_channels(node, y, weight, bias)
        scratch = self.temporary(self.rows(node), node.shape[1])
        self.combine("silu", z, None, scratch)
        self.combine("multiply", node, scratch, node)

    def lower_gate(self, node, x, values):
        """In the result's place."""
        self.copy(x, self.plan.region[node])
        self.emit("gate", 0, 8 * self.rows(node) * node.shape[1], (node, values), (node,),
                  **self.gate_fields(node, values))
