"""The device's plan of a forward: the walk's operations as kernel launches on one stream and one block of memory.

The whole batch goes through every operation together. Memory is asked for once, when the plan is made, and so are the
views of it that kernels get, and the kernels are compiled; a forward only launches. After one forward the launches can
be captured as a CUDA graph, which the driver then runs as one: at small batches launching a hundred kernels from Python
takes longer than they do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from importlib import import_module

import numpy as np

from mmref.engine.cuda import device
from mmref.engine.cuda.products import LibraryProducts, OwnProducts
from mmref.engine.cuda.weights import DeviceMatrix, DeviceTaps, DeviceWeights
from mmref.engine.memory import Arena, Map
from mmref.engine.walk import Operation, Walk, output_shape
from mmref.errors import OutOfDeviceMemory
from mmref.kernels.target import FLOAT_BYTES, round_up
from mmref.models.variants import Variant

# kernel of an operation: its module below mmref.kernels.cuda and the function there
KERNELS = {"stem": ("stem", "stem"), "depthwise": ("depthwise", "depthwise"), "scan": ("scan", "scan"),
           "wavelet_branch": ("wavelet_branch", "wavelet_branch"), "norm_gate": ("norm_gate", "norm_gate"),
           "copy_relu": ("join", "copy_relu"), "mean": ("pool", "mean"), "gate": ("squeeze_excite", "gate"),
           "result": ("layout", "to_channels_first")}


@dataclass(frozen=True)
class Rows:
    """The first `count` rows of a map, as a kernel's argument."""

    map: Map
    count: int


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


class DeviceWalk(Walk):
    """Operations whose fields are their kernels' arguments: counts, weights on the device, `Rows` of maps."""

    def __init__(self, config: Variant, weights: DeviceWeights, outputs, products: LibraryProducts | OwnProducts):
        super().__init__(config, weights, outputs)
        self.products, self.arena = products, DeviceArena(products.least_rows)

    def network(self, shape) -> None:
        """Emit everything for an input of `shape`."""
        images, _, height, width = shape
        stem, size = self.stem(images, height, width)
        self.result("0", stem, size)
        x = self.first_stage(stem, size)
        self.arena.free(stem)
        self.later_stages(x, size)

    def stem(self, images, height, width):
        """The four convolutions of the patch embedding; the first reads the caller's NCHW array."""
        c_in, w = self.config.in_chans, self.config.widths[0]
        x = None
        for index, c_out in enumerate((w // 8, w // 4, w // 2, w)):
            matrix = self.weights.stem(f"patch_embed.{2 * index}")
            out_height, out_width = -(-height // 2), -(-width // 2)
            pixels = out_height * out_width
            out = self.arena.map(images * pixels, c_out)
            source = {} if x is None else {"x": Rows(x, images * height * width)}  # no x: the plan's input
            self.emit("stem", f"patch_embed.{2 * index}", (images, c_out, out_height, out_width),
                      images * matrix.depth * c_out * pixels,
                      4 * (images * (c_in * height * width + c_out * pixels) + matrix.depth * c_out),
                      **source, weight=matrix.weight, bias=matrix.bias, out=Rows(out, images * pixels), images=images,
                      height=height, width=width, c_in=c_in, relu=index < 3, nchw=x is None)
            if x is not None:
                self.arena.free(x)
            x, height, width, c_in = out, out_height, out_width, c_out
        return x, (images, height, width)

    # ------------------------------------------------------------------------- arguments of the kernels

    def matmul_fields(self, x, matrix: DeviceMatrix, out, rows, residual, residual2, relu):
        scratch = None
        if residual is not None and residual.place == out.place and not self.products.in_place:
            scratch = self.arena.map(rows, matrix.columns)
            self.arena.free(scratch)  # nobody else writes there before this operation is done
        return dict(a=x.part(0, matrix.depth), matrix=matrix, out=out.part(0, matrix.columns), rows=rows,
                    residual=residual and residual.part(0, matrix.columns),
                    residual2=residual2 and residual2.part(0, matrix.columns), relu=relu, scratch=scratch)

    def depthwise_fields(self, x, size, taps: DeviceTaps, out, activation, stride):
        images, height, width = size
        out_pixels = -(-height // stride) * -(-width // stride)
        return dict(x=Rows(x, images * height * width), weight=taps.weights, bias=taps.bias,
                    out=Rows(out, images * out_pixels), images=images, height=height, width=width, kernel=taps.kernel,
                    stride=stride, activation=activation, after=taps.after)

    def wavelet_branch_fields(self, x, size, channels, kernel, weights, out):
        images, height, width = size
        pixels = images * height * width
        return dict(x=Rows(x.part(0, channels), pixels), weight=weights, out=Rows(out.part(0, channels), pixels),
                    images=images, height=height, width=width, kernel=kernel), ()

    def copy_relu_fields(self, x, pixels, out):
        return dict(x=Rows(x, pixels), out=Rows(out, pixels))

    def scan_fields(self, u, coefficients, rank, parameters, y, images, length):
        rows = images * length
        return dict(u=Rows(u, rows), coefficients=Rows(coefficients, rows), **parameters, out=Rows(y, rows),
                    images=images, length=length, rank=rank)

    def norm_gate_fields(self, y, z, parameters, out, pixels):
        return dict(y=Rows(y, pixels), z=Rows(z, pixels), **parameters, out=Rows(out, pixels))

    def mean_fields(self, x, out, images, pixels):
        return dict(x=Rows(x, images * pixels), out=Rows(out, images), images=images, length=pixels)

    def gate_fields(self, x, gates, images, pixels):
        return dict(x=Rows(x, images * pixels), gates=Rows(gates, images), images=images, length=pixels)

    def result_fields(self, index, x, size, first):
        images, height, width = size
        pixels = height * width
        return dict(x=Rows(x, images * pixels), out=index, images=images, pixels=pixels)


@dataclass
class Launch:
    """What an operation became: calls without arguments. Its NumPy twin (mmref.kernels.cuda.twins) has the name
    `kernel` and takes the same `arguments`; that of the first stem lack x, which is the plan's input."""

    kernel: str
    arguments: dict[str, object]
    calls: list


@dataclass
class DevicePlan:
    """What runs for one input shape. `launches[i]` is what became of `operations[i]`."""

    shape: tuple[int, ...]
    outputs: tuple[str, ...]
    operations: list[Operation]
    stream: object
    memory: object = field(repr=False)                   # the block of all maps
    pictures: object = field(repr=False)                 # device array (B, C, H, W), for whoever has none
    results: list[object] = field(repr=False)            # device arrays (B, channels, pixels), one an output
    launches: list[Launch] = field(default_factory=list, repr=False)
    input: object = None                                 # what the first operation reads, while it is launched
    graph: object = None
    runs: int = 0
    threads = 1  # for the table

    @property
    def activation_bytes(self) -> int:
        return self.memory.nbytes

    def launch(self) -> None:
        """Put all launches on the stream; does not wait."""
        for launch in self.launches:
            for call in launch.calls:
                call()

    def run(self, pictures, graph: bool) -> None:
        """A forward, eagerly or as a graph; the first is always eager, for the driver loads code then. Does not wait.

        A graph reads the `pictures` that it was captured with."""
        self.input = pictures
        if not graph or not self.runs:
            self.launch()
        else:
            if self.graph is None:
                self.graph = device.Graph(self.stream, self.launch)
            self.graph.launch()
        self.runs, self.input = self.runs + 1, None


def make_plan(config: Variant, weights: DeviceWeights, shape, outputs, products, stream, make_room) -> DevicePlan:
    """`outputs`: of "0" to "3" (stem and stages), "pooled", "logits". `make_room()` frees something, if it can."""
    walk = DeviceWalk(config, weights, outputs, products)
    walk.network(shape)
    shapes = [output_shape(config, shape, name) for name in outputs]
    sizes = [(arena_floats(walk),), shape, *((s[0], s[-1], int(np.prod(s[1:-1]))) for s in shapes)]
    memory, pictures, *results = allocate(sizes, shape, make_room,
                                          lambda: batch_that_fits(config, weights, shape, outputs, products))
    plan = DevicePlan(tuple(shape), tuple(outputs), walk.operations, stream, memory, pictures, results)
    device.wait_for_uploads()  # of weights: products are tried out on our own stream
    for operation in walk.operations:
        plan.launches.append(lower(operation, plan, products))
    plan.input = pictures
    device.prepare(plan.launch)
    plan.input = None
    return plan


def arena_floats(walk) -> int:
    """The arena and a row more, so that a column slice of the last row can be cut from whole rows."""
    return (walk.arena.size + walk.arena.widest) // FLOAT_BYTES


def lower(operation: Operation, plan: DevicePlan, products) -> Launch:
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
        arguments["out"] = plan.results[arguments["out"]]
    if operation.kernel == "stem" and "x" not in arguments:
        return Launch(name, arguments, [lambda: kernel(x=plan.input, **arguments, stream=plan.stream)])
    return Launch(name, arguments, [partial(kernel, **arguments, stream=plan.stream)])


# --------------------------------------------------------------------------------------------- memory

def allocate(sizes, shape, make_room, batch_that_fits) -> list:
    """Float32 device arrays of these sizes, for a plan of `shape`; or OutOfDeviceMemory."""
    while True:
        try:
            return [device.allocate(size) for size in sizes]
        except MemoryError as error:
            if make_room():
                continue
            free, total = device.free_memory()
            needed = FLOAT_BYTES * sum(int(np.prod(size)) for size in sizes)
            fits = batch_that_fits()
            raise OutOfDeviceMemory(
                f"batch must be smaller for this device: {shape[0]} pictures of {shape[2]}x{shape[3]} need "
                f"{needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} of {total / 2**20:,.0f} MiB are free; "
                f"{f'a batch of {fits} would fit' if fits else 'not even one would fit'}") from error


def needed_bytes(config, weights, shape, outputs, products) -> int:
    """Device memory of a plan and its input."""
    walk = DeviceWalk(config, weights, outputs, products)
    walk.network(shape)
    results = sum(int(np.prod(output_shape(config, shape, name))) for name in outputs)
    return FLOAT_BYTES * (arena_floats(walk) + results + int(np.prod(shape)))


def batch_that_fits(config, weights, shape, outputs, products) -> int:
    """The largest batch below that of `shape` whose plan fits into what is free, 0 if none does."""
    free = device.free_memory()[0]
    low, high = 0, shape[0]  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        fits = needed_bytes(config, weights, (middle, *shape[1:]), outputs, products) <= free
        low, high = (middle, high) if fits else (low, middle)
    return low
