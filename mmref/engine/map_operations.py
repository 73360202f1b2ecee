"""Maps in the CPU's plan: convolutions of many channels, pooling, resizing. Part of `CpuLowering` (plan.py)."""

from __future__ import annotations

from math import prod

from mmref.engine.lowering import Lowering, is_window, window_cost
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
