"""Maps in the CPU's plan: convolutions of many channels, pooling, resizing. Part of `CpuLowering` (plan.py)."""

from __future__ import annotations

from math import prod

from mmref.engine.lowering import Lowering, is_window, window_cost
from mmref.engine.memory import Map
from mmref.graph.graph import Node
from mmref.kernels.target import FLOAT_BYTES, LANES, TARGET, VECTOR_BYTES, round_up

MANY = 128  # channels from which a convolution adds up products tap by tap; with fewer, windows are one product each
RESIZES = ("resize", "upsample")


def is_dense(node: Node) -> bool:
    """Whether it is a convolution that adds up products tap by tap, over plain maps."""
    return is_window(node) and (node.operands["x"].shape[1] >= MANY or node.attributes["dilation"] > 1)


def is_bordered(node: Node) -> bool:
    """Whether it is a convolution of windows, over maps with a border of zeros."""
    return is_window(node) and not is_dense(node)


class MapLowering(Lowering):
    """Methods of the operations named so; `shares`, `weights`, `tiles`, `cell`, `bytes` are CpuLowering's."""

    def dense(self, node, x, matrix, kernel, shortcut=None, shortcut2=None):
        source, out, (_, depth, height, width) = self.map(x), self.map(node), x.shape
        border = self.plan.region[node].buffer.border or 0
        out_row = out.row or node.shape[3] * out.pitch
        others = [other for other in (shortcut, shortcut2) if other is not None]
        same = [other for other in others if self.map(other).pitch == out.pitch and not out.row]
        relu = node.attributes.get("activation") == "relu"
        residual, residual2 = [*(self.map(other).place for other in same), 0, 0][:2]
        self.emit("dense", *window_cost(self.images, x, node, matrix.depth, len(same)), (x, *same), (node,),
                  x=source.place, pixel=source.pitch, in_height=height, in_width=width, depth=depth,
                  kernel_h=kernel[0], kernel_w=kernel[1], dilation=node.attributes["dilation"],
                  padding=node.attributes["padding"], stride=node.attributes["stride"],
                  out=out.place + border * (out_row + out.pitch), out_pixel=out.pitch, out_row=out_row,
                  out_image=(node.shape[2] + 2 * border) * out_row, height=node.shape[2], width=node.shape[3],
                  images=self.images, panels=matrix.panels, panel_table=matrix.panel_table, bias=matrix.bias,
                  zeros=self.weights.zeros(TARGET.tile_vectors), residual=residual, residual2=residual2,
                  relu=int(relu and same == others), tiles=self.tiles, tile_rows=TARGET.tile_rows)
        self.add_rest(node, [other for other in others if other not in same], relu)

    def lower_convolution(self, node, x, weight, bias=None, shortcut=None, shortcut2=None):
        if self.is_whole(node, x, weight) and shortcut is None:
            return self.whole_map(node, x, weight, bias)
        return super().lower_convolution(node, x, weight, bias, shortcut, shortcut2)

    def is_whole(self, node, x, weight):
        """Whether a convolution's filters cover the map, whose pixels lie side by side: each image is one long row."""
        region, covers = self.plan.region[x], weight.shape[2:] == x.shape[2:] != (1, 1)
        return covers and not node.attributes["padding"] and not region.buffer.border and not region.start

    def whole_map(self, node, x, weight, bias):
        source, pixels = self.map(x), prod(x.shape[2:])
        matrix = self.weights.whole_map(weight, bias, source.pitch // FLOAT_BYTES)
        rows = Map(source.place, pixels * source.pitch, matrix.depth, 0)
        self.matmul(node, rows, matrix, self.map(node), self.images, (x,), relu=node.attributes["activation"] == "relu")

    def lower_conv_transpose2d(self, node, x, weight, bias=None):
        """Filters as far apart as they are wide: for each of their taps a 1x1 convolution, whose results lie `stride`
        pixels apart."""
        stride, (_, c_in, height, width) = self.tiling_stride(node, weight), x.shape
        source, out = self.map(x), self.map(node)
        in_border, out_border = (self.plan.region[value].buffer.border or 0 for value in (x, node))
        in_row, out_row = source.row or width * source.pitch, out.row or width * stride * out.pitch
        macs, moved = window_cost(self.images, x, node, c_in, 0)
        for i in range(stride):
            for j in range(stride):
                matrix = self.weights.tap(weight, bias, i, j)
                self.emit("stem", macs // stride ** 2, moved // stride ** 2, (x,), (node,),
                          x=source.place + in_border * (in_row + source.pitch), pixel=source.pitch, row=in_row,
                          image=(height + 2 * in_border) * in_row, depth=c_in, kernel=1, tap_row=0, taps=1, tap=0,
                          stride=1, out=out.place + (i + out_border) * out_row + (j + out_border) * out.pitch,
                          out_pixel=stride * out.pitch, out_row=stride * out_row,
                          out_image=(stride * height + 2 * out_border) * out_row, height=height, width=width,
                          images=self.images, panels=matrix.panels, panel_table=matrix.panel_table, bias=matrix.bias,
                          residual=0, residual2=0, relu=0, tiles=self.tiles, tile_rows=TARGET.tile_rows)

    # ------------------------------------------------------------------------------------------- pooling

    def lower_adaptive_average_pool(self, node, x):
        self.emit("adaptive_mean", 0, FLOAT_BYTES * self.rows(x) * x.shape[1], (x,), (node,), **self.map_fields(x),
                  rows=node.shape[2], columns=node.shape[3], **self.out_fields(node))

    def lower_max_pool2d(self, node, x):
        options = {name: node.attributes[name] for name in ("kernel", "stride", "padding")}
        self.emit("maximum_pool", 0, FLOAT_BYTES * (self.rows(x) + self.rows(node)) * x.shape[1], (x,), (node,),
                  **self.map_fields(x), **options, out_height=node.shape[2], out_width=node.shape[3],
                  **self.out_fields(node))

    def map_fields(self, x):
        source = self.map(x)
        return dict(x=source.place, pitch=source.pitch, height=x.shape[2], width=x.shape[3], images=self.images,
                    vectors=round_up(source.channels) // LANES)

    def out_fields(self, node):
        out = self.map(node)
        return dict(out=out.place, out_pitch=out.pitch, lanes=(out.channels - 1) % LANES + 1)

    # ------------------------------------------------------------------------------------------ resizing

    def lower_resize(self, node, x):
        size = 0 if node.attributes["mode"] == "nearest" else x.shape[3] * round_up(x.shape[1]) * FLOAT_BYTES
        scratch = self.bytes(max(self.shares * size, VECTOR_BYTES))
        index = self.straight.get(self.plan.region[node].buffer)
        fields = dict(self.map_fields(x), **self.out_fields(node), cell=0)
        if index is not None:                    # into the caller's array
            fields |= dict(out=self.first_image * prod(node.shape[1:]) * FLOAT_BYTES,
                           out_pitch=node.shape[1] * FLOAT_BYTES, cell=self.cell(len(self.graph.inputs) + index))
        self.emit("resize", 0, FLOAT_BYTES * (self.rows(x) + self.rows(node)) * x.shape[1], (x,), (node, scratch),
                  **fields, out_height=node.shape[2], out_width=node.shape[3],
                  nearest=int(node.attributes["mode"] == "nearest"), scratch=scratch.place, scratch_size=size)

    lower_upsample = lower_resize


def straight_results(graph, plan) -> dict:
    """{buffer: index of the output} of resized maps that are results and nothing else: they are written where the
    caller wants them, and have no memory of their own."""
    users = graph.users()
    return {plan.region[node].buffer: index for index, node in enumerate(graph.outputs)
            if node.name in RESIZES and not users[node] and graph.outputs.count(node) == 1}
