"""The CPU's plan of a forward: the walk's operations as records, their memory, and the threads that run them.

Where there are enough images each thread takes whole ones, on memory of its own and without barriers: what it writes
it finds in its own cache when it reads it. Stem and stage 1 go image by image, because their maps are large; stages 2
and 3 take all of a thread's images at once, because there the weights are large. Single images, and those that are left
over, are worked on by all threads together, each operation divided among them, with a barrier after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mmref.engine.memory import Map, Place, aligned_zeros
from mmref.engine.walk import TOGETHER, Operation, Walk, output_shape
from mmref.engine.weights import Matrix, Taps, Weights
from mmref.kernels import records
from mmref.kernels.target import FLOAT_BYTES, LANES, TARGET, VECTOR_BYTES, round_up
from mmref.models.variants import Variant

RECORDS = {"picture": records.PICTURE, "stem": records.STEM, "matmul": records.MATMUL, "depthwise": records.DEPTHWISE,
           "wavelet_branch": records.WAVELET, "scan": records.SCAN, "norm_gate": records.NORM_GATE,
           "copy_relu": records.COPY_RELU, "mean": records.MEAN, "gate": records.GATE, "result": records.RESULT}
ACTIVATIONS = {"none": records.ACTIVATION_NONE, "relu": records.ACTIVATION_RELU, "silu": records.ACTIVATION_SILU,
               "local": records.ACTIVATION_LOCAL}
CHUNK_BYTES = 1 << 19  # rows of a matrix product that pass all panels before others do: half a second-level cache


@dataclass
class Plan:
    """What runs for one input shape. `cells` hold the addresses of the input and of the results while it runs, and last
    an alarm: not 0 after a run whose input was not finite."""

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


class CpuWalk(Walk):
    """Lowers operations to records, for one thread (`owner`) or for all together."""

    def __init__(self, config: Variant, weights: Weights, outputs, shares: int, owner: int, cells: np.ndarray,
                 tiles: int):
        super().__init__(config, weights, outputs, owner)
        self.shares = shares if owner == TOGETHER else 1
        self.owner, self.cells, self.tiles = owner, cells, tiles

    def emit(self, kernel, layer, shape, macs, moved, barrier=True, /, **fields):
        self.operations.append(Operation(kernel, layer, shape, fields, macs, moved, self.owner,
                                         barrier and self.owner == TOGETHER))

    def cell(self, index):
        return self.cells.ctypes.data + 8 * (index % len(self.cells))

    # ------------------------------------------------------------------------------ operations

    def matmul_fields(self, x, matrix: Matrix, out, rows, residual, residual2, relu):
        chunk = max(TARGET.tile_rows, CHUNK_BYTES // x.pitch // TARGET.tile_rows * TARGET.tile_rows)
        return dict(a=x.place, pitch=x.pitch, rows=rows, depth=matrix.depth, panels=matrix.panels,
                    panel_table=matrix.panel_table, bias=matrix.bias, out=out.place, out_pitch=out.pitch,
                    residual=residual.place if residual else 0, residual2=residual2.place if residual2 else 0,
                    relu=int(relu), chunk=chunk, tiles=self.tiles, tile_rows=TARGET.tile_rows, next=0)

    def depthwise_fields(self, x, size, taps: Taps, out, activation, stride):
        images, height, width = size
        out_height, out_width = -(-height // stride), -(-width // stride)
        vectors = round_up(taps.channels) // LANES
        whole = (images * vectors) % self.shares == 0
        lanes = (taps.channels - 1) % LANES + 1 if activation == "local" else LANES  # other channels lie beside these
        return dict(x=x.place, pitch=x.pitch, height=height, width=width, kernel=taps.kernel, stride=stride,
                    out_height=out_height, out_width=out_width, weights=taps.weights, bias=taps.bias, out=out.place,
                    out_pitch=out.pitch, activation=ACTIVATIONS[activation], after=taps.after, vectors=vectors,
                    images=images, lanes=lanes, bands=1 if whole else min(self.shares, out_height),
                    zero=self.weights.zero_vector())

    def wavelet_branch_fields(self, x, size, channels, kernel, weights, out):
        images, height, width = size
        bands = records.wavelet_scratch_bytes(height, width, kernel)
        taken = self.shares * bands
        scratch = Map(self.arena.take(taken), 0, 0, taken)
        return dict(x=x.place, pitch=x.pitch, height=height, width=width, kernel=kernel, weights=weights,
                    out=out.place, out_pitch=out.pitch, vectors=channels // LANES, images=images,
                    scratch=scratch.place, scratch_size=bands), (scratch,)

    def copy_relu_fields(self, x, pixels, out):
        return dict(x=x.place, pitch=x.pitch, rows=pixels, channels=x.channels, out=out.place, out_pitch=out.pitch)

    def scan_fields(self, u, coefficients, rank, parameters, y, images, length):
        return dict(u=u.place, pitch=u.pitch, coefficients=coefficients.place, coefficients_pitch=coefficients.pitch,
                    rank=rank, parameters=parameters, out=y.place, out_pitch=y.pitch, vectors=u.channels // LANES,
                    images=images, length=length, zero=self.weights.zero_vector())

    def norm_gate_fields(self, y, z, parameters, out, pixels):
        return dict(y=y.place, pitch=y.pitch, z=z.place, z_pitch=z.pitch, rows=pixels, vectors=y.channels // LANES,
                    parameters=parameters, out=out.place, out_pitch=out.pitch)

    def mean_fields(self, x, out, images, pixels):
        return dict(x=x.place, pitch=x.pitch, images=images, length=pixels, vectors=round_up(x.channels) // LANES,
                    out=out.place, out_pitch=out.pitch)

    def gate_fields(self, x, gates, images, pixels):
        return dict(x=x.place, pitch=x.pitch, images=images, length=pixels, vectors=round_up(x.channels) // LANES,
                    gate=gates.place, gate_pitch=gates.pitch)

    def result_fields(self, index, x, size, first):
        return dict(x=x.place, pitch=x.pitch, rows=size[0] * size[1] * size[2], channels=x.channels,
                    cell=self.cell(1 + index), offset=first * x.channels * FLOAT_BYTES)

    # ------------------------------------------------------------------------------ image by image

    def picture_and_stem(self, image, height, width) -> Map:
        """The stem of one image; the maps with a border are never given back, so that their borders stay zero."""
        channels, w = self.config.in_chans, self.config.widths[0]
        pixel = channels * FLOAT_BYTES
        row = (width + 2) * pixel
        x = self.arena.take((height + 2) * row)
        self.emit("picture", "(input)", (1, channels, height, width), 0, 8 * channels * height * width,
                  cell=self.cell(0), offset=image * channels * height * width * FLOAT_BYTES, channels=channels,
                  height=height, width=width, out=x, row=row, alarm=self.cell(-1))
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

    def network(self, first_image, images, height, width):
        """All of the network for `images` images from `first_image` on."""
        size = 1, -(-height // 16), -(-width // 16)
        pixels = size[1] * size[2]
        stage1 = self.arena.map(images * pixels, self.config.widths[0])
        stem_map, stem_operations = None, []
        for image in range(first_image, first_image + images):
            if stem_map is None:
                stem_map = self.picture_and_stem(image, height, width)
                stem_operations = self.operations[-5:]
            else:  # another picture, the same memory
                offset = image * self.config.in_chans * height * width * FLOAT_BYTES
                entry = stem_operations[0]
                self.operations += [replace(entry, fields={**entry.fields, "offset": offset}), *stem_operations[1:]]
            self.result("0", stem_map, size, image * pixels)
            place = stage1.place + (image - first_image) * pixels * stage1.pitch
            self.first_stage(stem_map, size, Map(place, stage1.pitch, stage1.channels, 0))
        self.later_stages(stage1, (images, *size[1:]), first_image)


def make_plan(config: Variant, weights: Weights, shape, outputs, threads: int, addresses, tiles: int) -> Plan:
    """`outputs`: of "0" to "3" (stem and stages), "pooled", "logits". `addresses`: {kernel: address}."""
    batch, _, height, width = shape
    cells = np.zeros(2 + len(outputs), np.int64)
    each = batch // threads if threads > 1 else 0
    shares = [(owner, owner * each, each) for owner in range(threads)] if each else []
    if batch > each * threads:
        shares.append((TOGETHER, each * threads, batch - each * threads))
    walks = []
    for owner, first, images in shares:
        walks.append(CpuWalk(config, weights, outputs, threads, owner, cells, tiles))
        walks[-1].network(first, images, height, width)
    blocks = {walk.arena.block: aligned_zeros(walk.arena.size + VECTOR_BYTES) for walk in walks}
    operations = [operation for walk in walks for operation in walk.operations]
    table = aligned_zeros(sum(RECORDS[operation.kernel].itemsize for operation in operations))
    steps = np.zeros(len(operations), records.STEP)
    position, index = 0, 0
    for walk in walks:
        product = None
        for operation in walk.operations:
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
