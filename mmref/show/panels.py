"""What the drawings have in common: a figure of panels, a plane of numbers with its bar, a curve."""

from __future__ import annotations

import numpy as np

from mmref.errors import MissingBackend

GREY, HEAT = "gray", "viridis"


def needs_matplotlib() -> None:
    """MissingBackend where it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingBackend('mmref show needs matplotlib, which is not installed: pip install "mmref[viz]"') from error


def grid(rows, columns, title, side=2.6):
    """(figure, axes (rows, columns)) of panels without ticks, `side` inches each."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(side * columns + 0.6, side * rows + 0.9), layout="constrained", dpi=120)
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def of_picture(title, model, shown) -> str:
    """A figure's title, and what it was drawn of."""
    return f"{title}\n{model.config.name}, input {shown.shape[0]} x {shown.shape[1]} pixels"


def curve(figure, axis):
    """The panel for a curve in place of one for a picture: with ticks, and as square."""
    place = axis.get_subplotspec()
    axis.remove()
    axis = figure.add_subplot(place)
    axis.set_box_aspect(1)
    axis.tick_params(labelsize=7)
    return axis


def plane(figure, axis, values, colours, centred=False, limits=None):
    """A map (H, W) in colours, with a bar that says which number has which; NaN is white."""
    low, high = limits or (np.nanmin(values), np.nanmax(values))
    if centred:
        high = max(abs(low), abs(high), 1e-30)
        low = -high
    image = axis.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    bar = figure.colorbar(image, ax=axis, fraction=0.046)
    bar.ax.tick_params(labelsize=6)
