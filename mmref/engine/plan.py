"""The plan of a forward: which operations, in which order, on which memory, by which threads.

A batch is planned in two parts. Stem and stage 1 go image by image: their maps are large and should stay in the cache.
Where there are enough images each thread takes whole ones, on memory of its own, without barriers. Images that are left
over, single ones, and stages 2 and 3 of the whole batch (small maps, large weights, which should be read once) are
worked on by all threads together, each operation divided among them, with a barrier after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mmref.engine.memory import Arena, Map, Place, aligned_zeros
from mmref.engine.weights import Matrix, Taps, Weights
from mmref.kernels import records
from mmref.kernels.target import FLOAT_BYTES, LANES, TARGET, VECTOR_BYTES, round_up
from mmref.mrffi import split_channels
from mmref.variants import Variant

TOGETHER = -1
RECORDS = {"picture": records.PICTURE, "stem": records.STEM, "matmul": records.MATMUL, "depthwise": records.DEPTHWISE,
           "wavelet_branch": records.WAVELET, "scan": records.SCAN, "norm_gate": records.NORM_GATE,
           "copy_relu": records.COPY_RELU, "mean": records.MEAN, "gate": records.GATE, "result": records.RESULT}
CHUNK_BYTES = 1 << 19  # rows of a matrix product that pass all panels before others do: half a second-level cache


@dataclass
class Operation:
    """One row of the plan. `fields` are those of the kernel's record (mmref.kernels.records)."""

    kernel: str
    layer: str                    # the layer or layers it computes, by checkpoint name
    shape: tuple[int, ...]        # of the output, (images, channels, height, width) or (images, channels)
    fields: dict[str, int | Place]
    macs: int
    bytes: int                    # weights, inputs and outputs, each once
    owner: int = TOGETHER
    barrier: bool = True


@dataclass
class Plan:
    """What runs for one input shape. `cells` hold the addresses of the input and of the results while it runs."""

    shape: tuple[int, ...]
    outputs: tuple[str, ...]
    output_shapes: tuple[tuple[int, ...], ...]   # channels last
    threads: int
    operations: list[Operation]
    cells: np.ndarray
    steps: np.ndarray
    memory: list[np.ndarray] = field(repr=False)

    @property
    def activation_bytes(self) -> int:
        return sum(block.nbytes for block in self.memory[1:])


class Builder:
    """Emits the operations of some images: by one thread (`owner`), or by all together."""

    def __init__(self, config: Variant, weights: Weights, shares: int, owner: int, cells: np.ndarray, tiles: int):
        self.config, self.weights, self.owner, self.tiles = config, weights, owner, tiles
        self.shares = shares if owner == TOGETHER else 1
        self.cells = cells
        self.arena, self.operations = Arena(owner), []

    def emit(self, kernel, layer, shape, macs, moved, barrier=True, /, **fields):
        self.operations.append(Operation(kernel, layer, shape, fields, macs, moved, self.owner,
                                         barrier and self.owner == TOGETHER))

    def cell(self, index):
        return self.cells.ctypes.data + 8 * index

    # ------------------------------------------------------------------------------ operations

    def matmul(self, layer, x: Map, matrix: Matrix, out: Map, shape, *, start=0, residual=0, residual2=0, relu=False,
               barrier=True):
        """out[:, start:] = act(x @ matrix + bias + residuals)."""
        rows = shape[0] * (shape[2] * shape[3] if len(shape) == 4 else 1)
        chunk = max(TARGET.tile_rows, CHUNK_BYTES // x.pitch // TARGET.tile_rows * TARGET.tile_rows)
        self.emit("matmul", layer, shape, rows * matrix.depth * matrix.columns,
                  4 * (rows * (matrix.depth + matrix.columns * (1 + bool(residual) + bool(residual2)))
                       + matrix.depth * matrix.columns), barrier,
                  a=x.place, pitch=x.pitch, rows=rows, depth=matrix.depth, panels=matrix.panels,
                  panel_table=matrix.panel_table, bias=matrix.bias, out=out.from_channel(start), out_pitch=out.pitch,
                  residual=residual, residual2=residual2, relu=int(relu), chunk=chunk, tiles=self.tiles,
                  tile_rows=TARGET.tile_rows, next=0)

    def depthwise(self, layer, x: Map, size, taps: Taps, out: Map, activation=records.ACTIVATION_NONE, stride=1,
                  start=0, lanes=LANES, barrier=True):
        images, height, width = size
        out_height, out_width = -(-height // stride), -(-width // stride)
        vectors = round_up(taps.channels) // LANES
        whole = (images * vectors) % self.shares == 0
        macs = images * taps.channels * taps.kernel ** 2 * out_height * out_width
        self.emit("depthwise", layer, (images, taps.channels, out_height, out_width), macs,
                  4 * images * taps.channels * (height * width + out_height * out_width), barrier,
                  x=x.from_channel(start), pitch=x.pitch, height=height, width=width, kernel=taps.kernel, stride=stride,
                  out_height=out_height, out_width=out_width, weights=taps.weights, bias=taps.bias,
                  out=out.from_channel(start), out_pitch=out.pitch, activation=activation, after=taps.after,
                  vectors=vectors, images=images, lanes=lanes, bands=1 if whole else min(self.shares, out_height))

    def picture_and_stem(self, image, height, width) -> Map:
        """The stem of one image; the maps with a border are never given back, so that their borders stay zero."""
        channels, w = self.config.in_chans, self.config.widths[0]
        pixel = channels * FLOAT_BYTES
        row = (width + 2) * pixel
        x = self.arena.take((height + 2) * row)
        self.emit("picture", "(input)", (1, channels, height, width), 0, 8 * channels * height * width,
                  cell=self.cell(0), offset=image * channels * height * width * FLOAT_BYTES, channels=channels,
                  height=height, width=width, out=x, row=row)
        for index, c_out in enumerate((w // 8, w // 4, w // 2, w)):
            matrix = self.weights.stem(f"patch_embed.{2 * index}")
            height, width, last = -(-height // 2), -(-width // 2), index == 3
            out_pixel = round_up(c_out) * FLOAT_BYTES
            out_row = (width + 2 * (not last)) * out_pixel
            out = self.arena.take((height + 2 * (not last)) * out_row)
            packed = pixel == channels * FLOAT_BYTES  # three pixels are one run of memory
            self.emit("stem", f"patch_embed.{2 * index}", (1, c_out, height, width),
                      matrix.depth * c_out * height * width,
                      4 * (4 * channels * height * width + c_out * height * width + matrix.depth * c_out),
                      x=x, pixel=pixel, row=row, depth=channels * (3 if packed else 1), taps=1 if packed else 3,
                      out=out if last else out + out_row + out_pixel, out_pixel=out_pixel, out_row=out_row,
                      height=height, width=width, panels=matrix.panels, panel_table=matrix.panel_table,
                      bias=matrix.bias, relu=int(not last), tiles=self.tiles, tile_rows=TARGET.tile_rows)
            x, pixel, row, channels = out, out_pixel, out_row, c_out
        return Map(x, pixel, w, height * row)

    def depthwise_and_ffn(self, dw, ffn, x: Map, size, residual2=0, out: Map | None = None) -> Map:
        """x + dw(x), then + ffn; frees nothing of its caller's."""
        images, height, width = size
        pixels, shape = images * height * width, (images, x.channels, height, width)
        mixed = self.arena.map(pixels, x.channels)
        self.depthwise(dw, x, size, self.weights.depthwise(dw, residual=True), mixed)
        hidden = self.arena.map(pixels, 2 * x.channels)
        self.matmul(f"{ffn}.pw1", mixed, self.weights.pointwise(f"{ffn}.pw1"), hidden,
                    (images, 2 * x.channels, height, width), relu=True)
        out = out or self.arena.map(pixels, x.channels)
        self.matmul(f"{ffn}.pw2", hidden, self.weights.pointwise(f"{ffn}.pw2"), out, shape, residual=mixed.place,
                    residual2=residual2)
        self.arena.free(mixed, hidden)
        return out

    def mixer(self, name, x: Map, size, stage) -> Map:
        """x + MRFFI(x). The three branches write their channels of `joined`, ReLU applied, and proj reads it."""
        images, height, width = size
        config, w, pixels = self.config, self.weights, images * height * width
        glob, local, identity = split_channels(x.channels, config.global_ratio[stage], config.local_ratio[stage])
        inner = config.ssm_ratio * glob
        attention = f"{name}.global_op.global_atten"
        joined, gated = self.arena.map(pixels, x.channels), self.arena.map(pixels, 2 * inner)
        self.matmul(f"{attention}.in_proj", x, w.pointwise(f"{attention}.in_proj"), gated,
                    (images, 2 * inner, height, width), barrier=False)
        scratch = self.wavelet_branch(f"{name}.global_op", x, size, glob, joined)
        taps = w.local(f"{name}.local_op")
        self.depthwise(f"{name}.local_op", x, size, taps, joined, records.ACTIVATION_LOCAL, start=glob,
                       lanes=(local - 1) % LANES + 1, barrier=not identity)
        if identity:
            first = glob + local
            self.emit("copy_relu", f"{name} (identity)", (images, identity, height, width), 0, 8 * pixels * identity,
                      x=x.from_channel(first), pitch=x.pitch, rows=pixels, channels=identity,
                      out=joined.from_channel(first), out_pitch=joined.pitch)
        self.arena.give(*scratch)  # not before the barrier: the three branches run side by side
        u = self.arena.map(pixels, inner)
        self.depthwise(f"{attention}.conv2d", Map(gated.place, gated.pitch, inner, 0), size,
                       w.depthwise(f"{attention}.conv2d"), u, records.ACTIVATION_SILU)
        y = self.scan(attention, u, size, inner)
        self.emit("norm_gate", f"{attention}.out_norm", (images, inner, height, width), 0, 16 * pixels * inner,
                  y=y.place, pitch=y.pitch, z=gated.from_channel(inner), z_pitch=gated.pitch, rows=pixels,
                  vectors=inner // LANES, parameters=w.layer_norm(f"{attention}.out_norm"), out=u.place,
                  out_pitch=u.pitch)
        self.arena.free(y, gated)
        self.matmul(f"{attention}.out_proj", u, w.out_projection(attention, f"{name}.global_op.base_scale"), joined,
                    (images, glob, height, width), residual=joined.place, relu=True)
        self.arena.free(u)
        out = self.arena.map(pixels, x.channels)
        self.matmul(f"{name}.proj", joined, w.pointwise(f"{name}.proj.1"), out, (images, x.channels, height, width),
                    residual=x.place)
        self.arena.free(joined)
        return out

    def wavelet_branch(self, name, x: Map, size, channels, out: Map):
        images, height, width = size
        kernel, taps = self.weights.wavelet(name)
        bands = 4 * (-(-height // 2)) * (-(-width // 2)) * VECTOR_BYTES
        scratch = self.arena.take(self.shares * bands)
        self.emit("wavelet_branch", f"{name}.wavelet_convs", (images, channels, height, width),
                  images * channels * kernel ** 2 * bands // VECTOR_BYTES,
                  8 * images * channels * height * width, False,
                  x=x.place, pitch=x.pitch, height=height, width=width, kernel=kernel, weights=taps, out=out.place,
                  out_pitch=out.pitch, vectors=channels // LANES, images=images, scratch=scratch, scratch_size=bands)
        return scratch, self.shares * bands

    def scan(self, attention, u: Map, size, inner) -> Map:
        images, height, width = size
        pixels, rank = images * height * width, self.weights.state[f"{attention}.dt_projs_weight"].shape[2]
        matrix = self.weights.coefficients(attention)
        coefficients = self.arena.map(pixels, 2 * (rank + 2))
        self.matmul(f"{attention}.x_proj_weight", u, matrix, coefficients, (images, 2 * (rank + 2), height, width))
        y = self.arena.map(pixels, inner)
        self.emit("scan", f"{attention} (dt_projs, scan)", (images, inner, height, width),
                  2 * pixels * inner * rank, 12 * pixels * inner,
                  u=u.place, pitch=u.pitch, coefficients=coefficients.place, coefficients_pitch=coefficients.pitch,
                  rank=rank, parameters=self.weights.scan(attention), out=y.place, out_pitch=y.pitch,
                  vectors=inner // LANES, images=images, length=height * width)
        self.arena.free(coefficients)
        return y

    def block(self, name, x: Map, size, stage, out: Map | None = None) -> Map:
        first = self.depthwise_and_ffn(f"{name}.dw0.m", f"{name}.ffn0.m", x, size)
        mixed = self.mixer(f"{name}.mixer.m.attn", first, size, stage)
        self.arena.free(first)
        out = self.depthwise_and_ffn(f"{name}.dw1.m", f"{name}.ffn1.m", mixed, size, residual2=x.place, out=out)
        self.arena.free(mixed)
        return out

    def merging(self, name, x: Map, size) -> tuple[Map, tuple[int, int, int]]:
        """PatchMerging."""
        images, height, width = size
        w = self.weights
        expand = w.pointwise(f"{name}.conv1")
        hidden = expand.columns
        wide = self.arena.map(images * height * width, hidden)
        self.matmul(f"{name}.conv1", x, expand, wide, (images, hidden, height, width), relu=True)
        size = images, -(-height // 2), -(-width // 2)
        pixels = size[1] * size[2]
        halved = self.arena.map(images * pixels, hidden)
        self.depthwise(f"{name}.conv2", wide, (images, height, width), w.depthwise(f"{name}.conv2"), halved,
                       records.ACTIVATION_RELU, stride=2)
        self.arena.free(wide)
        means = self.mean(f"{name}.se (mean)", halved, images, pixels)
        reduce, widen = w.pointwise(f"{name}.se.fc1"), w.pointwise(f"{name}.se.fc2")
        reduced, gates = self.arena.map(images, reduce.columns), self.arena.map(images, hidden)
        self.matmul(f"{name}.se.fc1", means, reduce, reduced, (images, reduce.columns), relu=True)
        self.matmul(f"{name}.se.fc2", reduced, widen, gates, (images, hidden))
        self.emit("gate", f"{name}.se.gate", (images, hidden, *size[1:]), 0, 8 * images * pixels * hidden,
                  x=halved.place, pitch=halved.pitch, images=images, length=pixels, vectors=round_up(hidden) // LANES,
                  gate=gates.place, gate_pitch=gates.pitch)
        project = w.pointwise(f"{name}.conv3")
        out = self.arena.map(images * pixels, project.columns)
        self.matmul(f"{name}.conv3", halved, project, out, (images, project.columns, *size[1:]))
        self.arena.free(means, reduced, gates, halved)
        return out, size

    def mean(self, layer, x: Map, images, pixels) -> Map:
        out = self.arena.map(images, x.channels)
        self.emit("mean", layer, (images, x.channels), 0, 4 * images * pixels * x.channels, x=x.place, pitch=x.pitch,
                  images=images, length=pixels, vectors=round_up(x.channels) // LANES, out=out.place,
                  out_pitch=out.pitch)
        return out

    def result(self, index, x: Map, pixels, first):
        """Hand rows to the caller's array, from its row `first` on."""
        self.emit("result", "(to the caller)", (pixels, x.channels), 0, 8 * pixels * x.channels, x=x.place,
                  pitch=x.pitch, rows=pixels, channels=x.channels, cell=self.cell(1 + index),
                  offset=first * x.channels * FLOAT_BYTES)

    # ------------------------------------------------------------------------------- the network

    def front(self, first_image, images, stage1: Map, height, width, outputs):
        """Stem and stage 1 of `images` images from `first_image` on, into their places in the batch's `stage1`."""
        small = -(-height // 16), -(-width // 16)
        pixels, depth = small[0] * small[1], self.config.depths[0]
        stem_map, stem_operations = None, []
        for image in range(first_image, first_image + images):
            if stem_map is None:
                stem_map = self.picture_and_stem(image, height, width)
                stem_operations = self.operations[-5:]
            else:  # another picture, the same memory
                offset = image * self.config.in_chans * height * width * FLOAT_BYTES
                entry = stem_operations[0]
                self.operations += [replace(entry, fields={**entry.fields, "offset": offset}), *stem_operations[1:]]
            x = stem_map
            if "0" in outputs:
                self.result(outputs.index("0"), x, pixels, image * pixels)
            for index in range(depth):
                out = None
                if index == depth - 1:
                    out = Map(stage1.place + image * pixels * stage1.pitch, stage1.pitch, stage1.channels, 0)
                y = self.block(f"blocks1.{index}", x, (1, *small), 0, out)
                if index:
                    self.arena.free(x)
                x = y

    def back(self, images, stage1: Map, height, width, outputs):
        """Stages 2 and 3 and the head of the whole batch."""
        x, size = stage1, (images, -(-height // 16), -(-width // 16))
        for stage in (1, 2, 3):
            if stage > 1:
                x, size = self.later_stage(stage, x, size)
            if str(stage) in outputs:
                self.result(outputs.index(str(stage)), x, images * size[1] * size[2], 0)
        if "pooled" in outputs or "logits" in outputs:
            pooled = self.mean("head (mean)", x, images, size[1] * size[2])
            if "pooled" in outputs:
                self.result(outputs.index("pooled"), pooled, images, 0)
            if "logits" in outputs:
                head = self.weights.pointwise("head")
                logits = self.arena.map(images, head.columns)
                self.matmul("head", pooled, head, logits, (images, head.columns))
                self.result(outputs.index("logits"), logits, images, 0)

    def later_stage(self, stage, x, size):
        """Downsampling trio and blocks of stage 2 or 3; frees x."""
        name = f"blocks{stage}"
        y = self.depthwise_and_ffn(f"{name}.0.0.m", f"{name}.0.1.m", x, size)
        self.arena.free(x)
        x, size = self.merging(f"{name}.1", y, size)
        self.arena.free(y)
        y = self.depthwise_and_ffn(f"{name}.2.0.m", f"{name}.2.1.m", x, size)
        self.arena.free(x)
        x = y
        for index in range(self.config.depths[stage - 1]):
            y = self.block(f"{name}.{3 + index}", x, size, stage - 1)
            self.arena.free(x)
            x = y
        return x, size


def make_plan(config: Variant, weights: Weights, shape, outputs, threads: int, addresses, tiles: int) -> Plan:
    """`outputs`: of "0" to "3" (stem and stages), "pooled", "logits". `addresses`: {kernel: address}."""
    batch, _, height, width = shape
    cells = np.zeros(1 + len(outputs), np.int64)
    each = batch // threads if threads > 1 else 0
    together = Builder(config, weights, threads, TOGETHER, cells, tiles)
    stage1 = together.arena.map(batch * -(-height // 16) * -(-width // 16), config.widths[0])
    builders = []
    for owner in range(threads if each else 0):
        builder = Builder(config, weights, threads, owner, cells, tiles)
        builder.front(owner * each, each, stage1, height, width, outputs)
        builders.append(builder)
    if builders:
        builders[-1].operations[-1].barrier = True
    together.front(each * threads, batch - each * threads, stage1, height, width, outputs)
    together.back(batch, stage1, height, width, outputs)
    builders.append(together)
    blocks = {builder.arena.block: aligned_zeros(builder.arena.size + VECTOR_BYTES) for builder in builders}
    operations = [operation for builder in builders for operation in builder.operations]
    table = aligned_zeros(sum(RECORDS[operation.kernel].itemsize for operation in operations))
    steps = np.zeros(len(operations), records.STEP)
    position, index = 0, 0
    for builder in builders:
        product = None
        for operation in builder.operations:
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
    return Plan(tuple(shape), tuple(outputs), tuple(output_shape(config, shape, name) for name in outputs), threads,
                operations, cells, steps, [table, *blocks.values()])


def output_shape(config: Variant, shape, output: str) -> tuple[int, ...]:
    """Channels-last shape of one of `Plan.outputs`."""
    batch, _, height, width = shape
    if output == "logits":
        return batch, config.num_classes
    if output == "pooled":
        return batch, config.widths[-1]
    stride, channels = {"0": (16, config.widths[0]), "1": (16, config.widths[0]), "2": (32, config.widths[1]),
                        "3": (64, config.widths[2])}[output]
    return batch, -(-height // stride), -(-width // stride), channels
