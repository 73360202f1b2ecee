"""The network as a drawing, made from its graph: stages and blocks, and one layer opened into its operations.

Nothing here knows a network: boxes are the layers that the text called, their sizes and arrows the graph's.
"""

from __future__ import annotations

import numpy as np

from mmref.errors import ValueProblem
from mmref.graph.graph import Graph, Node
from mmref.graph.passes import fold_batch_norm
from mmref.graph.trace import trace
from mmref.models.summary import summarize
from mmref.nn.layer import Sequential

_BOX, _INNER, _LINE = "#e8eef6", "#ffffff", "#44546a"
# what an operation does, told by its colour
COLOURS = {"conv2d": "#cfe2f3", "linear": "#cfe2f3", "project": "#cfe2f3", "depthwise_conv2d": "#d9ead3",
           "analysis": "#fff2cc", "synthesis": "#fff2cc", "cross_scan": "#f4cccc", "cross_merge": "#f4cccc",
           "selective_scan": "#ea9999", "layer_norm_channels": "#eadcf4", "batch_norm": "#eadcf4"}
QUIET = ("slice_axis", "concatenate")  # move numbers, compute nothing


def draw_graph(model, layer: str | None = None, size: int | None = None):
    """A matplotlib Figure: left the network from picture to answer, right `layer` opened.

    layer   a layer's dotted name; default: the first of the kind that makes up most of the network (a block)
    size    pixels per side of the input (default: the model's own)

    Raises ValueProblem for a layer that the network does not call, NotTraceable where its text cannot be traced.
    """
    from matplotlib.figure import Figure
    size = size or model.config.img_size
    model = model.frozen()
    graph = fold_batch_norm(trace(model.forward, model, (1, model.config.in_chans, size, size)))
    rows = {row.name: row for row in summarize(model, size)}
    layer = default_layer(model, rows) if layer is None else layer
    inside = operations_of(graph, layer)
    if not inside:
        raise ValueProblem(f"--layer must be a layer that the network calls, such as {default_layer(model, rows)!r}, "
                           f"got {layer!r}")
    levels = levels_of(inside)
    depth, widest = max(levels.values()) + 1, max(np.bincount(list(levels.values())))
    height = max(8.0, 0.62 * depth, 0.9 * len(model.children) + 2)
    figure = Figure(figsize=(8.5 + 1.75 * widest, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[7.5, 1 + 1.75 * widest])
    _network(left, model, rows, size)
    _opened(right, inside, levels, layer)
    return figure


def default_layer(model, rows) -> str:
    """The first layer of the class whose layers are largest, of those that hold a good part of all parameters and
    stand two or more times."""
    kinds = {}
    for path, layer in model.walk():
        if path in rows and len(layer.children) > 1 and type(layer) is not Sequential:
            kinds.setdefault(type(layer), []).append(path)
    sums = {paths[0]: sum(rows[path].parameters for path in paths) for paths in kinds.values() if len(paths) > 1}
    large = [path for path, total in sums.items() if total > 0.4 * rows[""].parameters]
    return max(large, key=lambda path: rows[path].parameters, default="")


def operations_of(graph: Graph, layer: str) -> list[Node]:
    """The nodes that a layer and those inside it made."""
    return [node for node in graph if node.operation is not None
            and (not layer or node.layer == layer or node.layer.startswith(layer + "."))]


def levels_of(nodes: list[Node]) -> dict[Node, int]:
    """{node: how many operations of `nodes` stand before it, on the longest way}."""
    levels = {}
    for node in nodes:
        levels[node] = 1 + max((levels[source] for source in node.sources if source in levels), default=-1)
    return levels


# -------------------------------------------------------------------------------------------------- the network

def _network(axes, model, rows, size):
    """One box for each layer of the network itself, with those inside it; the shape between two on the arrow."""
    axes.set_axis_off()
    children = [(name, child) for name, child in model.children.items() if name in rows]
    total = len(children)
    axes.set_xlim(0, 10)
    axes.set_ylim(total + 1.1, -1.1)
    _text(axes, 5, -0.85, f"{model.config.name}, picture {model.config.in_chans} x {size} x {size}", weight="bold")
    for i, (name, child) in enumerate(children):
        row = rows[name]
        _rectangle(axes, 0.4, i, 9.2, 0.66, _BOX)
        _text(axes, 0.6, i + 0.14, f"{name}  ({row.kind})", ha="left", weight="bold")
        _text(axes, 9.4, i + 0.14, f"{row.parameters / 1e6:,.2f} M parameters, {row.macs / 1e6:,.0f} M multiply-adds",
              ha="right")
        inner = [(path, rows[f"{name}.{path}"]) for path in child.children if f"{name}.{path}" in rows]
        for j, (path, part) in enumerate(inner):
            width = 8.8 / len(inner)
            _rectangle(axes, 0.6 + j * width, i + 0.26, width - 0.1, 0.32, _INNER)
            kind = part.kind if len(inner) < 8 else ""
            _text(axes, 0.6 + (j + 0.5) * width - 0.05, i + 0.42, f"{path} {kind}".strip(), size=6.5)
        _arrow(axes, 5, i - 0.34, 5, i)
        _arrow(axes, 5, i + 0.66, 5, i + 1)
        _text(axes, 5.15, i + 0.83, " x ".join(map(str, row.shape)), ha="left")


# ---------------------------------------------------------------------------------------------- one layer opened

def _opened(axes, nodes, levels, layer):
    axes.set_axis_off()
    place = places(nodes, levels)
    widest = max(x for x, _ in place.values())
    axes.set_xlim(-0.7, widest + 1.6)
    axes.set_ylim(max(levels.values()) + 0.9, -1.3)
    _text(axes, widest / 2, -1.1, f"{layer or 'the network'}, opened: operations, and the shapes between them",
          weight="bold")
    for node in nodes:
        x, y = place[node]
        for source in node.sources:
            if source in place and y - place[source][1] > 1:  # past other boxes
                _arrow(axes, place[source][0] + 0.45, place[source][1], x + 0.45 * (x <= place[source][0]), y - 0.16,
                       "#b08000", "arc3,rad=-0.3")
            elif source in place:
                _arrow(axes, *_below(place[source]), x, y - 0.22)
                if y - place[source][1] == 1:
                    _text(axes, (x + place[source][0]) / 2 + 0.03, y - 0.5, _short(source.shape), size=5.5, ha="left",
                          color="#7f7f7f")
            else:
                _arrow(axes, x, y - 0.55, x, y - 0.22, "#a0a0a0")
                _text(axes, x + 0.03, y - 0.5, _short(source.shape), size=5.5, ha="left", color="#7f7f7f")
    for node in nodes:
        x, y = place[node]
        _rectangle(axes, x - 0.45, y - 0.22, 0.9, 0.44, "#f5f5f5" if node.name in QUIET else
                   COLOURS.get(node.name, "#ffffff"))
        own = node.layer[len(layer) + 1:] if layer and node.layer.startswith(layer + ".") else node.layer
        _text(axes, x, y - 0.07, node.name, size=7, weight="bold")
        _text(axes, x, y + 0.1, own if len(own) < 30 else "..." + own[-27:], size=5.5)
    for node in [node for node in nodes if not any(node in other.sources for other in nodes)]:
        _arrow(axes, *_below(place[node]), place[node][0], place[node][1] + 0.6)
        _text(axes, place[node][0] + 0.03, place[node][1] + 0.45, _short(node.shape), size=5.5, ha="left",
              color="#7f7f7f")


def places(nodes: list[Node], levels: dict[Node, int]) -> dict[Node, tuple[float, int]]:
    """Where each node is drawn: its level is its row; in the row, below the middle of what it reads."""
    by_level: dict[int, list[Node]] = {}
    for node in nodes:
        by_level.setdefault(levels[node], []).append(node)
    widest = max(map(len, by_level.values()))
    column: dict[Node, float] = {}
    for level in sorted(by_level):
        def wanted(node):
            above = [column[source] for source in node.sources if source in column]
            return sum(above) / len(above) if above else (widest - 1) / 2
        row = sorted(by_level[level], key=wanted)
        at = [wanted(node) for node in row]
        for i in range(1, len(at)):  # one box apart, then the row back into the middle of where it wants to be
            at[i] = max(at[i], at[i - 1] + 1)
        shift = min(0.0, widest - 1 - at[-1])
        for node, x in zip(row, at, strict=True):
            column[node] = x + shift
    least = min(column.values())
    return {node: (column[node] - least, levels[node]) for node in nodes}


def _below(place):
    return place[0], place[1] + 0.22


def _short(shape):
    return " x ".join(map(str, shape[1:]))


def _rectangle(axes, x, y, width, height, colour):
    from matplotlib.patches import FancyBboxPatch
    axes.add_patch(FancyBboxPatch((x + 0.04, y + 0.03), width - 0.08, height - 0.06, "round,pad=0.03", facecolor=colour,
                                  edgecolor=_LINE, linewidth=0.8))


def _text(axes, x, y, text, size=8, ha="center", **style):
    axes.text(x, y, text, fontsize=size, ha=ha, va="center", **{"color": "#202020"} | style)


def _arrow(axes, x0, y0, x1, y1, colour=_LINE, connection="arc3"):
    axes.annotate("", (x1, y1), (x0, y0), arrowprops=dict(arrowstyle="-|>", color=colour, lw=0.8, shrinkA=0, shrinkB=0,
                                                          connectionstyle=connection))
