"""The device's plan of a forward: a graph's operations as kernel launches on one stream and one block of memory.

The whole batch goes through every operation together. Memory is asked for once, when the plan is made, and so are the
views of it that kernels get, and the kernels are compiled; a forward only launches. After one forward the launches can
be captured as a CUDA graph, which the driver then runs as one: at small batches launching a hundred kernels from Python
takes longer than they do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from math import prod

import numpy as np

from mmref.engine.cuda import device
from mmref.engine.cuda.products import LibraryProducts, OwnProducts
from mmref.engine.cuda.weights import DeviceMatrix, DeviceWeights
from mmref.engine.lowering import (
    Lowering,
    Operation,
    depthwise_cost,
    in_place,
    is_window,
    product_cost,
    scan_cost,
    wavelet_branch_cost,
    window_cost,
)
from mmref.engine.memory import Arena, Map, Place
from mmref.engine.schedule import Schedule, channel_axis, rows_of, schedule
from mmref.errors import OutOfDeviceMemory
from mmref.graph.graph import Constant, Graph, Node, derived
from mmref.kernels.cuda import norm_gate, scan, wavelet_branch
from mmref.kernels.target import FLOAT_BYTES, round_up
from mmref.nn.paths import PADDING, paths
from mmref.nn.wavelet import HAAR

# kernel of an operation: its module below mmref.kernels.cuda and the function there
KERNELS = {"stem": ("stem", "stem"), "depthwise": ("depthwise", "depthwise"), "scan": ("scan", "scan"),
           "wavelet_branch": ("wavelet_branch", "wavelet_branch"), "norm_gate": ("norm_gate", "norm_gate"),
           "copy_relu": ("join", "copy_relu"), "mean": ("pool", "mean"), "gate": ("squeeze_excite", "gate"),
           "result": ("layout", "to_channels_first"), "resize": ("maps", "resize"),
           "adaptive_mean": ("maps", "adaptive_mean"), "maximum_pool": ("maps", "maximum_pool"),
           **{name: ("plain", name) for name in ("move", "combine", "norm", "gather", "project", "analysis",
                                                 "synthesis", "path_scan", "scan_rows")},
           **{name: ("tokens", name) for name in ("path_conv", "sequence_scan", "rms_norm", "rotary", "row_stats",
                                                  "norm_mean")}}


@dataclass(frozen=True)
class Rows:
    """The first `count` rows of a map, as a kernel's argument."""

    map: Map
    count: int


@dataclass(frozen=True)
class Input:
    """What a forward is given, as a kernel's argument: (images, channels, height, width), or 2-D with `columns`."""

    index: int
    columns: int | None = None


class DeviceArena(Arena):
    """Maps have a multiple of `least` rows, if it is not 0: the last rows of a product may be padded to that."""

    def __init__(self, least: int):
        super().__init__()
        self.least, self.widest = least, 0

    def map(self, pixels: int, channels: int) -> Map:
        a_map = super().map(round_up(pixels, self.least or 1), channels)
        self.widest = max(self.widest, a_map.pitch)
        return a_map


@dataclass(frozen=True)
class View:
    """A map in the block of memory, or columns of one: `pitch` floats from row to row."""

    block: object
    start: int
    pitch: int
    channels: int

    def rows(self, count: int):
        """The device array (count, channels)."""
        flat = self.block[self.start:self.start + count * self.pitch]
        return flat.reshape(count, self.pitch)[:, :self.channels]


# --------------------------------------------------------------------------------------- what kernels can do

def device_schedule(graph: Graph) -> Schedule:
    """Every kernel writes its own channels only, and none wants a border of zeros."""
    return schedule(graph, lambda node: True, in_place, lambda node: None)


class DeviceLowering(Lowering):
    """Operations whose fields are their kernels' arguments: numbers, arrays of weights, `Rows` of maps, `Input`s."""

    backend = "cuda"

    def __init__(self, graph: Graph, plan: Schedule, images: int, weights: DeviceWeights,
                 products: LibraryProducts | OwnProducts):
        super().__init__(graph, plan, images, DeviceArena(products.least_rows))
        self.weights, self.products = weights, products
        users = graph.users()
        self.read_as_it_comes = {node for node in graph.inputs if users[node] and node not in graph.outputs
                                 and all(is_window(reader) and reader.sources == (node,) for reader in users[node])}
        self.unused = {plan.region[node].buffer for node in self.read_as_it_comes}

    def emit(self, kernel, macs, moved, reads, writes, /, **fields):
        """As everywhere, but for what touches what: one stream keeps the order. Nothing is launched where there is
        nothing to write."""
        written = fields.get("out", fields.get("x"))
        nothing = isinstance(written, Rows) and not written.map.channels * written.count
        if not (nothing or 0 in self.shape(self.node) or 0 in fields.get("sizes", ())):
            super().emit(kernel, macs, moved, (), (), **fields)

    # ------------------------------------------------------------------------------------------ memory

    def allocate(self, buffer):
        return Map(Place(0), 0, 0, 0) if buffer in self.unused else super().allocate(buffer)

    def release(self, buffer):
        if buffer not in self.unused:
            super().release(buffer)

    def view(self, value, count: int | None = None) -> Rows:
        """The rows of a node, or `count` of a region or a map."""
        return Rows(self.map_of(value), self.rows(value) if count is None else count)

    # ------------------------------------------------------------------------------------------ in and out

    def lower_input(self, node):
        if node not in self.read_as_it_comes:
            strides = [FLOAT_BYTES * prod(node.shape[i + 1:]) for i in range(node.ndim)]
            self.move(Input(self.graph.inputs.index(node), node.shape[-1]), strides, node.shape, node,
                      self.strides(node))

    def result(self, node, index):
        axis = channel_axis(node)
        self.emit("result", 0, 8 * self.images * prod(node.shape[1:]), (node,), (), x=self.view(node), out=index,
                  images=self.images * prod(node.shape[1:axis]), pixels=prod(node.shape[axis + 1:]))

    def move_fields(self, x, start, strides, out, to, target, sizes, add):
        def steps(pitch, start, strides):
            """(rows, columns) where the box begins, and from one to the next along each axis."""
            return [divmod(step, pitch) for step in (start, *strides)]
        given = isinstance(x, Input)
        pitches = FLOAT_BYTES * x.columns if given else self.map_of(x).pitch, self.map_of(out).pitch
        box = np.concatenate([steps(pitches[0], start, strides), steps(pitches[1], to, target)], axis=1)
        box[:, 1::2] //= FLOAT_BYTES
        def seen(value):
            return self.view(value, None if isinstance(value, Node) else value.size // value.pitch)
        return dict(x=x if given else seen(x), out=seen(out), sizes=sizes, add=add,
                    box=self.weights.table(box, ("box", *box.ravel().tolist()), np.int64))

    # -------------------------------------------------------------------------------- matrix products

    def lower_product(self, node, x, weight, bias=None, shortcut=None, shortcut2=None):
        matrix, rows, out = self.weights.matrix(weight, bias), self.rows(node), self.map(node)
        others = [other for other in (shortcut, shortcut2) if other is not None]
        scratch, maps = None, [self.map(other) for other in others]
        if not self.products.in_place and any(other.place == out.place for other in maps):
            scratch = self.temporary(rows, matrix.columns)
        residual, residual2 = [*maps, None, None][:2]
        self.emit("matmul", *product_cost(rows, matrix.depth, matrix.columns, len(others)), (x, *others), (node,),
                  a=self.map(x), matrix=matrix, out=out, rows=rows, residual=residual, residual2=residual2,
                  relu=node.attributes["activation"] == "relu", scratch=scratch)

    def window(self, node, x, matrix: DeviceMatrix, filter_shape, shortcut=None, shortcut2=None):
        _, c_in, height, width = x.shape
        others = [other for other in (shortcut, shortcut2) if other is not None]
        residual, residual2 = [*map(self.view, others), None, None][:2]
        nchw = x in self.read_as_it_comes
        self.emit("stem", *window_cost(self.images, x, node, matrix.depth, len(others)), (x, *others), (node,),
                  x=Input(self.graph.inputs.index(x)) if nchw else self.view(x), weight=matrix.weight, bias=matrix.bias,
                  out=self.view(node), images=self.images, height=height, width=width, c_in=c_in,
                  filter_shape=filter_shape, stride=node.attributes["stride"], padding=node.attributes["padding"],
                  dilation=node.attributes["dilation"], nchw=nchw, residual=residual, residual2=residual2,
                  relu=node.attributes.get("activation") == "relu")

    def lower_conv_transpose2d(self, node, x, weight, bias=None):
        """Filters side by side: one product gives all their taps, which are then moved to where they lie."""
        stride, (c_in, c_out), (_, _, height, width) = self.tiling_stride(node, weight), weight.shape[:2], x.shape
        count = stride ** 2
        taps = derived("taps as rows", (count * c_out, c_in), lambda w: w.transpose(2, 3, 1, 0).reshape(-1, c_in),
                       weight)
        biases = bias and derived(f"{count} times", (count * c_out,), lambda b: np.tile(b, count), bias)
        matrix, rows = self.weights.matrix(taps, biases), self.rows(x)
        product = self.temporary(rows, matrix.columns)
        self.emit("matmul", *product_cost(rows, c_in, matrix.columns), (x,), (product,), a=self.map(x), matrix=matrix,
                  out=product, rows=rows, residual=None, residual2=None, relu=False, scratch=None)
        pitch, out = product.pitch, self.map(node)
        target = [step * (stride if i > 1 else 1) for i, step in enumerate(self.strides(node))]
        for tap in range(count):
            i, j = divmod(tap, stride)
            self.move(product, [height * width * pitch, FLOAT_BYTES, width * pitch, pitch],
                      (x.shape[0], c_out, height, width), node, target, start=tap * c_out * FLOAT_BYTES,
                      to=(i * width * stride + j) * out.pitch)

    def lower_project(self, node, weight, sequences):
        K, M, D = weight.shape
        self.emit("project", *product_cost(self.rows(node), D, M), (sequences,), (node,), x=self.view(sequences),
                  weight=self.weights.swapped(weight), out=self.view(node), length=node.shape[3])

    # ------------------------------------------------------------------------ depthwise, wavelets, scans

    def lower_depthwise(self, node, x, weight, bias=None, scale=None, shift=None):
        taps, filter_shape = self.weights.taps(weight, bias, scale, shift), weight.shape[2:]
        self.emit("depthwise", *depthwise_cost(self.images, x, node, prod(filter_shape)), (x,), (node,),
                  x=self.view(x), weight=taps.weights, bias=taps.bias, out=self.view(node), images=self.images,
                  height=x.shape[2], width=x.shape[3], filter_shape=filter_shape, stride=node.attributes["stride"],
                  padding=node.attributes["padding"], after=taps.after,
                  activation="local" if scale is not None else node.attributes["activation"])

    def lower_wavelet_branch(self, node, x, weight):
        (height, width), kernel = x.shape[2:], weight.shape[-1]
        if not wavelet_branch.is_able(height, width, kernel):
            return self.wavelet_branch_in_steps(node, x, weight)
        self.emit("wavelet_branch", *wavelet_branch_cost(self.images, x, kernel), (x,), (node,), x=self.view(x),
                  weight=self.weights.bands(weight), out=self.view(node), images=self.images, height=height,
                  width=width, kernel=kernel)

    def wavelet_branch_in_steps(self, node, x, weight):
        """With filters so large that a tile's sub-bands do not fit into shared memory."""
        (_, channels, height, width), kernel = x.shape, weight.shape[-1]
        half = -(-height // 2), -(-width // 2)
        count = self.images * prod(half)
        bands, convolved = (self.view(self.temporary(count, 4 * channels), count) for _ in range(2))
        bank = self.weights.once("Haar", lambda: self.weights.put(np.tile(HAAR.reshape(4, 4), (channels, 1))),
                                 options=channels)
        taps, shared = self.weights.taps(weight, None), dict(height=height, width=width, kernel=2, bank=bank)
        moved = 8 * self.images * prod(x.shape[1:])
        self.emit("analysis", 0, moved, (x,), (), x=self.view(x), out=bands, **shared)
        self.emit("depthwise", *wavelet_branch_cost(self.images, x, kernel), (), (), x=bands, weight=taps.weights,
                  bias=taps.bias, out=convolved, images=self.images, height=half[0], width=half[1],
                  filter_shape=(kernel, kernel), stride=1, padding=kernel // 2, after=None, activation="none")
        self.emit("synthesis", 0, moved, (), (node,), x=convolved, out=self.view(node), **shared)

    def lower_analysis(self, node, x, bank):
        self.wavelet("analysis", node, x, bank, x)

    def lower_synthesis(self, node, bands, bank):
        self.wavelet("synthesis", node, bands, bank, node)

    def wavelet(self, kernel, node, x, bank, full):
        _, channels, height, width = full.shape
        k = bank.shape[-1]
        self.emit(kernel, self.rows(full) * channels * k * k, 8 * self.images * prod(x.shape[1:]), (x,), (node,),
                  x=self.view(x), bank=self.weights.array(bank, bank.shape[0], k * k), out=self.view(node),
                  height=height, width=width, kernel=k)

    def lower_path_scan(self, node, x, coefficients, dt_weight, dt_bias, A, D):
        order, (K, inner, rank), N = node.attributes["order"], dt_weight.shape, A.shape[2]
        table = paths(order, *node.shape[2:])
        cost = scan_cost(self.images * table.size, K, inner, rank)
        fields = dict(u=self.view(x), coefficients=self.view(coefficients), rank=rank, images=self.images,
                      dt_weight=self.weights.swapped(dt_weight), dt_bias=self.weights.array(dt_bias),
                      D=self.weights.array(D), out=self.view(node))
        if order == "bidirectional" and N == 1 and scan.is_able(rank):
            self.emit("scan", *cost, (x, coefficients), (node,), **fields, A=self.weights.array(A, K, inner),
                      length=rows_of(node))
        else:
            self.emit("path_scan", *cost, (x, coefficients), (node,), **fields, A=self.weights.swapped(A), states=N,
                      table=self.weights.table(table, ("paths", order, *table.shape, *node.shape[2:])))

    def lower_sequence_scan(self, node, u, coefficients, dt_weight, dt_bias, A, D, factor=None):
        order, (K, inner, rank), N = node.attributes["order"], dt_weight.shape, A.shape[2]
        table, reads = paths(order, *node.shape[2:]), [u, coefficients, *(() if factor is None else (factor,))]
        self.emit("sequence_scan", *scan_cost(self.images * table.size, K, inner, rank), reads, (node,),
                  u=self.view(u), coefficients=self.view(coefficients), dt_weight=self.weights.swapped(dt_weight),
                  dt_bias=self.weights.array(dt_bias), A=self.weights.swapped(A), D=self.weights.array(D),
                  table=self.weights.table(table, ("paths", order, *table.shape, *node.shape[2:])),
                  factor=None if factor is None else self.view(factor), out=self.view(node), images=self.images,
                  rank=rank, states=N)

    def lower_path_conv(self, node, x, weight, bias):
        table, order = paths(node.attributes["order"], *x.shape[2:]), node.attributes["order"]
        self.sequence_conv(node, x, weight, bias, self.weights.table(table, ("paths", order, *table.shape,
                                                                             *x.shape[2:])))

    def lower_causal_conv(self, node, sequences, weight, bias):
        self.sequence_conv(node, sequences, weight, bias, None)

    def sequence_conv(self, node, x, weight, bias, table):
        self.emit("path_conv", *depthwise_cost(self.images, x, node, weight.shape[2]), (x,), (node,), x=self.view(x),
                  weight=self.weights.causal_taps(weight, bias), table=table, out=self.view(node),
                  length=node.shape[3], images=self.images, active=node.attributes.get("activation") == "silu")

    def lower_selective_scan(self, node, u, delta, A, B, C, D):
        _, _, dim, length = u.shape
        states, rows = A.shape[2], self.rows(u)
        self.emit("scan_rows", rows * dim * states * 3, 16 * rows * dim, (u, delta, B, C), (node,), u=self.view(u),
                  delta=self.view(delta), A=self.weights.swapped(A), B=self.view(B), C=self.view(C),
                  D=self.weights.array(D), out=self.view(node), length=length, states=states)

    def lower_cross_scan(self, node, x):
        table = paths(node.attributes["order"], *x.shape[2:])
        self.gather(node, x, table.reshape(1, -1), ("read off", node.attributes["order"], *x.shape[2:]))

    def lower_cross_merge(self, node, y):
        """Every pixel is the sum of the steps that visit it, one of each direction at most."""
        table = paths(node.attributes["order"], *node.shape[2:])
        steps = np.full((len(table), rows_of(node)), PADDING)
        for k, path in enumerate(table):
            inside = path != PADDING
            steps[k, path[inside]] = k * table.shape[1] + np.flatnonzero(inside)
        self.gather(node, y, steps, ("laid back", node.attributes["order"], *node.shape[2:]))

    def gather(self, node, x, table, key):
        self.emit("gather", 0, 8 * self.images * table.size * node.shape[channel_axis(node)], (x,), (node,),
                  x=self.view(x), table=self.weights.table(table, key), out=self.view(node), images=self.images)

    # ---------------------------------------------------------------------------------- pooling, resizing

    def lower_resize(self, node, x):
        self.over_maps("resize", node, x, out_height=node.shape[2], out_width=node.shape[3],
                       nearest=node.attributes["mode"] == "nearest")

    lower_upsample = lower_resize

    def lower_adaptive_average_pool(self, node, x):
        self.over_maps("adaptive_mean", node, x, rows=node.shape[2], columns=node.shape[3])

    def lower_max_pool2d(self, node, x):
        self.over_maps("maximum_pool", node, x, out_height=node.shape[2], out_width=node.shape[3], **node.attributes)

    def over_maps(self, operation, node, x, /, **more):
        self.emit(operation, 0, FLOAT_BYTES * self.images * (prod(x.shape[1:]) + prod(node.shape[1:])), (x,), (node,),
                  x=self.view(x), out=self.view(node), height=x.shape[2], width=x.shape[3], **more)

    # ------------------------------------------------------------------------------- norms, elementwise

    def lower_norm_gate(self, node, y, weight, bias, z):
        if np.float32(node.attributes["eps"]) != norm_gate.EPSILON or not norm_gate.is_able(node.shape[1]):
            return self.norm_and_gate(node, y, weight, bias, z)
        self.emit("norm_gate", 0, 16 * self.rows(node) * node.shape[1], (y, z), (node,), y=self.view(y),
                  z=self.view(z), weight=self.weights.array(weight), bias=self.weights.array(bias), out=self.view(node))

    def norm_fields(self, x, weight, bias, eps, out):
        return dict(x=self.view(x), weight=self.weights.array(weight), bias=self.weights.array(bias),
                    epsilon=self.epsilon(eps), out=self.view(out))

    def epsilon(self, eps):
        return self.weights.once("epsilon", lambda: self.weights.put([eps]), options=eps)

    def lower_rms_norm_channels(self, node, x, weight):
        self.emit("rms_norm", 0, 8 * self.rows(node) * node.shape[1], (x,), (node,), x=self.view(x),
                  weight=self.weights.array(weight), epsilon=self.epsilon(node.attributes["eps"]), out=self.view(node))

    def lower_norm_mean(self, node, x, weight, bias):
        rows, moved = self.rows(x), FLOAT_BYTES * self.rows(x) * x.shape[1]
        stats = self.view(self.temporary(rows, 2), rows)
        self.emit("row_stats", 0, moved, (x,), (), x=self.view(x), epsilon=self.epsilon(node.attributes["eps"]),
                  out=stats)
        self.emit("norm_mean", 0, moved, (x,), (node,), x=self.view(x), stats=stats, weight=self.weights.array(weight),
                  bias=self.weights.array(bias), out=self.view(node), length=rows_of(x))

    def lower_rotary(self, node, x, cos, sin):
        self.emit("rotary", 0, 8 * self.rows(node) * node.shape[1], (x,), (node,), x=self.view(x),
                  cos=self.weights.rows(cos, 1, cos.shape), sin=self.weights.rows(sin, 1, sin.shape),
                  out=self.view(node))

    def gate_fields(self, x, values):
        return dict(x=self.view(x), gates=self.view(values), images=self.images, length=rows_of(x))

    def lower_global_average_pool(self, node, x):
        self.emit("mean", 0, FLOAT_BYTES * self.images * prod(x.shape[1:]), (x,), (node,), x=self.view(x),
                  out=self.view(node), images=self.images, length=rows_of(x))

    def lower_relu(self, node, x):
        self.emit("copy_relu", 0, 8 * self.images * prod(node.shape[1:]), (x,), (node,), x=self.view(x),
                  out=self.view(node))

    def combine_fields(self, operation, x, y, length, target):
        rows, other = self.rows(self.node), None
        if isinstance(y, Constant):
            other = self.weights.rows(y, channel_axis(self.node), self.node.shape)
        elif y is not None:
            other = self.view(y, rows if length == 1 else self.images)
        return dict(x=self.view(x, rows), y=other, out=self.view(target, rows), operation=operation, length=length)


@dataclass
class Launch:
    """What an operation became: calls without arguments. Its NumPy twin (mmref.kernels.cuda.twins) has the name
    `kernel` and takes the same `arguments`, once `DevicePlan.filled` has put something in the place of `Input`s."""

    kernel: str
    arguments: dict[str, object]
    calls: list


@dataclass
class DevicePlan:
    """What runs for one input shape. `launches[i]` is what became of `operations[i]`."""

    graph: Graph
    images: int
    operations: list[Operation]
    stream: object
    memory: object = field(repr=False)                   # the block of all maps
    inputs: list[object] = field(repr=False)             # device arrays of the inputs' shapes, for whoever has none
    results: list[object] = field(repr=False)            # device arrays of the outputs' shapes
    launches: list[Launch] = field(default_factory=list, repr=False)
    given: list[object] | None = None                    # what the first operations read, while they are launched
    captured: object = None                              # the launches as the driver's graph
    runs: int = 0
    threads = 1  # for the table

    @property
    def activation_bytes(self) -> int:
        return self.memory.nbytes

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        return [(self.images, *node.shape[1:]) for node in self.graph.inputs]

    def filled(self, arguments: dict[str, object]) -> dict[str, object]:
        """Arguments of a launch, with what is `given` in the place of `Input`s."""
        def fill(value):
            if not isinstance(value, Input):
                return value
            array = self.given[value.index]
            return array if value.columns is None else array.reshape(array.size // value.columns, value.columns)
        return {name: fill(value) for name, value in arguments.items()}

    def launch(self) -> None:
        """Put all launches on the stream; does not wait."""
        for launch in self.launches:
            for call in launch.calls:
                call()

    def run(self, given: list, capture: bool) -> None:
        """A forward, eagerly or as a graph; the first is always eager, for the driver loads code then. Does not wait.

        A graph reads the arrays that it was captured with."""
        self.given = given
        if not capture or not self.runs:
            self.launch()
        else:
            if self.captured is None:
                self.captured = device.Graph(self.stream, self.launch)
            self.captured.launch()
        self.runs, self.given = self.runs + 1, None


def make_plan(graph: Graph, plan: Schedule, images: int, weights: DeviceWeights, products, stream,
              make_room) -> DevicePlan:
    """`graph`: of one image, after the passes; `plan`: its `device_schedule`. `make_room()` frees something, if it
    can."""
    lowering = lowered(graph, plan, images, weights, products)
    shapes = [(images, *node.shape[1:]) for node in (*graph.inputs, *graph.outputs)]

    def fits(batch):
        return needed_bytes(graph, lowered(graph, plan, batch, weights, products)) <= device.free_memory()[0]
    memory, *arrays = allocate([(arena_floats(lowering),), *shapes], make_room, partial(largest, fits, images))
    count = len(graph.inputs)
    made = DevicePlan(graph, images, lowering.operations, stream, memory, arrays[:count], arrays[count:])
    device.wait_for_uploads()  # of weights: products are tried out on our own stream
    for operation in lowering.operations:
        made.launches.append(launched(operation, made, products))
    made.given = made.inputs
    device.prepare(made.launch)
    made.given = None
    return made


def lowered(graph, plan, images, weights, products) -> DeviceLowering:
    lowering = DeviceLowering(graph, plan, images, weights, products)
    lowering.lower(range(len(plan.stages)))
    return lowering


def arena_floats(lowering) -> int:
    """The arena and a row more, so that a column slice of the last row can be cut from whole rows."""
    return (lowering.arena.size + lowering.arena.widest) // FLOAT_BYTES


def launched(operation: Operation, plan: DevicePlan, products) -> Launch:
    def view(a_map: Map | None):
        return a_map and View(plan.memory, a_map.place.offset // FLOAT_BYTES, a_map.pitch // FLOAT_BYTES,
                              a_map.channels)
    fields = operation.fields
    if operation.kernel == "matmul":
        matrix, rows, relu = fields["matrix"], fields["rows"], fields["relu"]
        maps = {name: view(fields[name]) for name in ("a", "out", "residual", "residual2")}
        arrays = {name: value and value.rows(rows) for name, value in maps.items()}
        calls = products.calls(**maps, matrix=matrix, rows=rows, relu=relu, scratch=view(fields["scratch"]))
        return Launch("matmul", {**arrays, "weight": matrix.weight, "bias": matrix.bias, "relu": relu}, calls)
    module, name = KERNELS[operation.kernel]
    kernel = getattr(import_module(f"mmref.kernels.cuda.{module}"), name)
    arguments = {key: view(value.map).rows(value.count) if isinstance(value, Rows) else value
                 for key, value in fields.items()}
    if operation.kernel == "result":
        out = plan.results[arguments["out"]]
        arguments["out"] = out.reshape(arguments["images"], arguments["x"].shape[1], arguments["pixels"])
    if any(isinstance(value, Input) for value in arguments.values()):
        return Launch(name, arguments, [lambda: kernel(**plan.filled(arguments), stream=plan.stream)])
    return Launch(name, arguments, [partial(kernel, **arguments, stream=plan.stream)])


# --------------------------------------------------------------------------------------------- memory

def allocate(shapes, make_room, batch_that_fits) -> list:
    """Float32 device arrays: a block of memory, then inputs and results; or OutOfDeviceMemory."""
    while True:
        try:
            return [device.allocate(shape) for shape in shapes]
        except MemoryError as error:
            if make_room():
                continue
            free, total = device.free_memory()
            needed, (batch, _, *sides) = FLOAT_BYTES * sum(map(prod, shapes)), shapes[1]
            fits = batch_that_fits()
            raise OutOfDeviceMemory(
                f"batch must be smaller for this device: {batch} pictures of {'x'.join(map(str, sides))} need "
                f"{needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} of {total / 2**20:,.0f} MiB are free; "
                f"{f'a batch of {fits} would fit' if fits else 'not even one would fit'}") from error


def needed_bytes(graph: Graph, lowering: DeviceLowering) -> int:
    """Device memory of a plan, its inputs and its results."""
    return FLOAT_BYTES * (arena_floats(lowering)
                          + lowering.images * sum(prod(node.shape[1:]) for node in (*graph.inputs, *graph.outputs)))


def largest(fits, batch: int) -> int:
    """The largest batch below this one that fits, 0 if none does."""
    low, high = 0, batch  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
