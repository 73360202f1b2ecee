"""Scans, drawn: the order in which they visit the pixels, what is left of each pixel on the way, step sizes.

Nothing here knows a network: the scans are those of its graph, so all families and networks of one's own are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmref.errors import ValueProblem
from mmref.graph.graph import Node
from mmref.graph.scans import read_from, scans_of
from mmref.graph.trace import trace
from mmref.nn.paths import PADDING, directions, paths, way
from mmref.show.panels import HEAT, curve, grid, of_picture, plane

COLUMNS = 4            # panels beside each other, where there is one row of them a direction
MAP_SIDE = 8           # pixels, of a map that belongs to no network; at most MOST
MOST = 256
NUMBERED = 100         # steps of a sequence whose numbers are still to be read in a drawing


@dataclass
class Direction:
    """One direction of a scan of a map of height x width. `path` (L,): the pixel of every step, -1 for padding; `delta`
    (D, L) and `A` (D, N) where the scan has run."""

    name: str
    height: int
    width: int
    path: np.ndarray
    delta: np.ndarray | None = None
    A: np.ndarray | None = None


# ------------------------------------------------------------------------------------------------- which are drawn

def of_order(order, height: int, width: int) -> list[Direction]:
    """The directions of an order, by name or as a tuple (see `mmref.nn.paths`). Raises ValueProblem."""
    table = paths(order, height, width)
    return [Direction(name, height, width, path) for name, path in zip(directions(order), table, strict=True)]


def of_layer(model, shape, layer: str | None = None, x=None) -> tuple[str, list[Direction]]:
    """(name of a layer that scans, its directions) for an input of `shape`; with step sizes where x is given.

    layer   the layer, one in it, or one around it alone; None: the middle one of those that scan
    Raises ValueProblem for another, NotTraceable where the network's text cannot be traced."""
    model = model.frozen()
    graph = trace(model.forward, model, shape)
    found = scans_of(graph)
    layer = choose(found, layer, model)
    values = {}

    def seen(node, operands, value):
        if node in found[layer]:
            values[node] = operands["delta"][0], operands["A"]
    if x is not None:
        graph.run(x, seen=seen)
    return layer, [one for node in found[layer] for one in _of_node(node, values.get(node))]


def choose(found, layer, model) -> str:
    """The name of the scanning layer that is meant."""
    if not found:
        raise ValueProblem(f"--model must be a network that scans, got {model.config.name}, which does not")
    if layer is None:
        return list(found)[len(found) // 2]
    meant = [name for name in found if f"{name}.".startswith(f"{layer}.") or f"{layer}.".startswith(f"{name}.")]
    if len(meant) != 1:
        raise ValueProblem(f"--layer must be (in) one of {', '.join(found)}, got {layer!r}"
                           + (f", which holds {len(meant)} of them" if meant else ""))
    return meant[0]


def _of_node(node: Node, values) -> list[Direction]:
    cross = read_from(node)
    if cross is None:
        raise ValueProblem(f"--layer must be one that scans a map, got {node.layer!r}, which scans other sequences")
    found = of_order(cross.attributes["order"], *cross.sources[0].shape[2:])
    if values:
        for one, delta, A in zip(found, *values, strict=True):
            one.delta, one.A = delta, A
    return found


# ---------------------------------------------------------------------------------------------------- the figures

def orders(found: list[Direction], title: str):
    """A Figure: every direction's way over the map, numbered where the map is small."""
    columns = min(len(found), COLUMNS)
    figure, axes = grid(-(-len(found) // columns), columns, title, side=3.2)
    for axis, one in zip(axes.ravel(), found, strict=False):
        _draw_way(figure, axis, one, one.width, one.height)
    for axis in axes.ravel()[len(found):]:
        axis.axis("off")
    return figure


def scan(model, x, shown, layer=None):
    """A Figure: the order in which every direction visits the map, over the picture; what the middle still knows."""
    layer, found = of_layer(model, x.shape, layer, x)
    title = f"Scan orders of {layer}\na map of {found[0].height} x {found[0].width}"
    figure, axes = grid(2, len(found), of_picture(title, model, shown), side=4)
    for (above, below), one in zip(axes.T, found, strict=True):
        above.imshow(shown, alpha=0.55)
        _draw_way(figure, above, one, shown.shape[1], shown.shape[0])
        memory, (row, column) = remembered(one)
        plane(figure, below, memory, HEAT, limits=(0, 1))
        below.plot(column, row, "r+", markersize=10)
        below.set_title("share of each pixel's state left at the middle (+),\n"
                        "mean of the states; white: not seen yet, or never", fontsize=9)
    return figure


def delta(model, x, shown, layer=None):
    """A Figure of step sizes: where they are large a direction takes the pixel in (and forgets), where small it passes
    by."""
    layer, found = of_layer(model, x.shape, layer, x)
    figure, axes = grid(2, len(found) + 1, of_picture(f"Step sizes delta of {layer}", model, shown))
    axes[0, 0].imshow(shown)
    axes[0, 0].set_title("the picture", fontsize=9)
    panel = curve(figure, axes[1, 0])
    for (above, below), one in zip(axes.T[1:], found, strict=True):
        inside = one.path != PADDING
        steps = one.delta[:, inside]                                        # (D, pixels of this direction)
        maps = np.full((len(steps), one.height * one.width), np.nan)
        maps[:, one.path[inside]] = steps
        maps = maps.reshape(-1, one.height, one.width)
        plane(figure, above, maps.mean(0), HEAT)
        above.set_title(f"{one.name},\nmean over {len(steps)} channels", fontsize=9)
        channel = int((steps.std(1) / steps.mean(1)).argmax())
        plane(figure, below, maps[channel], HEAT)
        below.set_title(f"{one.name},\nchannel {channel}: varies most", fontsize=9)
        panel.hist(np.log10(steps.ravel()), bins=60, histtype="step", label=one.name)
    panel.set_xlabel("log10 of delta", fontsize=8)
    panel.set_ylabel("pixels and channels", fontsize=8)
    panel.legend(fontsize=8)
    panel.set_title("all step sizes", fontsize=9)
    return figure


def remembered(one: Direction) -> tuple[np.ndarray, tuple[int, int]]:
    """(share of each pixel's state that is left at the middle (H, W), the middle (row, column)).

    A mean over channels and states; NaN for a pixel that was not seen until then. The middle is the map's, or the
    pixel of this direction that is nearest to it."""
    rows, columns = np.divmod(one.path, one.width)
    away = np.where(one.path == PADDING, np.inf, (rows - one.height // 2) ** 2 + (columns - one.width // 2) ** 2)
    middle = int(away.argmin())
    # What is left at the middle of what entered at step l: the product of all decays after l.
    logs = one.delta[:, None, 1:middle + 1] * one.A[:, :, None]             # (D, N, middle)
    left = np.append(np.exp(logs[..., ::-1].cumsum(-1)[..., ::-1]).mean((0, 1)), 1)
    memory, seen = np.full(one.height * one.width, np.nan), one.path[:middle + 1]
    memory[seen[seen != PADDING]] = left[seen != PADDING]
    return memory.reshape(one.height, one.width), (int(rows[middle]), int(columns[middle]))


def _draw_way(figure, axis, one: Direction, across, down):
    """The way over a map that is `across` x `down` in the panel's units; what pads it to whole windows lies outside."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle
    x, y = places(one)
    x, y = (x + 0.5) * across / one.width, (y + 0.5) * down / one.height
    last = len(x) - 1
    points = np.stack([x, y], 1)
    axis.add_patch(Rectangle((0, 0), across, down, fill=False, color="black", linewidth=0.8))
    lines = LineCollection(np.stack([points[:-1], points[1:]], 1), cmap="plasma", linewidths=1.2 if last < 400 else 0.6)
    lines.set_array(np.arange(max(last, 0)))
    axis.add_collection(lines)
    inside = one.path[:len(x)] != PADDING
    size = 95 if len(x) <= NUMBERED else max(3, 1500 / len(x))
    dots = axis.scatter(x[inside], y[inside], c=np.flatnonzero(inside), cmap="plasma", s=size, zorder=3, vmin=0,
                        vmax=max(last, 1))
    axis.scatter(x[~inside], y[~inside], color="white", edgecolors="grey", s=size, zorder=3)
    if len(x) <= NUMBERED:
        for step in range(len(x)):
            axis.text(x[step], y[step], str(step), fontsize=6, ha="center", va="center", zorder=4,
                      color="black" if step > last / 2 or not inside[step] else "white")
    else:
        for step, text, colour in ((0, "start", "navy"), (last, "end", "darkred")):
            axis.annotate(text, points[step], color="white", fontsize=8, ha="center", va="center", zorder=4,
                          bbox={"boxstyle": "round", "facecolor": colour, "alpha": 0.8})
    axis.set_aspect("equal")
    axis.set_xlim(min(0, x.min(initial=0)), max(across, x.max(initial=0) + 0.5 * across / one.width))
    axis.set_ylim(max(down, y.max(initial=0) + 0.5 * down / one.height), 0)
    axis.set_title(one.name, fontsize=9)
    figure.colorbar(dots, ax=axis, fraction=0.046).set_label("step", fontsize=8)


def places(one: Direction) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of every step; those of padding lie beyond the map. (What only makes a shorter path as long as
    another is left out.)"""
    side = way(one.name).side
    height, width = (length + -length % side for length in (one.height, one.width))
    rows, columns = np.divmod(paths((one.name,), height, width)[0], width)
    return columns, rows
