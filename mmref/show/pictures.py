"""Pictures of what happens inside: sub-bands, scan orders, step sizes, the effective receptive field, feature maps.

Each function draws one matplotlib Figure from a model and a picture; `draw` picks among them. Maps have a sixteenth of
the picture's side or less, so the picture is shown to the network larger than it was trained on (SIZE) unless asked
otherwise; every figure says how large.
"""

from __future__ import annotations

import numpy as np

from mmref.arguments import check_choice, check_integer
from mmref.data.picture import Transform, to_array
from mmref.errors import MissingBackend, ValueProblem
from mmref.models.mobilemamba import Block
from mmref.models.network import check_numpy_model
from mmref.nn.wavelet import analysis
from mmref.show.field import fields
from mmref.validate.trace import run_recorded

WHAT = ("wavelet", "scan", "delta", "erf", "features")
SIZE = 512   # pixels; erf, which runs the network for every cell, takes about the model's own size: an odd multiple
             # of 64, so that the last map has a middle
BANDS = ("low-low: average", "high along H: horizontal edges", "high along W: vertical edges", "high-high: corners")
_GREY, _HEAT = "gray", "viridis"


def draw(what: str, model, picture, layer: str | None = None, size: int | None = None, cells: int = 32, seen=None):
    """A matplotlib Figure of `what` (one of WHAT) for a PIL picture.

    model   NumPy model, any variant or dtype, folded or not (computed in float64)
    layer   a block such as "blocks2.3" (wavelet, scan, delta), a stage (erf), any record's name (features)
    size    pixels per side of the square input     cells   of erf, per side     seen   called for every step of erf

    Raises MissingBackend without matplotlib, ValueProblem for a name that is not there."""
    needs_matplotlib()
    check_choice("--what", what, WHAT)
    check_numpy_model(model)
    size, cells = None if size is None else check_integer("--size", size, 1, 4096), check_integer("--cells", cells, 1)
    model = model.astype(np.float64)
    size = size or (64 * (-(-model.config.img_size // 64) // 2 * 2 + 1) if what == "erf" else SIZE)
    own = model.transform
    transform = own if size == own.size else Transform(size, mean=own.mean, std=own.std)
    x = to_array(picture, transform)[None].astype(np.float64)
    shown = np.clip(x[0].transpose(1, 2, 0) * own.std + own.mean, 0, 1)
    if what == "erf":
        return effective_receptive_field(model, x, shown, layer or "blocks3", cells, seen)
    records = run_recorded(model, x)
    if what == "features":
        return features(model, records, shown, layer)
    block = block_of(model, layer or {"wavelet": "blocks1.0", "scan": "blocks2.3", "delta": "blocks1.0"}[what])
    return {"wavelet": wavelet, "scan": scan, "delta": delta}[what](model, records, shown, block)


def needs_matplotlib() -> None:
    """MissingBackend where it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingBackend('mmref show needs matplotlib, which is not installed: pip install "mmref[viz]"') from error


def block_of(model, name) -> Block:
    """The block that a layer's name lies in. Raises ValueProblem that lists the blocks."""
    blocks = {path: layer for path, layer in model.walk() if isinstance(layer, Block)}
    for path, layer in blocks.items():
        if name == path or name.startswith(path + "."):
            return layer
    raise ValueProblem(f"--layer must be (in) one of {', '.join(blocks)}, got {name!r}")


# ------------------------------------------------------------------------------------------------------ the figures

def wavelet(model, records, shown, block):
    """Sub-bands of the picture, of the channel that the wavelet branch amplifies most, and of that channel after it."""
    mixer = block.mixer.m.attn
    branch = mixer.global_op
    x = records[f"{block.name}.ffn0"][:, :mixer.split[0]]
    before = analysis(x, branch.wt_filter)[0]
    after = records[f"{branch.name}.wavelet_scale.0"][0]
    channel = int(np.square(after).reshape(len(after) // 4, -1).sum(1).argmax())
    grey = shown.mean(-1)[None, None]
    rows = (("the picture itself", grey[0, 0], analysis(grey, branch.wt_filter[:4])[0]),
            (f"channel {channel} of {block.name}", x[0, channel], before[4 * channel:4 * channel + 4]),
            ("after convolution and scale", None, after[4 * channel:4 * channel + 4]))
    figure, axes = _grid(3, 5, f"Haar sub-bands in {branch.name}", model, shown)
    for axis, title in zip(axes[0], ("before", *BANDS), strict=True):
        axis.set_title(title, fontsize=9)
    for row, (text, whole, bands) in zip(axes, rows, strict=True):
        if whole is None:
            back = records[branch.name] - records[f"{branch.name}.base_scale"]
            whole = back[0, channel]
            row[0].set_title("put together again", fontsize=9)
        _show(figure, row[0], whole, _GREY)
        row[0].set_ylabel(text, fontsize=9)
        for i, axis in enumerate(row[1:]):
            _show(figure, axis, bands[i], _GREY if not i else "RdBu", centred=bool(i))
    return figure


def scan(model, records, shown, block):
    """The order in which every direction visits the map, over the picture, and what the middle pixel still knows."""
    ss2d = block.mixer.m.attn.global_op.global_atten
    height, width = records[block.name].shape[2:]
    steps, A = records[f"{ss2d.name}:delta"][0], records[f"{ss2d.name}:A"]        # (K, D, L), (K, D, N)
    K, _, L = steps.shape
    figure, axes = _grid(2, K, f"Scan orders of {ss2d.name}\na map of {height} x {width}", model, shown, side=4)
    positions = visited(ss2d.order, height, width)
    for k, way in enumerate(positions):
        rows, columns = np.divmod(way, width)
        y, x = ((n + 0.5) * size / count for n, size, count in
                ((rows, shown.shape[0], height), (columns, shown.shape[1], width)))
        axis = axes[0, k]
        axis.imshow(shown, alpha=0.55)
        axis.plot(x, y, color="black", linewidth=0.5, alpha=0.6)
        dots = axis.scatter(x, y, c=np.arange(L), cmap="plasma", s=max(3, 1500 / L))
        axis.annotate("start", (x[0], y[0]), color="white", fontsize=8, ha="center", va="center",
                      bbox={"boxstyle": "round", "facecolor": "navy", "alpha": 0.8})
        axis.annotate("end", (x[-1], y[-1]), color="white", fontsize=8, ha="center", va="center",
                      bbox={"boxstyle": "round", "facecolor": "darkred", "alpha": 0.8})
        axis.set_title(f"direction {k}", fontsize=9)
        figure.colorbar(dots, ax=axis, fraction=0.046).set_label("step", fontsize=8)
        middle = int(np.flatnonzero(way == height // 2 * width + width // 2)[0])
        # What is left at the middle of what entered at step l: the product of all decays after l.
        logs = (steps[k, :, 1:middle + 1, None] * A[k, :, None, :]).mean(-1)         # (D, middle)
        memory = np.full(height * width, np.nan)
        memory[way[:middle]] = np.exp(logs[:, ::-1].cumsum(1)[:, ::-1]).mean(0)
        memory[way[middle]] = 1
        axis = axes[1, k]
        _show(figure, axis, memory.reshape(height, width), _HEAT, limits=(0, 1))
        axis.plot(width // 2, height // 2, "r+", markersize=10)
        axis.set_title("share of each pixel's state left at the middle (+),\nmean over channels; white: not yet seen",
                       fontsize=9)
    return figure


def visited(order, height, width):
    """(K, L) integers: the pixel, row * width + column, that direction k visits at step l."""
    from mmref.nn.scan_order import cross_scan
    pixels = np.arange(height * width, dtype=np.float64).reshape(1, 1, height, width)
    return cross_scan(pixels, order)[0, :, 0].astype(int)


def delta(model, records, shown, block):
    """Step sizes: where they are large a direction takes the pixel in (and forgets), where small it passes by."""
    ss2d = block.mixer.m.attn.global_op.global_atten
    height, width = records[block.name].shape[2:]
    steps = records[f"{ss2d.name}:delta"][0]                                        # (K, D, L)
    K, D, _ = steps.shape
    figure, axes = _grid(2, K + 1, f"Step sizes delta of {ss2d.name}", model, shown)
    maps = np.empty((K, D, height * width))
    for k, way in enumerate(visited(ss2d.order, height, width)):
        maps[k][:, way] = steps[k]
    maps = maps.reshape(K, D, height, width)
    axes[0, 0].imshow(shown)
    axes[0, 0].set_title("the picture", fontsize=9)
    spread = (maps.std((2, 3)) / maps.mean((2, 3)))
    for k in range(K):
        _show(figure, axes[0, k + 1], maps[k].mean(0), _HEAT)
        axes[0, k + 1].set_title(f"direction {k}, mean over {D} channels", fontsize=9)
        channel = int(spread[k].argmax())
        _show(figure, axes[1, k + 1], maps[k, channel], _HEAT)
        axes[1, k + 1].set_title(f"direction {k}, channel {channel}: varies most", fontsize=9)
    axis = _curve(figure, axes[1, 0])
    for k in range(K):
        axis.hist(np.log10(maps[k].ravel()), bins=60, histtype="step", label=f"direction {k}")
    axis.set_xlabel("log10 of delta", fontsize=8)
    axis.set_ylabel("pixels and channels", fontsize=8)
    axis.legend(fontsize=8)
    axis.set_title("all step sizes", fontsize=9)
    return figure


def effective_receptive_field(model, x, shown, layer, cells, seen=None):
    """How much each cell of the picture moves the features at the map's centre."""
    from matplotlib.colors import LogNorm
    field, centre = gradient_norms(model, x, layer, cells, seen)
    share = np.sort((field ** 2).ravel())[::-1].cumsum() / max(float((field ** 2).sum()), 1e-300)
    figure, axes = _grid(1, 3, f"Effective receptive field of the centre of {layer}", model, shown, side=3.8)
    axes = axes[0]
    axes[0].imshow(shown)
    axes[0].plot(*centre[::-1], "r+", markersize=14, markeredgewidth=2)
    axes[0].set_title("the picture; +: the centre of the map", fontsize=9)
    extent = (0, shown.shape[1], shown.shape[0], 0)
    relative = field / max(field.max(), 1e-300)
    lowest = max(float(relative.min()), 1e-4)
    image = axes[1].imshow(np.maximum(relative, lowest), cmap="inferno", norm=LogNorm(lowest, 1), extent=extent)
    figure.colorbar(image, ax=axes[1], fraction=0.046).set_label("largest is 1", fontsize=8)
    axes[1].set_title("norm of the gradient (finite differences, float64)", fontsize=9)
    axis = _curve(figure, axes[2])
    axis.plot(100 * np.arange(1, share.size + 1) / share.size, 100 * share, color="black")
    for part in (0.5, 0.9, 0.99):
        area = 100 * (np.searchsorted(share, part) + 1) / share.size
        axis.plot(area, 100 * part, "o", label=f"{part:.0%} of it from {area:.0f} % of the picture")
    axis.set_xlabel("% of the picture, strongest cells first", fontsize=8)
    axis.set_ylabel("% of the squared gradient", fontsize=8)
    axis.legend(fontsize=8, loc="lower right")
    axis.set_title(f"{cells} x {cells} cells", fontsize=9)
    return figure


def gradient_norms(model, x, layer, cells, seen=None, batch=16):
    """((cells, cells) root of the summed squared gradients of all centre features for a cell's pixels, centre (y, x)).

    model and x (1, 3, H, W) in float64. An estimate from one draw of signs a cell, see mmref.show.field."""
    stages = ("patch_embed", "blocks1", "blocks2", "blocks3")
    if layer not in stages:
        raise ValueProblem(f"--layer must be one of {', '.join(stages)} for erf, got {layer!r}")

    def run(pictures):
        for name in stages[:stages.index(layer) + 1]:
            pictures = getattr(model, name)(pictures)
        return {layer: pictures}
    return fields(run, x, cells, seen, batch)[layer]


def features(model, records, shown, layer=None, columns=8):
    """The channels that vary most: of stem and stages, or of one layer."""
    names = [layer] if layer else ["patch_embed", "blocks1", "blocks2", "blocks3"]
    for name in names:
        if name not in records or records[name].ndim != 4:
            near = [n for n in records if records[n].ndim == 4 and name.split(".")[0] in n][-3:] or ["blocks1"]
            raise ValueProblem(f"--layer must name a map, for instance {', '.join(near)}, got {name!r}")
    lines = 4 if layer else len(names)
    figure, axes = _grid(lines, columns + (not layer), f"Feature maps of {layer or 'the stem and the three stages'}",
                         model, shown, side=1.5)
    for axis in axes.ravel():
        axis.axis("off")
    for i in range(lines):
        name = layer or names[i]
        maps = records[name][0]
        order = np.argsort(-maps.std((1, 2)) / (np.abs(maps).mean((1, 2)) + 1e-12), kind="stable")
        order = order[i * columns:(i + 1) * columns] if layer else order[:columns]
        line = axes[i] if layer else axes[i][1:]
        if not layer:
            axes[i][0].imshow(shown)
            axes[i][0].set_title(f"{name}\n{'x'.join(map(str, maps.shape))}", fontsize=8)
        for axis, channel in zip(line, order, strict=False):
            axis.imshow(maps[channel], cmap=_HEAT)
            axis.set_title(f"channel {channel}", fontsize=8)
    return figure


# ---------------------------------------------------------------------------------------------------------- drawing

def _grid(rows, columns, title, model, shown, side=2.6):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(side * columns + 0.6, side * rows + 0.9), layout="constrained", dpi=120)
    figure.suptitle(f"{title}\n{model.config.name}, input {shown.shape[0]} x {shown.shape[1]} pixels", fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def _curve(figure, axis):
    """The panel for a curve in place of one for a picture: with ticks, and as square."""
    place = axis.get_subplotspec()
    axis.remove()
    axis = figure.add_subplot(place)
    axis.set_box_aspect(1)
    axis.tick_params(labelsize=7)
    return axis


def _show(figure, axis, plane, colours, centred=False, limits=None):
    low, high = limits or (np.nanmin(plane), np.nanmax(plane))
    if centred:
        high = max(abs(low), abs(high), 1e-30)
        low = -high
    image = axis.imshow(plane, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    bar = figure.colorbar(image, ax=axis, fraction=0.046)
    bar.ax.tick_params(labelsize=6)
