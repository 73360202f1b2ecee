"""Pictures of what happens inside: sub-bands, scan orders, step sizes, the effective receptive field, feature maps.

Each function draws one matplotlib Figure from a model and a picture; `draw` picks among them. Maps have a sixteenth of
the picture's side or less, so the picture is shown to the network larger than it was trained on (SIZE) unless asked
otherwise; every figure says how large.
"""

from __future__ import annotations

import numpy as np

from mmref.arguments import check_choice, check_integer
from mmref.data.picture import Transform, to_array
from mmref.errors import ValueProblem
from mmref.models.mobilemamba import Block
from mmref.models.network import check_numpy_model
from mmref.nn.wavelet import analysis
from mmref.show import scans
from mmref.show.field import fields
from mmref.show.panels import GREY, HEAT, curve, grid, needs_matplotlib, of_picture, plane
from mmref.validate.trace import run_recorded

WHAT = ("wavelet", "scan", "delta", "erf", "features")
SIZE = 512   # pixels; erf, which runs the network for every cell, takes about the model's own size: an odd multiple
             # of 64, so that the last map has a middle
BANDS = ("low-low: average", "high along H: horizontal edges", "high along W: vertical edges", "high-high: corners")


def draw(what: str, model, picture, layer: str | None = None, size: int | None = None, cells: int = 32, seen=None):
    """A matplotlib Figure of `what` (one of WHAT) for a PIL picture.

    model   NumPy model, any variant or dtype, folded or not (computed in float64)
    layer   a block such as "blocks2.3" (wavelet), a layer that scans (scan, delta), a stage (erf), any record's name
            (features); wavelet and erf are of MobileMambas
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
    if what in ("scan", "delta"):
        return {"scan": scans.scan, "delta": scans.delta}[what](model, x, shown, layer)
    if what == "features":
        return features(model, run_recorded(model, x), shown, layer)
    block = block_of(model, layer or "blocks1.0")
    return wavelet(model, run_recorded(model, x), shown, block)


def block_of(model, name) -> Block:
    """The block that a layer's name lies in. Raises ValueProblem that lists the blocks."""
    blocks = {path: layer for path, layer in model.walk() if isinstance(layer, Block)}
    if not blocks:
        raise ValueProblem(f"--what wavelet draws a MobileMamba's blocks, and {model.config.name} has none")
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
    figure, axes = grid(3, 5, of_picture(f"Haar sub-bands in {branch.name}", model, shown))
    for axis, title in zip(axes[0], ("before", *BANDS), strict=True):
        axis.set_title(title, fontsize=9)
    for row, (text, whole, bands) in zip(axes, rows, strict=True):
        if whole is None:
            back = records[branch.name] - records[f"{branch.name}.base_scale"]
            whole = back[0, channel]
            row[0].set_title("put together again", fontsize=9)
        plane(figure, row[0], whole, GREY)
        row[0].set_ylabel(text, fontsize=9)
        for i, axis in enumerate(row[1:]):
            plane(figure, axis, bands[i], GREY if not i else "RdBu", centred=bool(i))
    return figure


def effective_receptive_field(model, x, shown, layer, cells, seen=None):
    """How much each cell of the picture moves the features at the map's centre."""
    from matplotlib.colors import LogNorm
    field, centre = gradient_norms(model, x, layer, cells, seen)
    share = np.sort((field ** 2).ravel())[::-1].cumsum() / max(float((field ** 2).sum()), 1e-300)
    figure, axes = grid(1, 3, of_picture(f"Effective receptive field of the centre of {layer}", model, shown), side=3.8)
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
    axis = curve(figure, axes[2])
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

    if not all(hasattr(model, stage) for stage in stages):
        raise ValueProblem(f"--what erf draws a MobileMamba's stages, and {model.config.name} has none")

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
    title = of_picture(f"Feature maps of {layer or 'the stem and the three stages'}", model, shown)
    figure, axes = grid(lines, columns + (not layer), title, side=1.5)
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
            axis.imshow(maps[channel], cmap=HEAT)
            axis.set_title(f"channel {channel}", fontsize=8)
    return figure
