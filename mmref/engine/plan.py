"""The CPU's plan of a forward: a graph's operations as records, their memory, and the threads that run them.

Where there are enough images each thread takes whole ones, on memory of its own and without barriers: what it writes
it finds in its own cache when it reads it. The first part of a network goes image by image, as long as its maps are
larger than its weights; then all of a thread's images go together, because there the weights are large. Single images,
and those that are left over, are worked on by all threads together, each operation divided among them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np

from mmref.engine.lowering import (
    TOGETHER,
    Operation,
    depthwise_cost,
    in_place,
    is_window,
    product_cost,
    scan_cost,
    wavelet_branch_cost,
    window_cost,
)
from mmref.engine.map_operations import MapLowering, is_bordered, is_dense, straight_results
from mmref.engine.memory import Arena, Map, Place, aligned_zeros
from mmref.engine.schedule import Buffer, Schedule, channel_axis, rows_of, schedule
from mmref.engine.weights import Weights, by_vectors
from mmref.graph.graph import Constant, Graph, Node, derived
from mmref.kernels import records
from mmref.kernels.target import FLOAT_BYTES, LANES, TARGET, VECTOR_BYTES, round_up
from mmref.nn.paths import paths

RECORDS = {"picture": records.PICTURE, "stem": records.STEM, "matmul": records.MATMUL, "depthwise": records.DEPTHWISE,
           "depthwise_any": records.DEPTHWISE_ANY, "wavelet_branch": records.WAVELET, "scan": records.SCAN,
           "state_scan": records.STATE_SCAN, "norm_gate": records.NORM_GATE, "copy_relu": records.COPY_RELU,
           "mean": records.MEAN, "gate": records.GATE, "result": records.RESULT, "move": records.MOVE,
           "combine": records.COMBINE, "norm": records.NORM, "gather": records.GATHER, "scatter": records.SCATTER,
           "analysis": records.ANALYSIS, "synthesis": records.SYNTHESIS, "scan_states": records.STATES,
           "dense": records.DENSE, "adaptive_mean": records.ADAPTIVE_MEAN, "maximum_pool": records.MAXIMUM,
           "resize": records.RESIZE, "path_conv": records.PATH_CONV, "rms_norm": records.RMS_NORM,
           "rotary": records.ROTARY, "row_stats": records.ROW_STATS, "norm_mean": records.NORM_MEAN}
ACTIVATIONS = {"none": records.ACTIVATION_NONE, "relu": records.ACTIVATION_RELU, "silu": records.ACTIVATION_SILU}
CHUNK_BYTES = 1 << 19  # rows of a matrix product that pass all panels before others do: half a second-level cache


@dataclass
class Plan:
    """What runs for one input shape. `cells` hold the addresses of inputs and results while it runs, and last an alarm:
    not 0 after a run whose input was not finite."""

    graph: Graph
    images: int
    threads: int
    operations: list[Operation]
    cells: np.ndarray
    steps: np.ndarray
    memory: list[np.ndarray] = field(repr=False)

    @property
    def activation_bytes(self) -> int:
        return sum(block.nbytes for block in self.memory[1:])

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        return [(self.images, *node.shape[1:]) for node in self.graph.inputs]


# --------------------------------------------------------------------------------------- what kernels can do

EXACT = {"relu", "relu6", "sigmoid", "silu", "softplus", "add", "multiply", "batch_norm", "layer_norm_channels",
         "analysis", "synthesis", "low_low", "add_to_low_low", "norm_gate", "concatenate", "slice_axis", "resize",
         "upsample", "adaptive_average_pool", "max_pool2d", "gelu", "rms_norm_channels", "rotary"}


def is_regular(node: Node) -> bool:
    """Whether a depthwise convolution is one for the fast kernel: an odd square filter in the middle of its padding."""
    k_h, k_w = node.operands["weight"].shape[2:]
    return k_h == k_w and k_h % 2 == 1 and node.attributes["padding"] == k_h // 2


def is_exact(node: Node) -> bool:
    """Whether a kernel writes no more than the node's channels, so that others may lie beside them."""
    return node.name in EXACT or node.name == "depthwise" and is_regular(node)


def cpu_schedule(graph: Graph) -> Schedule:
    users, outputs = graph.users(), set(graph.outputs)

    def bordered(node):
        if node in outputs or not users[node] or not (node.operation is None and node.ndim == 4 or is_window(node)
                                                          or node.name == "conv_transpose2d"):
            return None
        paddings = {reader.attributes["padding"] if is_bordered(reader) and reader.sources == (node,) else None
                    for reader in users[node]}
        return paddings.pop() if len(paddings) == 1 else None
    return schedule(graph, is_exact, in_place, bordered)


def split_level(graph: Graph, plan: Schedule) -> int:
    """The last level of the part that goes image by image; -1 for none.

    Levels after which a single buffer lives on are where a network can be cut. It is cut behind the last part whose
    activations are larger than its weights: up to there an image's maps are kept in the cache, later the weights."""
    cut, activations, weights, alive = -1, 0, 0, set()
    for level, stage in enumerate(plan.stages[:-1]):
        for node in stage.nodes:
            activations += prod(node.shape[1:]) + sum(prod(x.shape[1:]) for x in node.sources)
            weights += sum(prod(constant.shape) for constant in node.constants())
        alive = (alive | set(stage.first)) - set(stage.last)
        if len(alive) == 1 and next(iter(alive)).border is None:
            if activations <= weights:
                break
            cut, activations, weights = level, 0, 0
    return cut


class CpuLowering(MapLowering):
    """Operations with the fields of records, for one thread (`owner`) or for all together."""

    backend = "numba"

    def __init__(self, graph, plan, images, arena, weights: Weights, shares: int, owner: int, cells: np.ndarray,
                 tiles: int, first_image: int, bordered: dict[Buffer, Map]):
        super().__init__(graph, plan, images, arena)
        self.weights, self.owner, self.cells, self.tiles = weights, owner, cells, tiles
        self.shares = shares if owner == TOGETHER else 1
        self.first_image, self.bordered = first_image, bordered
        self.straight = straight_results(graph, plan)

    def emit(self, kernel, macs, moved, reads, writes, /, **fields):
        operation = super().emit(kernel, macs, moved, reads, writes, **fields)
        operation.owner = self.owner
        return operation

    def cell(self, index):
        return self.cells.ctypes.data + 8 * (index % len(self.cells))

    # ------------------------------------------------------------------------------------------ memory

    def allocate(self, buffer):
        if buffer in self.straight:
            return Map(self.arena.take(0), 0, buffer.channels, 0)
        if buffer.border is None:
            return super().allocate(buffer)
        if buffer not in self.bordered:  # never given back, so that its border stays zero
            node = next(node for node, region in self.plan.region.items() if region.buffer is buffer)
            packed = node.operation is None  # a picture's three channels, so that its pixels are one run of memory
            self.bordered[buffer] = self.bordered_map(node, buffer.border, packed, self.arena.fresh)
        return self.bordered[buffer]

    def bordered_map(self, node, border, packed, take):
        _, channels, height, width = node.shape
        pixel = (channels if packed else round_up(channels)) * FLOAT_BYTES
        row = (width + 2 * border) * pixel
        size = self.images * (height + 2 * border) * row
        return Map(take(size), pixel, channels, size, row)

    def release(self, buffer):
        if buffer.border is None:
            super().release(buffer)

    # ------------------------------------------------------------------------------- in and out, copies

    def lower_input(self, node):
        index, image = self.graph.inputs.index(node), prod(node.shape[1:])
        channels, height, width = (*node.shape[1:], 1, 1)[:3]
        region = self.plan.region[node]
        target, border = self.map(node), region.buffer.border or 0
        row = target.row or width * target.pitch
        for i in range(self.images):
            place = target.place + i * (height + 2 * border) * row + border * (row + target.pitch)
            self.emit("picture", 0, 8 * image, (), (node,), cell=self.cell(index), channels=channels, height=height,
                      width=width, offset=(self.first_image + i) * image * FLOAT_BYTES, out=place, pixel=target.pitch,
                      row=row, alarm=self.cell(-1))

    def result(self, node, index):
        if self.plan.region[node].buffer in self.straight:
            return                               # it is there already
        x, rows = self.map(node), self.rows(node)
        self.emit("result", 0, 8 * rows * x.channels, (node,), (), x=x.place, pitch=x.pitch, rows=rows,
                  channels=x.channels, cell=self.cell(len(self.graph.inputs) + index),
                  offset=self.first_image * rows_of(node) * x.channels * FLOAT_BYTES)

    def move_fields(self, x, start, strides, out, to, target, sizes, add):
        return (dict(zip(("x_image", "x_row", "x_column", "x_channel"), strides, strict=True))
                | dict(zip(("out_image", "out_row", "out_column", "out_channel"), target, strict=True))
                | dict(zip(("images", "rows", "columns", "channels"), sizes, strict=True))
                | dict(x=0 if x is None else self.map_of(x).place + start, out=self.map_of(out).place + to, add=add))

    # -------------------------------------------------------------------------------- matrix products

    def matmul(self, node, x: Map, matrix, out: Map, rows, reads, residuals=(), relu=False, **fields):
        chunk = max(TARGET.tile_rows, CHUNK_BYTES // x.pitch // TARGET.tile_rows * TARGET.tile_rows)
        residual, residual2 = [*(self.map(other).place for other in residuals), 0, 0][:2]
        self.emit("matmul", *product_cost(rows, matrix.depth, matrix.columns, len(residuals)), (*reads, *residuals),
                  (node,),
                  a=x.place, pitch=x.pitch, rows=rows, depth=matrix.depth, panels=matrix.panels,
                  panel_table=matrix.panel_table, bias=matrix.bias, out=out.place, out_pitch=out.pitch,
                  residual=residual, residual2=residual2, relu=int(relu), chunk=chunk, tiles=self.tiles,
                  tile_rows=TARGET.tile_rows, next=0)

    def lower_product(self, node, x, weight, bias=None, shortcut=None, shortcut2=None):
        out, others = self.map(node), [other for other in (shortcut, shortcut2) if other is not None]
        same = [other for other in others if self.map(other).pitch == out.pitch]
        relu = node.attributes["activation"] == "relu"
        self.matmul(node, self.map(x), self.weights.matrix(weight, bias), out, self.rows(node), (x,), same,
                    relu and same == others)
        self.add_rest(node, [other for other in others if other not in same], relu)

    def add_rest(self, node, others, relu):
        """Shortcuts whose rows are not as far apart as the result's (slices of wider maps): the product's kernel steps
        through result and shortcuts together, so they are added afterwards."""
        for other in others:
            self.combine("add", node, other, node)
        if others and relu:
            self.combine("relu", node, None, node)

    def window(self, node, x, matrix, kernel, shortcut=None, shortcut2=None):
        if is_dense(node):
            return self.dense(node, x, matrix, kernel, shortcut, shortcut2)
        stride, padding = node.attributes["stride"], node.attributes["padding"]
        region, source = self.plan.region[x], self.map(x)
        _, c_in, height, width = x.shape
        reads = (x,)
        if region.buffer.border is None and padding:
            source = self.with_border(x, padding)
            reads = (source,)
        border = padding if reads[0] is source else region.buffer.border or 0
        in_row = source.row or width * source.pitch
        out, out_border = self.map(node), self.plan.region[node].buffer.border or 0
        out_row = out.row or node.shape[3] * out.pitch
        packed = source.pitch == c_in * FLOAT_BYTES  # the kernel's pixels of a line are one run of memory
        others = [other for other in (shortcut, shortcut2) if other is not None]
        same = [other for other in others if self.map(other).pitch == out.pitch and not out.row]
        relu = node.attributes.get("activation") == "relu"
        residual, residual2 = [*(self.map(other).place for other in same), 0, 0][:2]
        self.emit("stem", *window_cost(self.images, x, node, matrix.depth, len(same)), (*reads, *same), (node,),
                  x=source.place, pixel=source.pitch, row=in_row, image=(height + 2 * border) * in_row,
                  depth=c_in * (kernel[1] if packed else 1), kernel=kernel[0], tap_row=in_row,
                  taps=1 if packed else kernel[1], tap=source.pitch, stride=stride,
                  out=out.place + out_border * (out_row + out.pitch), out_pixel=out.pitch, out_row=out_row,
                  out_image=(node.shape[2] + 2 * out_border) * out_row, height=node.shape[2], width=node.shape[3],
                  images=self.images, panels=matrix.panels, panel_table=matrix.panel_table, bias=matrix.bias,
                  residual=residual, residual2=residual2, relu=int(relu and same == others), tiles=self.tiles,
                  tile_rows=TARGET.tile_rows)
        self.add_rest(node, [other for other in others if other not in same], relu)

    def with_border(self, x, border):
        """A copy of a map with zeros around it."""
        _, channels, height, width = x.shape
        copy = self.bordered_map(x, border, False, self.arena.take)
        self.scratch.append(copy)
        strides = [(height + 2 * border) * copy.row, FLOAT_BYTES, copy.row, copy.pitch]
        whole = self.images, height + 2 * border, width + 2 * border, channels
        order = [strides[i] for i in (0, 2, 3, 1)]
        self.emit("move", 0, copy.size, (), (copy,), **self.move_fields(None, 0, (0,) * 4, copy, 0, order, whole, 0))
        self.move(x, self.strides(x), x.shape, copy, strides, to=border * (copy.row + copy.pitch))
        return copy

    def lower_project(self, node, weight, sequences):
        """One product for each image and direction."""
        K, _, _ = weight.shape
        length, x, out = node.shape[3], self.map(sequences), self.map(node)
        if K == 1:
            self.matmul(node, x, self.weights.slice_of_projection(weight, 0), out, self.images * length, (sequences,))
            return
        for image in range(self.images):
            for k in range(K):
                first = (image * K + k) * length
                self.matmul(node, Map(x.place + first * x.pitch, x.pitch, x.channels, 0),
                            self.weights.slice_of_projection(weight, k),
                            Map(out.place + first * out.pitch, out.pitch, out.channels, 0), length, (sequences,))

    # ------------------------------------------------------------------------ depthwise, wavelets, scans

    def lower_depthwise(self, node, x, weight, bias=None, scale=None, shift=None):
        if not is_regular(node):
            return self.depthwise_any(node, x, weight, bias, scale, shift)
        stride = node.attributes["stride"]
        taps = self.weights.taps(weight, bias, scale, shift)
        source, out = self.map(x), self.map(node)
        (_, channels, height, width), (out_height, out_width) = x.shape, node.shape[2:]
        vectors = round_up(channels) // LANES
        whole = (self.images * vectors) % self.shares == 0
        own = self.plan.region[node].start + round_up(channels) <= round_up(self.plan.region[node].buffer.channels) \
            and self.plan.region[node].start + channels == self.plan.region[node].buffer.channels
        activation = records.ACTIVATION_LOCAL if scale is not None else ACTIVATIONS[node.attributes["activation"]]
        self.emit("depthwise", *depthwise_cost(self.images, x, node, taps.kernel ** 2), (x,), (node,),
                  x=source.place, pitch=source.pitch, height=height, width=width, kernel=taps.kernel, stride=stride,
                  out_height=out_height, out_width=out_width, weights=taps.weights, bias=taps.bias, out=out.place,
                  out_pitch=out.pitch, activation=activation, after=taps.after, vectors=vectors, images=self.images,
                  lanes=LANES if own else (channels - 1) % LANES + 1,
                  bands=1 if whole else min(self.shares, out_height), zero=self.weights.zero_vector())

    def depthwise_any(self, node, x, weight, bias, scale, shift):
        """Any filter, stride and padding, over a copy of the map whose padding is a part of it."""
        padding, (k_h, k_w), out = node.attributes["padding"], weight.shape[2:], self.map(node)
        source, (_, channels, height, width) = self.with_border(x, padding), x.shape
        taps = self.weights.taps(weight, bias)
        self.emit("depthwise_any", *depthwise_cost(self.images, x, node, k_h * k_w), (source,), (node,),
                  x=source.place, pitch=source.pitch, height=height + 2 * padding, width=width + 2 * padding,
                  kernel_h=k_h, kernel_w=k_w, stride=node.attributes["stride"], out_height=node.shape[2],
                  out_width=node.shape[3], weights=taps.weights, bias=taps.bias, out=out.place, out_pitch=out.pitch,
                  vectors=round_up(channels) // LANES, images=self.images)
        if node.attributes["activation"] != "none":
            self.combine(node.attributes["activation"], node, None, node)
        if scale is not None:
            as_rows = [derived("as (1, C, 1, 1)", (1, *part.shape, 1, 1), lambda v: v.reshape(1, -1, 1, 1), part)
                       for part in (scale, shift)]
            self.combine("multiply", node, as_rows[0], node)
            self.combine("add", node, as_rows[1], node)
            self.combine("relu", node, None, node)

    def lower_wavelet_branch(self, node, x, weight):
        (_, channels, height, width), kernel = x.shape, weight.shape[-1]
        source, out = self.map(x), self.map(node)
        size = records.wavelet_scratch_bytes(height, width, kernel)
        scratch = self.bytes(self.shares * size)
        self.emit("wavelet_branch", *wavelet_branch_cost(self.images, x, kernel), (x,), (node, scratch), x=source.place,
                  pitch=source.pitch, height=height, width=width, kernel=kernel, weights=self.weights.bands(weight),
                  out=out.place, out_pitch=out.pitch, vectors=round_up(channels) // LANES, images=self.images,
                  scratch=scratch.place, scratch_size=size)

    def bytes(self, size):
        """Scratch memory until the end of this level."""
        self.scratch.append(Map(self.arena.take(size), 0, 1, size))  # one channel: whoever shares it waits
        return self.scratch[-1]

    def lower_analysis(self, node, x, bank):
        self.wavelet("analysis", node, x, bank, x)

    def lower_synthesis(self, node, bands, bank):
        self.wavelet("synthesis", node, bands, bank, node)

    def wavelet(self, kernel, node, x, bank, full):
        _, channels, height, width = full.shape
        source, out, k = self.map(x), self.map(node), bank.shape[-1]
        self.emit(kernel, self.rows(full) * channels * k * k, 8 * self.images * prod(x.shape[1:]),
                  (x,), (node,), x=source.place, pitch=source.pitch, height=height, width=width, channels=channels,
                  kernel=k, bank=self.weights.array(bank), out=out.place, out_pitch=out.pitch, images=self.images)

    def lower_path_scan(self, node, x, coefficients, dt_weight, dt_bias, A, D):
        order, (K, inner, rank), N = node.attributes["order"], dt_weight.shape, A.shape[2]
        if order == "bidirectional" and N == 1:
            u, c, out = self.map(x), self.map(coefficients), self.map(node)
            self.emit("scan", *scan_cost(self.images * K * rows_of(node), K, inner, rank), (x, coefficients), (node,),
                      u=u.place, pitch=u.pitch, coefficients=c.place, coefficients_pitch=c.pitch, rank=rank,
                      parameters=self.weights.scan(dt_weight, dt_bias, A, D, False), out=out.place,
                      out_pitch=out.pitch, vectors=round_up(inner) // LANES, images=self.images, length=rows_of(node),
                      zero=self.weights.zero_vector())
            return
        self.state_scan(node, x, coefficients, dt_weight, dt_bias, A, D, by_path=1)

    def lower_sequence_scan(self, node, u, coefficients, dt_weight, dt_bias, A, D, factor=None):
        self.state_scan(node, u, coefficients, dt_weight, dt_bias, A, D, factor, by_path=0)

    def state_scan(self, node, x, coefficients, dt_weight, dt_bias, A, D, factor=None, *, by_path):
        """Of a map's own pixels, found `by_path`, or of sequences that were made of them."""
        order, (K, inner, rank), N = node.attributes["order"], dt_weight.shape, A.shape[2]
        u, c, out = self.map(x), self.map(coefficients), self.map(node)
        length, size = paths(order, *node.shape[2:]).shape[1], records.state_scan_scratch_bytes(N)
        scratch, gate = self.bytes(self.shares * size), None if factor is None else self.map(factor)
        self.emit("state_scan", *scan_cost(self.images * K * length, K, inner, rank),
                  [x, coefficients, *(() if factor is None else (factor,))], (node, scratch), u=u.place, pitch=u.pitch,
                  coefficients=c.place, coefficients_pitch=c.pitch, rank=rank, states=N, directions=K,
                  parameters=self.weights.scan(dt_weight, dt_bias, A, D, True), table=self.table(order, node),
                  length=length, pixels=rows_of(node), out=out.place, out_pitch=out.pitch,
                  vectors=round_up(inner) // LANES, images=self.images, scratch=scratch.place, scratch_size=size,
                  by_path=by_path, nothing=self.weights.zeros(round_up(max(rank + 2 * N, 1)) // LANES),
                  shared=int(N == 16 and self.weights.multiples_of_the_first(A)), factor=gate.place if gate else 0,
                  factor_pitch=gate.pitch if gate else 0)

    def lower_path_conv(self, node, x, weight, bias):
        self.sequence_conv(node, x, weight, bias, self.table(node.attributes["order"], x), rows_of(x))

    def lower_causal_conv(self, node, sequences, weight, bias):
        self.sequence_conv(node, sequences, weight, bias, 0, 0)

    def sequence_conv(self, node, x, weight, bias, table, pixels):
        source, out, (K, dim, taps) = self.map(x), self.map(node), weight.shape
        self.emit("path_conv", *depthwise_cost(self.images, x, node, taps), (x,), (node,), x=source.place,
                  pitch=source.pitch, table=table, length=node.shape[3], directions=K, pixels=pixels,
                  by_path=int(table != 0), nothing=self.weights.zero_vector(), taps=taps,
                  weights=self.weights.causal_taps(weight, bias), silu=int(node.attributes.get("activation") == "silu"),
                  out=out.place, out_pitch=out.pitch, vectors=round_up(dim) // LANES, images=self.images)

    def table(self, order, node):
        """Address of an order's paths over a node's map."""
        return self.put_table(paths(order, *node.shape[2:]), ("paths", order, node.shape[2:]))

    def put_table(self, table, key):
        return self.weights.once("table", lambda: self.weights.put(table), options=key)

    def lower_cross_scan(self, node, x):
        self.gather(node, x, paths(node.attributes["order"], *x.shape[2:]), ("paths", node.attributes["order"],
                                                                            x.shape[2:]))

    def gather(self, node, x, table, key):
        source, out, count = self.map(x), self.map(node), rows_of(node)
        self.emit("gather", 0, 8 * self.images * count * source.channels, (x,), (node,), x=source.place,
                  pitch=source.pitch, x_rows=rows_of(x), table=self.put_table(table, key), count=count, out=out.place,
                  out_pitch=out.pitch, vectors=round_up(source.channels) // LANES, images=self.images)

    def lower_cross_merge(self, node, y):
        source, out, count = self.map(y), self.map(node), rows_of(y)
        self.emit("scatter", 0, 12 * self.images * count * source.channels, (y,), (node,), x=source.place,
                  pitch=source.pitch, table=self.table(node.attributes["order"], node), count=count, out=out.place,
                  out_pitch=out.pitch, out_rows=rows_of(node), vectors=round_up(source.channels) // LANES,
                  images=self.images)

    def lower_selective_scan(self, node, u, delta, A, B, C, D):
        """A and D are parameters; B and C may be parts of wider rows, so they are copied side by side."""
        _, K, dim, length = u.shape
        N, vectors = A.shape[2], round_up(dim) // LANES
        packed = [self.packed(part, vectors) for part in (u, delta)]
        tight = [self.packed(part, None) for part in (B, C)]
        scratch = self.bytes(self.shares * max(N, 1) * VECTOR_BYTES)
        out = self.map(node)
        parameters = [self.weights.once(form, lambda values: self.weights.put(by_direction(values)), part)
                      for form, part in (("A by direction", A), ("D by direction", D))]
        self.emit("scan_states", self.images * K * length * dim * N * 3, 16 * self.images * K * length * dim,
                  (*packed, *tight), (node, scratch), u=self.place_of(packed[0]), delta=self.place_of(packed[1]),
                  A=parameters[0], B=self.place_of(tight[0]), C=self.place_of(tight[1]), D=parameters[1], out=out.place,
                  states=N, directions=K, sequences=self.images * K, length=length, channel_vectors=vectors,
                  scratch=scratch.place, scratch_size=max(N, 1) * VECTOR_BYTES)

    def place_of(self, value):
        return value.place if isinstance(value, Map) else self.map(value).place

    def packed(self, node, vectors):
        """The node, if its rows follow each other (in whole vectors, tightly for None), else a copy where they do."""
        pitch = vectors * VECTOR_BYTES if vectors else self.map(node).channels * FLOAT_BYTES
        source = self.map(node)
        if source.pitch == pitch:
            return node
        copy = Map(self.arena.take(self.rows(node) * pitch), pitch, source.channels, self.rows(node) * pitch)
        self.scratch.append(copy)
        self.emit("move", 0, 8 * self.rows(node) * source.channels, (node,), (copy,), x=source.place, x_image=0,
                  x_row=source.pitch, x_column=0, x_channel=FLOAT_BYTES, out=copy.place, out_image=0, out_row=pitch,
                  out_column=0, out_channel=FLOAT_BYTES, images=1, rows=self.rows(node), columns=1,
                  channels=source.channels, add=0)
        return copy

    # ------------------------------------------------------------------------------- norms, elementwise

    def lower_norm_gate(self, node, y, weight, bias, z):
        source, gate, out, rows = self.map(y), self.map(z), self.map(node), self.rows(node)
        if source.channels % LANES or node.attributes["eps"] != 1e-5:
            self.norm_and_gate(node, y, weight, bias, z)
            return
        self.emit("norm_gate", 0, 16 * rows * source.channels, (y, z), (node,), y=source.place, pitch=source.pitch,
                  z=gate.place, z_pitch=gate.pitch, rows=rows, vectors=source.channels // LANES,
                  parameters=self.weights.layer_norm(weight, bias), out=out.place, out_pitch=out.pitch)

    def norm_fields(self, x, weight, bias, eps, out):
        source, rows, out = self.map(x), self.rows(out), self.map(out)
        return dict(x=source.place, pitch=source.pitch, rows=rows, channels=source.channels,
                    weight=self.weights.array(weight), bias=self.weights.array(bias), epsilon=self.epsilon(eps),
                    out=out.place, out_pitch=out.pitch)

    def epsilon(self, eps):
        return self.weights.once("epsilon", lambda: self.weights.put(np.float32([eps])), options=eps)

    def lower_rms_norm_channels(self, node, x, weight):
        source, out, rows = self.map(x), self.map(node), self.rows(node)
        self.emit("rms_norm", 0, 8 * rows * source.channels, (x,), (node,), x=source.place, pitch=source.pitch,
                  rows=rows, channels=source.channels, weight=self.weights.array(weight),
                  epsilon=self.epsilon(node.attributes["eps"]), out=out.place, out_pitch=out.pitch)

    def lower_norm_mean(self, node, x, weight, bias):
        source, out, length = self.map(x), self.map(node), rows_of(x)
        stats, vectors = self.bytes(self.rows(x) * 2 * FLOAT_BYTES), round_up(source.channels) // LANES
        self.emit("row_stats", 0, FLOAT_BYTES * self.rows(x) * source.channels, (x,), (stats,), x=source.place,
                  pitch=source.pitch, rows=self.rows(x), channels=source.channels,
                  epsilon=self.epsilon(node.attributes["eps"]), out=stats.place)
        self.emit("norm_mean", 0, FLOAT_BYTES * self.rows(x) * source.channels, (x, stats), (node,), x=source.place,
                  pitch=source.pitch, images=self.images, length=length, vectors=vectors, stats=stats.place,
                  weight=self.weights.channels(weight), bias=self.weights.channels(bias), out=out.place,
                  out_pitch=out.pitch)

    def lower_rotary(self, node, x, cos, sin):
        source, out, tables = self.map(x), self.map(node), []
        sign = np.where(np.arange(x.shape[1]) % 2, 1, -1).reshape(1, -1, 1, 1)
        for table in (cos, derived("the first of each pair negative", sin.shape, lambda values: values * sign, sin)):
            tables.append(self.weights.rows(table, 1, table.shape))
        self.emit("rotary", 0, 8 * self.rows(node) * source.channels, (x,), (node,), x=source.place,
                  pitch=source.pitch, length=rows_of(x), images=self.images, channels=source.channels,
                  cos=tables[0][0], sin=tables[1][0], table_pitch=round_up(source.channels) * FLOAT_BYTES,
                  count=tables[0][1], out=out.place, out_pitch=out.pitch)

    def gate_fields(self, x, values):
        source, gates = self.map(x), self.map(values)
        return dict(x=source.place, pitch=source.pitch, images=self.images, length=rows_of(x),
                    vectors=round_up(source.channels) // LANES, gate=gates.place, gate_pitch=gates.pitch)

    def lower_global_average_pool(self, node, x):
        source, out, length = self.map(x), self.map(node), rows_of(x)
        self.emit("mean", 0, FLOAT_BYTES * self.images * length * source.channels, (x,), (node,), x=source.place,
                  pitch=source.pitch, images=self.images, length=length, vectors=round_up(source.channels) // LANES,
                  out=out.place, out_pitch=out.pitch)

    def lower_relu(self, node, x):
        source, out = self.map(x), self.map(node)
        self.emit("copy_relu", 0, 8 * self.rows(node) * source.channels, (x,), (node,), x=source.place,
                  pitch=source.pitch, rows=self.rows(node), channels=source.channels, out=out.place,
                  out_pitch=out.pitch)

    def combine_fields(self, operation, x, y, length, target):
        source, out, rows = self.map_of(x), self.map_of(target), self.rows(self.node)
        fields = dict(y=0, y_pitch=0, y_length=length, y_count=1)
        if isinstance(y, Constant):
            place, count = self.weights.rows(y, channel_axis(self.node), self.node.shape)
            fields |= dict(y=place, y_pitch=round_up(source.channels) * FLOAT_BYTES, y_count=count)
        elif y is not None:
            other = self.map_of(y)
            fields |= dict(y=other.place, y_pitch=other.pitch, y_count=rows if length == 1 else self.images)
        return fields | dict(x=source.place, pitch=source.pitch, rows=rows, channels=source.channels, out=out.place,
                             out_pitch=out.pitch, operation=records.COMBINATIONS[operation])


# ------------------------------------------------------------------------------------------------ the plan

def by_direction(values: np.ndarray) -> np.ndarray:
    """(K, D, N) or (K, D) -> by direction and vectors of channels, for STATES."""
    return np.stack([by_vectors(direction) for direction in values])


def make_plan(graph: Graph, plan: Schedule, images: int, weights: Weights, threads: int, addresses, tiles: int) -> Plan:
    """`graph`: of one image, after the passes; `plan`: its `cpu_schedule`. `addresses`: {kernel: address}."""
    cells = np.zeros(len(graph.inputs) + len(graph.outputs) + 1, np.int64)
    each = images // threads if threads > 1 else 0
    shares = [(owner, owner * each, each) for owner in range(threads)] if each else []
    if images > each * threads:
        shares.append((TOGETHER, each * threads, images - each * threads))
    parts, cut = [], split_level(graph, plan)
    for owner, first, count in shares:
        arena, bordered = Arena(owner), {}

        def lowering(images, first_image, arena=arena, owner=owner, bordered=bordered):
            return CpuLowering(graph, plan, images, arena, weights, threads, owner, cells, tiles, first_image, bordered)
        whole, operations = lowering(count, first), []
        if count > 1 and cut >= 0:
            buffer = next(r.buffer for r in plan.region.values() if r.buffer.first <= cut < r.buffer.last)
            joint = whole.maps[buffer] = whole.allocate(buffer)
            for i in range(count):
                one = lowering(1, first + i)
                one.maps[buffer] = Map(joint.place + i * buffer.rows * joint.pitch, joint.pitch, joint.channels,
                                       joint.size // count)
                one.lower(range(cut + 1))
                operations += one.operations
            whole.lower(range(cut + 1, len(plan.stages)))
        else:
            whole.lower(range(len(plan.stages)))
        operations += whole.operations
        place_barriers(operations, owner)
        parts.append((arena, operations))
    return assemble(graph, images, threads, parts, cells, addresses)


def place_barriers(operations: list[Operation], owner: int) -> None:
    """A barrier before every operation that uses memory which one since the last barrier uses otherwise."""
    since: list = []
    for before, operation in zip([None, *operations], operations, strict=False):
        operation.barrier = False
        if any(touch.conflicts(other) for touch in operation.touches for other in since):
            before.barrier = owner == TOGETHER
            since = []
        since += operation.touches
    operations[-1].barrier = owner == TOGETHER


def assemble(graph, images, threads, parts, cells, addresses) -> Plan:
    """Records, with the addresses that places have become."""
    blocks = {arena.block: aligned_zeros(arena.size + VECTOR_BYTES) for arena, _ in parts}
    operations = [operation for _, part in parts for operation in part]
    table = aligned_zeros(sum(RECORDS[operation.kernel].itemsize for operation in operations))
    steps = np.zeros(len(operations), records.STEP)
    position, index = 0, 0
    for _, part in parts:
        product = None
        for operation in part:
            kind = RECORDS[operation.kernel]
            row = table[position:position + kind.itemsize].view(np.int64)
            if operation.kernel == "matmul":  # each product knows the next one's weights
                if product is not None:
                    product["next"] = table.ctypes.data + position
                product = row.view(kind)
            row[:] = [blocks[value.block].ctypes.data + value.offset if isinstance(value, Place) else value
                      for value in (operation.fields[name] for name in kind.names)]
            steps[index] = (addresses[operation.kernel], table.ctypes.data + position, operation.owner,
                            operation.barrier)
            position += kind.itemsize
            index += 1
    return Plan(graph, images, threads, operations, cells, steps, [table, *blocks.values()])
