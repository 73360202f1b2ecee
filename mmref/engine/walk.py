"""The walk over the network: which operation follows which, and which activation is alive how long.

CPU and device plans share it. `Walk` knows the network and counts what an operation costs; a subclass says what an
operation is to its kernels: one method `KERNEL_fields` each, which returns the fields of the operation, and the stem,
whose layout in memory is its own. The walk hands over maps (mmref.engine.memory); `weights` is an object with
the methods of `mmref.engine.weights.Weights`, whatever those return.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmref.engine.memory import Arena, Map
from mmref.models.mrffi import split_channels
from mmref.models.variants import Variant

TOGETHER = -1


@dataclass
class Operation:
    """One row of a plan. `fields` are what its kernel is given."""

    kernel: str
    layer: str                    # the layer or layers it computes, by checkpoint name
    shape: tuple[int, ...]        # of the output, (images, channels, height, width) or (images, channels)
    fields: dict[str, object]
    macs: int
    bytes: int                    # weights, inputs and outputs, each once
    owner: int = TOGETHER         # CPU: the thread that works on it alone
    barrier: bool = True          # CPU: whether the next one reads what it wrote


class Walk:
    """Emits the operations of some images, in order, on one arena."""

    def __init__(self, config: Variant, weights, outputs: tuple[str, ...], block: int = 0):
        self.config, self.weights, self.outputs = config, weights, outputs
        self.arena, self.operations = Arena(block), []

    def emit(self, kernel, layer, shape, macs, moved, barrier=True, /, **fields):
        self.operations.append(Operation(kernel, layer, shape, fields, macs, moved, barrier=barrier))

    # ------------------------------------------------------------------------------ operations

    def matmul(self, layer, x: Map, matrix, out: Map, shape, *, residual: Map | None = None,
               residual2: Map | None = None, relu=False, barrier=True):
        """out = act(x @ matrix + bias + residuals)."""
        rows = shape[0] * (shape[2] * shape[3] if len(shape) == 4 else 1)
        self.emit("matmul", layer, shape, rows * matrix.depth * matrix.columns,
                  4 * (rows * (matrix.depth + matrix.columns * (1 + bool(residual) + bool(residual2)))
                       + matrix.depth * matrix.columns), barrier,
                  **self.matmul_fields(x, matrix, out, rows, residual, residual2, relu))

    def depthwise(self, layer, x: Map, size, taps, out: Map, activation="none", stride=1, barrier=True):
        """activation: "none", "relu", "silu", or "local" (ReLU, the taps' second scale and shift, ReLU)."""
        images, height, width = size
        out_height, out_width = -(-height // stride), -(-width // stride)
        self.emit("depthwise", layer, (images, taps.channels, out_height, out_width),
                  images * taps.channels * taps.kernel ** 2 * out_height * out_width,
                  4 * images * taps.channels * (height * width + out_height * out_width), barrier,
                  **self.depthwise_fields(x, size, taps, out, activation, stride))

    def wavelet_branch(self, name, x: Map, size, channels, out: Map) -> tuple[Map, ...]:
        """Returns scratch memory that must live until the branches have met."""
        images, height, width = size
        kernel, weights = self.weights.wavelet(name)
        bands = 4 * (-(-height // 2)) * (-(-width // 2))
        fields, scratch = self.wavelet_branch_fields(x, size, channels, kernel, weights, out)
        self.emit("wavelet_branch", f"{name}.wavelet_convs", (images, channels, height, width),
                  images * channels * kernel ** 2 * bands, 8 * images * channels * height * width, False, **fields)
        return scratch

    def copy_relu(self, layer, x: Map, size, out: Map):
        images, height, width = size
        pixels = images * height * width
        self.emit("copy_relu", layer, (images, x.channels, height, width), 0, 8 * pixels * x.channels,
                  **self.copy_relu_fields(x, pixels, out))

    def scan(self, attention, u: Map, size) -> Map:
        """x_proj of both directions, then dt_proj and the scan in one."""
        images, height, width = size
        pixels, inner, matrix = images * height * width, u.channels, self.weights.coefficients(attention)
        rank = matrix.columns // 2 - 2
        coefficients = self.arena.map(pixels, matrix.columns)
        self.matmul(f"{attention}.x_proj_weight", u, matrix, coefficients, (images, matrix.columns, height, width))
        y = self.arena.map(pixels, inner)
        self.emit("scan", f"{attention} (dt_projs, scan)", (images, inner, height, width),
                  2 * pixels * inner * rank, 12 * pixels * inner,
                  **self.scan_fields(u, coefficients, rank, self.weights.scan(attention), y, images, height * width))
        self.arena.free(coefficients)
        return y

    def norm_gate(self, layer, y: Map, z: Map, size, out: Map):
        images, height, width = size
        pixels = images * height * width
        self.emit("norm_gate", layer, (images, y.channels, height, width), 0, 16 * pixels * y.channels,
                  **self.norm_gate_fields(y, z, self.weights.layer_norm(layer), out, pixels))

    def mean(self, layer, x: Map, images, pixels) -> Map:
        out = self.arena.map(images, x.channels)
        self.emit("mean", layer, (images, x.channels), 0, 4 * images * pixels * x.channels,
                  **self.mean_fields(x, out, images, pixels))
        return out

    def gate(self, layer, x: Map, gates: Map, size):
        images, height, width = size
        self.emit("gate", layer, (images, x.channels, height, width), 0, 8 * images * height * width * x.channels,
                  **self.gate_fields(x, gates, images, height * width))

    def result(self, output, x: Map, size, first=0):
        """Hand rows to the caller's array of that output, from its row `first` on, if it was asked for."""
        images, height, width = size
        pixels = images * height * width
        if output in self.outputs:
            self.emit("result", "(to the caller)", (pixels, x.channels), 0, 8 * pixels * x.channels,
                      **self.result_fields(self.outputs.index(output), x, size, first))

    # --------------------------------------------------------------------------- parts of the network

    def depthwise_and_ffn(self, dw, ffn, x: Map, size, residual2: Map | None = None, out: Map | None = None) -> Map:
        """x + dw(x), then + ffn; frees nothing of its caller's."""
        images, height, width = size
        pixels, shape = images * height * width, (images, x.channels, height, width)
        mixed = self.arena.map(pixels, x.channels)
        self.depthwise(dw, x, size, self.weights.depthwise(dw, residual=True), mixed)
        hidden = self.arena.map(pixels, 2 * x.channels)
        self.matmul(f"{ffn}.pw1", mixed, self.weights.pointwise(f"{ffn}.pw1"), hidden,
                    (images, 2 * x.channels, height, width), relu=True)
        out = out or self.arena.map(pixels, x.channels)
        self.matmul(f"{ffn}.pw2", hidden, self.weights.pointwise(f"{ffn}.pw2"), out, shape, residual=mixed,
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
        self.depthwise(f"{name}.local_op", x.part(glob, local), size, w.local(f"{name}.local_op"),
                       joined.part(glob, local), "local", barrier=not identity)
        if identity:
            self.copy_relu(f"{name} (identity)", x.part(glob + local, identity), size,
                           joined.part(glob + local, identity))
        self.arena.free(*scratch)  # not before the barrier: the three branches run side by side
        u = self.arena.map(pixels, inner)
        self.depthwise(f"{attention}.conv2d", gated.part(0, inner), size, w.depthwise(f"{attention}.conv2d"), u, "silu")
        y = self.scan(attention, u, size)
        self.norm_gate(f"{attention}.out_norm", y, gated.part(inner, inner), size, u)
        self.arena.free(y, gated)
        self.matmul(f"{attention}.out_proj", u, w.out_projection(attention, f"{name}.global_op.base_scale"),
                    joined.part(0, glob), (images, glob, height, width), residual=joined.part(0, glob), relu=True)
        self.arena.free(u)
        out = self.arena.map(pixels, x.channels)
        self.matmul(f"{name}.proj", joined, w.pointwise(f"{name}.proj.1"), out, (images, x.channels, height, width),
                    residual=x)
        self.arena.free(joined)
        return out

    def block(self, name, x: Map, size, stage, out: Map | None = None) -> Map:
        first = self.depthwise_and_ffn(f"{name}.dw0.m", f"{name}.ffn0.m", x, size)
        mixed = self.mixer(f"{name}.mixer.m.attn", first, size, stage)
        self.arena.free(first)
        out = self.depthwise_and_ffn(f"{name}.dw1.m", f"{name}.ffn1.m", mixed, size, residual2=x, out=out)
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
        self.depthwise(f"{name}.conv2", wide, (images, height, width), w.depthwise(f"{name}.conv2"), halved, "relu",
                       stride=2)
        self.arena.free(wide)
        means = self.mean(f"{name}.se (mean)", halved, images, pixels)
        reduce, widen = w.pointwise(f"{name}.se.fc1"), w.pointwise(f"{name}.se.fc2")
        reduced, gates = self.arena.map(images, reduce.columns), self.arena.map(images, hidden)
        self.matmul(f"{name}.se.fc1", means, reduce, reduced, (images, reduce.columns), relu=True)
        self.matmul(f"{name}.se.fc2", reduced, widen, gates, (images, hidden))
        self.gate(f"{name}.se.gate", halved, gates, size)
        project = w.pointwise(f"{name}.conv3")
        out = self.arena.map(images * pixels, project.columns)
        self.matmul(f"{name}.conv3", halved, project, out, (images, project.columns, *size[1:]))
        self.arena.free(means, reduced, gates, halved)
        return out, size

    # ------------------------------------------------------------------------------- the network

    def first_stage(self, stem: Map, size, out: Map | None = None) -> Map:
        """Blocks of stage 1; the stem's map is left as it is. `out`: where the last block writes."""
        x, depth = stem, self.config.depths[0]
        for index in range(depth):
            y = self.block(f"blocks1.{index}", x, size, 0, out if index == depth - 1 else None)
            if index:
                self.arena.free(x)
            x = y
        return x

    def later_stages(self, stage1: Map, size, first_image=0):
        """Stages 2 and 3 and the head; hands over every map from stage 1 on that was asked for.

        first_image: where these images stand in the caller's batch."""
        x = stage1
        for stage in (1, 2, 3):
            if stage > 1:
                x, size = self.later_stage(stage, x, size)
            self.result(str(stage), x, size, first_image * size[1] * size[2])
        images = size[0]
        if "pooled" in self.outputs or "logits" in self.outputs:
            pooled = self.mean("head (mean)", x, images, size[1] * size[2])
            self.result("pooled", pooled, (images, 1, 1), first_image)
            if "logits" in self.outputs:
                head = self.weights.pointwise("head")
                logits = self.arena.map(images, head.columns)
                self.matmul("head", pooled, head, logits, (images, head.columns))
                self.result("logits", logits, (images, 1, 1), first_image)

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


def output_shape(config: Variant, shape, output: str) -> tuple[int, ...]:
    """Channels-last shape of an output: "0" to "3" (stem and stages), "pooled", "logits"."""
    batch, _, height, width = shape
    if output == "logits":
        return batch, config.num_classes
    if output == "pooled":
        return batch, config.widths[-1]
    stride, channels = {"0": (16, config.widths[0]), "1": (16, config.widths[0]), "2": (32, config.widths[1]),
                        "3": (64, config.widths[2])}[output]
    return batch, -(-height // stride), -(-width // stride), channels
