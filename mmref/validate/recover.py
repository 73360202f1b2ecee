"""A layer's weights recovered from what went in and what came out, held against the reference's.

Convolutions, depthwise ones and linear layers (with a batch norm behind, if only its result was recorded) by least
squares, norms and learned scales channel by channel. Where the fit reproduces the record, the arithmetic is right and
the weights are others; what they are like tells a layer that was not loaded from another state of training, scaled or
permuted channels, single values. Too few pixels to determine the weights give no answer.
"""

from __future__ import annotations

import numpy as np

from mmref.graph.graph import Constant
from mmref.nn import functional as F

MAX_UNKNOWNS = 1200
SPARE = 1.3   # equations for every unknown
RELATED = 0.5  # correlation from which two weights are states of one training


def recovered(node, values, got, fits):
    """(kind, the reference's weights, the recovered ones) of the layer that made `got` at `node`; None where its input
    does not determine them or no weights would do. `values[node]` gives operands, `fits(array)` says whether an array
    is `got` to rounding."""
    product, scale, shift = node, 1.0, None
    if node.name == "batch_norm":
        bn = {name: value.value() for name, value in node.operands.items() if isinstance(value, Constant)}
        factor = bn["weight"] / np.sqrt(bn["running_var"] + node.attributes["eps"])
        offset = bn["bias"] - bn["running_mean"] * factor
        source = node.operands["x"]
        if source in values.recorded or source.name not in ("conv2d", "depthwise_conv2d", "linear"):
            return _norm("norm", values[source], got, np.stack([factor, offset]), fits)
        product, scale, shift = source, factor, offset
    if product.name == "layer_norm_channels":
        x = values[product.operands["x"]]
        centred = x - x.mean(1, keepdims=True)
        x = centred / np.sqrt((centred ** 2).mean(1, keepdims=True) + product.attributes["eps"])
        ours = np.stack([product.operands[name].value() for name in ("weight", "bias")])
        return _norm("norm", x, got, ours, fits)
    if product.name == "multiply" and len(product.sources) == 1:
        constant = next(value for value in product.operands.values() if isinstance(value, Constant)).value()
        if constant.size == got.shape[1]:
            return _norm("scale", values[product.sources[0]], got,
                         np.stack([constant.reshape(-1), np.zeros(constant.size)]), fits)
    if product.name not in ("conv2d", "depthwise_conv2d", "linear"):
        return None
    operand = product.operands["weight"]
    if not isinstance(operand, Constant) or product.operands["x"] not in values:
        return None
    weight = operand.value()
    ours = weight * (np.reshape(scale, (-1,) + (1,) * (weight.ndim - 1)) if shift is not None else 1.0)
    columns = _columns(product, values[product.operands["x"]], weight)
    if columns is None:
        return None
    theirs = _solve(columns, got, ours, product.attributes.get("groups", 1) if product.name == "conv2d" else
                    weight.shape[0] if product.name == "depthwise_conv2d" else 1, fits)
    return None if theirs is None else ("weight", ours, theirs)


def _norm(kind, x, got, ours, fits):
    """Scale and shift of every channel, by least squares."""
    if x.shape != got.shape or x.ndim < 2:
        return None
    axes = (0, *range(2, x.ndim))
    count = x.size // x.shape[1]
    if count < 4:
        return None
    mean_x, mean_y = x.mean(axes, keepdims=True), got.mean(axes, keepdims=True)
    spread = ((x - mean_x) ** 2).mean(axes, keepdims=True)
    if (spread <= 1e-12 * (mean_x ** 2 + 1e-30)).any():
        return None
    slope = ((x - mean_x) * (got - mean_y)).mean(axes, keepdims=True) / spread
    offset = mean_y - slope * mean_x
    return (kind, ours, np.stack([slope.reshape(-1), offset.reshape(-1)])) if fits(x * slope + offset) else None


def recovered_eps(node, values, got, fits) -> float | None:
    """The eps with which a batch norm of the reference's parameters makes `got`; None where there is none: it is solved
    for in every channel, and one for all must reproduce the record."""
    parameters = [node.operands.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    if node.name != "batch_norm" or not all(isinstance(one, Constant) for one in parameters):
        return None
    x = values[node.operands["x"]]
    weight, bias, mean, var = (one.value().astype(np.float64) for one in parameters)
    if x.shape != got.shape:
        return None
    along = (1, -1) + (1,) * (x.ndim - 2)
    centred = x - mean.reshape(along)
    axes = (0, *range(2, x.ndim))
    slope = (centred * (got - bias.reshape(along))).sum(axes) / np.maximum((centred ** 2).sum(axes), 1e-300)
    with np.errstate(all="ignore"):
        each = (weight / slope) ** 2 - var
        # large variances hide eps: channels count by how well they show it
        share = np.where(np.isfinite(each), 1 / np.maximum(var, 1e-12) ** 2, 0)
        eps = float((np.where(share > 0, each, 0) * share).sum() / share.sum()) if share.any() else -1.0
    if not 0 <= eps < np.inf or not fits(F.batch_norm(x, weight, bias, mean, var, eps)):
        return None
    return eps


def _columns(product, x, weight):
    """(groups, pixels, unknowns): what every output value is a weighted sum of; None where that is not determined."""
    if product.name == "linear":
        columns = x.reshape(1, -1, x.shape[-1])
    else:
        k_h, k_w = weight.shape[2:]
        a = product.attributes
        padding, stride, dilation = a.get("padding", 0), a.get("stride", 1), a.get("dilation", 1)
        padded = np.pad(F.channels_last(x), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        spans = dilation * (k_h - 1) + 1, dilation * (k_w - 1) + 1
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(1, 2))[..., ::dilation, ::dilation]
        windows = windows[:, ::stride, ::stride]                            # (B, H', W', C, k_h, k_w)
        groups = x.shape[1] if product.name == "depthwise_conv2d" else a.get("groups", 1)
        unknowns = x.shape[1] // groups * k_h * k_w
        pixels = int(np.prod(windows.shape[:3]))
        if unknowns > MAX_UNKNOWNS or pixels < SPARE * (unknowns + 1):
            return None
        columns = np.moveaxis(windows.reshape(pixels, groups, unknowns), 1, 0)
    pixels, unknowns = columns.shape[1:]
    return columns if pixels >= SPARE * (unknowns + 1) and unknowns <= MAX_UNKNOWNS else None


def _solve(columns, got, ours, groups, fits):
    """Weights nearest to `ours` that give `got`: where an input is zero, or two are alike, the reference's are kept."""
    out = F.channels_last(got).reshape(-1, got.shape[1]) if got.ndim == 4 else got
    parts, again = [], np.empty(out.shape)
    each = ours.shape[0] // groups
    known = ours.reshape(groups, each, -1)
    for group, x in enumerate(columns):
        x = x - x.mean(0)
        y = out[:, group * each:(group + 1) * each]
        left = y - y.mean(0) - x @ known[group].T
        try:
            weights = known[group].T + np.linalg.lstsq(x, left, rcond=1e-7)[0]
        except np.linalg.LinAlgError:
            return None
        parts.append(weights.T)
        again[:, group * each:(group + 1) * each] = x @ weights + y.mean(0)
    back = again.reshape(*F.channels_last(got).shape) if got.ndim == 4 else again
    if not fits(F.channels_first(back) if got.ndim == 4 else back):
        return None
    return np.concatenate(parts).reshape(ours.shape)


def described(kind, ours, theirs) -> str:
    """What the recovered weights are like, beside the reference's."""
    scale = float(np.abs(ours).max()) or 1.0
    if kind in ("norm", "scale"):
        wrong = (np.abs(ours - theirs) > 1e-3 * np.maximum(np.abs(ours), 1e-2 * scale)).any(0)
        if np.allclose(theirs[0], 1, atol=1e-4) and np.abs(theirs[1]).max() < 1e-4:
            return "scale 1 and shift 0 for every channel: left out, or its parameters never loaded"
        return f"its parameters are others: scale or shift differ for {int(wrong.sum())} of {wrong.size} channels"
    related = correlation(ours, theirs)
    rows, others = ours.reshape(len(ours), -1), theirs.reshape(len(theirs), -1)
    wrong = np.abs(rows - others) > 2e-3 * scale
    if not wrong.any():
        return f"its weights are nearly the reference's (correlation {related:.6f}), its bias is not, or both rounded"
    if wrong.mean() <= 0.05 or wrong.any(1).sum() <= max(1, len(ours) // 50):
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        return f"{int(wrong.sum())} of {ours.size} weights differ, the first in output channel {at[0]}"
    order = _permutation(rows, others)
    if order is not None:
        return f"output channels in another order, the first ones from {', '.join(map(str, order[:4]))}, ..."
    factors = (rows * others).sum(1) / np.maximum((rows * rows).sum(1), 1e-30)
    if np.abs(others - factors[:, None] * rows).max() < 2e-3 * np.abs(others).max() and rows.shape[1] > 2:
        return (f"every output channel scaled by a factor of its own, {factors.min():.3g} to {factors.max():.3g}: a "
                f"norm folded otherwise (twice, or with other statistics)")
    if related < RELATED:
        return (f"its weights have nothing to do with the reference's (correlation {related:.2f}): another checkpoint, "
                f"or this layer was not loaded")
    return (f"its weights differ everywhere (correlation {related:.5f}): another state of the training (a moving "
            f"average in place of the raw weights, or the other way round), or rounded coarsely")


def correlation(a, b) -> float:
    """Cosine of the angle between two weights."""
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b)) / length if length else 0.0


def _permutation(rows, others):
    """The order in which the rows of `others` are found in `rows`; None where they are others."""
    if rows.shape[1] < 4 or len(rows) > 2000:
        return None
    squares = (rows ** 2).sum(1)[None] - 2 * others @ rows.T + (others ** 2).sum(1)[:, None]
    order = squares.argmin(1)
    near = np.abs(others - rows[order]).max() < 2e-3 * np.abs(rows).max()
    return order.tolist() if near and len(set(order)) == len(order) and (order != np.arange(len(order))).any() else None
