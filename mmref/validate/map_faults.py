"""Mistakes in taking maps apart and putting them together, as in faults.py: splits, wavelets, resizing, scans."""

from __future__ import annotations

import itertools

import numpy as np

from mmref.graph.graph import Constant
from mmref.nn.operation import OPERATIONS, apply
from mmref.nn.recurrence import selective_scan
from mmref.validate.faults import gives, plants, result_is

# ---------------------------------------------------------------------------------------------- splits and joins


def _parts(graph, node):
    """The slices that together split an axis of what `node` slices, in order; [] for another use of slices."""
    source, axis = node.operands["x"], node.attributes["axis"]
    if not hasattr(source, "sources"):
        return []
    parts = [user for user in dict.fromkeys(graph.users[source])
             if user.name == "slice_axis" and user.attributes["axis"] == axis]
    parts.sort(key=lambda part: int(part.attributes["start"]))
    ends = [int(part.attributes["stop"]) for part in parts]
    starts = [int(part.attributes["start"]) for part in parts]
    whole = starts == [0, *ends[:-1]] and ends[-1] == source.shape[axis]
    return parts if whole and all(part.attributes.get("step", 1) == 1 for part in parts) else []


def _key(node, parts):
    if node.attributes["axis"] == 2:
        return "projection-order"
    return "gate" if len(parts) == 2 and parts[0].shape == parts[1].shape else "channel-order"


def _split_fault(key, order):
    """The parts lie in another order in the whole: each is taken from elsewhere, as long as it was."""
    count, word = len(order), " | ".join(str(i + 1) for i in order)

    @plants("slice_axis", key, f"parts of the split exchanged: read as {word}")
    def plant(graph, node):
        parts = _parts(graph, node)
        if len(parts) != count or node is not parts[0] or _key(node, parts) != key:
            return None
        axis, start, changes = node.attributes["axis"], 0, {}
        for i in order:
            size = parts[i].shape[axis]
            changes[parts[i]] = lambda o, a, s=start, n=size: apply(
                OPERATIONS["slice_axis"], o, {**a, "start": s, "stop": s + n})
            start += size
        return changes


for _count, _keys in ((2, ("gate", "channel-order", "projection-order")), (3, ("channel-order", "projection-order"))):
    for _order in list(itertools.permutations(range(_count)))[1:]:
        for _one in _keys:
            _split_fault(_one, _order)


@plants("slice_axis", "channel-order", "channels in reverse order before the split")
def _reversed(graph, node):
    parts = _parts(graph, node)
    if not parts or node is not parts[0]:
        return None
    return {part: lambda o, a: apply(OPERATIONS["slice_axis"], {"x": np.flip(o["x"], a["axis"])}, a) for part in parts}


@plants("slice_axis", "channel-order", "every second channel taken, where the first half is meant")
def _interleaved(graph, node):
    parts = _parts(graph, node)
    if len(parts) != 2 or node is not parts[0] or parts[0].shape != parts[1].shape:
        return None
    take = {part: (slice(None),) * node.attributes["axis"] + (slice(i, None, 2),) for i, part in enumerate(parts)}
    return {part: lambda o, a, at=at: o["x"][at] for part, at in take.items()}


def _join_fault(order):
    count, word = len(order), " | ".join(str(i + 1) for i in order)

    @plants("concatenate", "channel-order", f"parts joined in another order: {word}")
    def plant(graph, node):
        if len(node.operands) != count:
            return None
        return {node: lambda o, a: np.concatenate([list(o.values())[i] for i in order], a.get("axis", 1))}


for _count in (2, 3, 4, 5):
    for _order in list(itertools.permutations(range(_count)))[1:]:
        if _count < 5 or sum(i != j for i, j in enumerate(_order)) == 2 or _order == (1, 2, 3, 4, 0):
            _join_fault(_order)

# ------------------------------------------------------------------------------------------------------ wavelets


def banded(bands, order):
    """Sub-bands of every channel in another order."""
    return bands.reshape(len(bands), -1, 4, *bands.shape[2:])[:, :, list(order)].reshape(bands.shape)


def _blocked(bands):
    """All low-low bands first, as a library that does not interleave gives them."""
    return bands.reshape(len(bands), -1, 4, *bands.shape[2:]).swapaxes(1, 2).reshape(bands.shape)


def _interleave(bands):
    return bands.reshape(len(bands), 4, -1, *bands.shape[2:]).swapaxes(1, 2).reshape(bands.shape)


for _take in ((0, 2, 1, 3), (3, 1, 2, 0), (1, 0, 2, 3), (0, 1, 3, 2), (0, 3, 2, 1), (2, 1, 0, 3)):
    result_is("analysis", "sub-bands", f"sub-bands swapped in the analysis: order {_take}",
              lambda bands, t=_take: banded(bands, t))
    gives("synthesis", "sub-bands", f"sub-bands swapped in the synthesis: order {_take}",
          lambda result, o, a, t=_take: result(bands=banded(o["bands"], t)))
result_is("analysis", "sub-bands", "sub-bands not interleaved: all low-low first", _blocked)
gives("synthesis", "sub-bands", "sub-bands read as not interleaved", lambda result, o, a: result(
    bands=_interleave(o["bands"])))
for _signs, _word in (((1, -1, 1, 1), "second"), ((1, 1, -1, 1), "third"), ((1, 1, 1, -1), "fourth"),
                      ((1, -1, -1, -1), "three last"), ((1, -1, -1, 1), "second and third")):
    result_is("analysis", "sub-bands", f"sign of the {_word} sub-band wrong", lambda bands, s=_signs: (
        bands * np.tile(s, bands.shape[1] // 4)[None, :, None, None]))
    gives("synthesis", "sub-bands", f"sign of the {_word} sub-band wrong in the synthesis",
          lambda result, o, a, s=_signs: result(bands=o["bands"] * np.tile(s, o["bands"].shape[1] // 4)[
              None, :, None, None]))
for _gain, _word in ((2.0, "twice as large"), (0.5, "half as large"), (4.0, "without their factor 1/2, twice")):
    result_is("analysis", "wavelet", f"analysis filters {_word}", lambda bands, g=_gain: bands * g)
    result_is("synthesis", "wavelet", f"synthesis filters {_word}", lambda maps, g=_gain: maps * g)


def _odd(graph, node):
    source = node.operands["x" if node.name == "analysis" else "bands"]
    sides = source.shape[2:] if node.name == "analysis" else node.shape[2:]
    return any(side % 2 for side in sides)


def _padded(pad, mode="constant"):
    def function(result, o, a):
        odd = [side % 2 for side in o["x"].shape[2:]]
        pads = [(n, 0) if at_start else (0, n) for n, at_start in zip(odd, pad, strict=True)]
        return result(x=np.pad(o["x"], ((0, 0), (0, 0), *pads), mode=mode))
    return function


def _cropped(pad):
    def function(result, o, a):
        odd = a["height"] % 2, a["width"] % 2
        top, left = (n if at_start else 0 for n, at_start in zip(odd, pad, strict=True))
        full = result(height=a["height"] + odd[0], width=a["width"] + odd[1])
        return full[:, :, top:top + a["height"], left:left + a["width"]]
    return function


for _pad, _word in (((1, 1), "top and left"), ((1, 0), "top"), ((0, 1), "left")):
    gives("analysis", "padding-side", f"odd maps padded at the wrong side: {_word}", _padded(_pad), _odd)
    gives("synthesis", "padding-side", f"odd maps cropped at the wrong side: {_word}", _cropped(_pad), _odd)
for _mode, _word in (("edge", "repeating the border"), ("reflect", "reflecting it")):
    gives("analysis", "padding-mode", f"odd maps padded by {_word}", _padded((0, 0), _mode), lambda g, n:
          _odd(g, n) and min(n.operands["x"].shape[2:]) > 1)

# ------------------------------------------------------------------------------------------------------ resizing


def aligned_corners(x, height, width):
    """Bilinear, corner pixels on corner pixels: `align_corners=True`."""
    def blended(x, axis, size):
        source = np.linspace(0, x.shape[axis] - 1, size)
        lower = np.minimum(source.astype(int), x.shape[axis] - 1)
        share = (source - lower).reshape(-1, *(1,) * (3 - axis))
        return x.take(lower, axis) * (1 - share) + x.take(np.minimum(lower + 1, x.shape[axis] - 1), axis) * share
    return blended(blended(x, 2, height), 3, width)


def nearest(x, height, width, centre=False):
    """The nearest pixel: the one at or before the source, or (centre) the one whose middle is nearest."""
    rows, columns = (np.minimum(((np.arange(new) + (0.5 if centre else 0)) * old / new).astype(int), old - 1)
                     for old, new in zip(x.shape[2:], (height, width), strict=True))
    return x[:, :, rows[:, None], columns]


for _text, _function in (("align_corners=True where it is False", aligned_corners),
                         ("nearest instead of bilinear", nearest),
                         ("nearest by pixels' middles", lambda x, h, w: nearest(x, h, w, True))):
    gives(("resize", "upsample"), "resize", f"resized with {_text}",
          lambda result, o, a, f=_function: f(o["x"], *result().shape[2:]))
gives(("resize", "upsample"), "resize", "resized bilinear instead of nearest",
      lambda result, o, a: result(mode="bilinear"), lambda g, n: n.attributes.get("mode") == "nearest")
gives("max_pool2d", "pooling", "padding of zeros counts in the maximum", lambda result, o, a: np.maximum(
    result(x=np.pad(o["x"], ((0, 0), (0, 0), *((a["padding"],) * 2,) * 2)), padding=0), -np.inf),
    lambda g, n: n.attributes.get("padding", 0) > 0)


def _equal_bins(result, o, a):
    """Every part as long as the others, the last pixels left out: a plain pooling where an adaptive one is meant."""
    x, out = o["x"], result()
    sizes = [max(side // count, 1) for side, count in zip(x.shape[2:], out.shape[2:], strict=True)]
    for i, j in np.ndindex(*out.shape[2:]):
        top, left = (min(k * size, side - 1) for k, size, side in zip((i, j), sizes, x.shape[2:], strict=True))
        out[:, :, i, j] = x[:, :, top:top + sizes[0], left:left + sizes[1]].mean((2, 3))
    return out


gives("adaptive_average_pool", "pooling", "parts of equal size instead of an adaptive mean", _equal_bins)

# --------------------------------------------------------------------------------------------------------- scans


def _takes(order, steps=slice(None)):
    return lambda result, o, a: result()[:, order, :, steps]


def _count(number):
    return lambda graph, node: (node.shape[1] if node.name == "cross_scan" else node.operands["y"].shape[1]) == number


def _turned(y, which):
    """The steps of some directions the other way round."""
    y = y.copy()
    for k in which:
        y[:, k] = y[:, k, :, ::-1]
    return y


for _text, _which in (("the backward scan reads forwards, yet is turned round afterwards", (1,)),
                      ("the forward scan reads backwards", (0,)), ("every scan reads the other way round", (0, 1))):
    gives("cross_scan", "direction", _text, lambda result, o, a, w=_which: _turned(result(), w), _count(2))
for _text, _which in (("the backward scan's result is not turned round", (1,)),
                      ("the forward scan's result is turned round", (0,)),
                      ("both results are turned the wrong way round", (0, 1))):
    gives("cross_merge", "direction", _text, lambda result, o, a, w=_which: result(y=_turned(o["y"], w)), _count(2))
for _text, _order in (("directions exchanged", (1, 0)), ("the first direction read twice", (0, 0)),
                      ("the second direction read twice", (1, 1))):
    gives("cross_scan", "direction", _text, lambda result, o, a, p=_order: result()[:, list(p)], _count(2))
    gives("cross_merge", "direction", f"merging: {_text}", lambda result, o, a, p=_order: result(y=o["y"][:, list(p)]),
          _count(2))
for _order in ((1, 0, 2, 3), (0, 2, 1, 3), (2, 3, 0, 1), (0, 1, 3, 2), (3, 2, 1, 0), (0, 3, 2, 1), (2, 1, 0, 3)):
    gives("cross_scan", "direction", f"directions exchanged: order {_order}",
          lambda result, o, a, p=_order: result()[:, list(p)], _count(4))
    gives("cross_merge", "direction", f"directions merged in another order: {_order}",
          lambda result, o, a, p=_order: result(y=o["y"][:, list(p)]), _count(4))


def _only(y, k):
    y = np.zeros_like(y) if k is None else y * (np.arange(y.shape[1]) == k)[None, :, None, None]
    return y


for _k, _word in ((1, "forward"), (0, "backward")):
    gives("cross_merge", "direction", f"{_word} scan left out", lambda result, o, a, k=_k: result(y=_only(o["y"], k)),
          _count(2))
gives("cross_merge", "merge", "directions averaged instead of added",
      lambda result, o, a: result() / o["y"].shape[1], lambda g, n: n.operands["y"].shape[1] > 1)


@plants("cross_merge", "direction", "pixels scanned by columns instead of rows")
def _by_columns(graph, node):
    scans = [other for other in graph if other.name == "cross_scan" and other.layer == node.layer]
    if len(scans) != 1:
        return None

    def merged(o, a):
        return apply(node.operation, o, {**a, "height": a["width"], "width": a["height"]}).swapaxes(2, 3)
    return {scans[0]: lambda o, a: apply(scans[0].operation, {"x": o["x"].swapaxes(2, 3)}, a), node: merged}


@plants("cross_merge", "direction", "every direction reads and writes the other way round")
def _all_turned(graph, node):
    scans = [other for other in graph if other.name == "cross_scan" and other.layer == node.layer]
    if len(scans) != 1:
        return None
    return {scans[0]: lambda o, a: apply(scans[0].operation, o, a)[..., ::-1],
            node: lambda o, a: apply(node.operation, {"y": o["y"][..., ::-1]}, a)}


@plants("cross_merge", "direction", "both directions scan forwards")
def _both_forwards(graph, node):
    scans = [other for other in graph if other.name == "cross_scan" and other.layer == node.layer]
    if len(scans) != 1 or node.operands["y"].shape[1] != 2:
        return None
    return {scans[0]: lambda o, a: _turned(apply(scans[0].operation, o, a), (1,)),
            node: lambda o, a: apply(node.operation, {"y": _turned(o["y"], (1,))}, a)}


def _mixed(result, o, a):
    """The published CPU path: (B, D, L) added to (B, 1, D, L), then summed over the wrong axis."""
    y = o["y"]
    wrong = np.stack([np.broadcast_to(y[:, 0].sum(0), y[:, 0].shape), len(y) * y[:, 1]], 1)
    return result(y=wrong)


gives("cross_merge", "batch-mixed",
      "samples of the batch mixed where directions are merged, as in the published CPU path", _mixed, _count(2))


def _parameters_of(order, text):
    """The constants of every direction taken from others, in every operation of the scan's layer."""
    @plants("selective_scan", "direction", text)
    def plant(graph, node):
        directions, changes = len(order), {}
        if node.shape[1] != directions:
            return None
        for other in graph:
            names = [name for name, value in other.operands.items() if isinstance(value, Constant)]
            axes = {name: next((axis for axis in (0, 1) if other.operands[name].shape[axis:axis + 1] == (directions,)),
                               None) for name in names}
            if other.layer == node.layer and other.name in ("project", "add", "selective_scan") and names \
                    and None not in axes.values():
                changes[other] = lambda o, a, op=other.operation, axes=axes: apply(
                    op, {**o, **{name: o[name].take(order, axis) for name, axis in axes.items()}}, a)
        return changes


_parameters_of((1, 0), "parameters of the two directions exchanged")
_parameters_of((0, 0), "the first direction's parameters used for both")
_parameters_of((1, 1), "the second direction's parameters used for both")
_parameters_of((0, 2, 1, 3), "parameters of the directions exchanged: order (0, 2, 1, 3)")


def _recurrence(o, weight=None, late=False, state=None):
    """The recurrence step by step, with another `weight(delta, A of the state)` of the input than delta, answers from
    the state before the step (late), or something done to the state."""
    u, delta, A, B, C, D = (o[name] for name in ("u", "delta", "A", "B", "C", "D"))
    y = D[:, :, None] * u
    for n in range(A.shape[-1]):
        decay = np.exp(delta * A[:, :, n, None])
        drive = (delta if weight is None else weight(delta, A[:, :, n, None])) * u * B[:, :, n, None, :]
        h = np.zeros(u.shape[:-1])
        for step in range(u.shape[-1]):
            before = h
            h = decay[..., step] * h + drive[..., step]
            h = h if state is None else state(h)
            y[..., step] += C[:, :, n, None, step] * (before if late else h)
    return y


def _carried(o):
    joined = {name: np.concatenate(list(o[name]), -1)[None] for name in ("u", "delta", "B", "C")}
    y = selective_scan(joined["u"], joined["delta"], o["A"], joined["B"], joined["C"], o["D"])[0]
    return np.stack(np.split(y, len(o["u"]), -1))


def chunked(o, size):
    """The scan started anew every `size` steps."""
    length = o["u"].shape[-1]
    parts = [{name: o[name][..., start:start + size] for name in ("u", "delta", "B", "C")}
             for start in range(0, length, size)]
    return np.concatenate([selective_scan(p["u"], p["delta"], o["A"], p["B"], p["C"], o["D"]) for p in parts], -1)


def _scan(key, text, function, when=lambda graph, node: True):
    gives("selective_scan", key, text, lambda result, o, a: function(o), when)


def _instead(**changes):
    return lambda o: selective_scan(**{**o, **{name: change(o) for name, change in changes.items()}})


_scan("Ds-missing", "skip term Ds * u left out", _instead(D=lambda o: o["D"] * 0))
_scan("Ds-missing", "skip term without Ds: u itself", _instead(D=lambda o: o["D"] * 0 + 1))
_scan("decay", "A = A_logs: minus and exp left out", _instead(A=lambda o: np.log(-o["A"])))
_scan("decay", "A = -A_logs: exp left out", _instead(A=lambda o: -np.log(-o["A"])))
_scan("decay", "A = exp(A_logs): minus left out", _instead(A=lambda o: -o["A"]))
_scan("decay", "A = -1 everywhere: A_logs not used", _instead(A=lambda o: o["A"] * 0 - 1))
_scan("projection-order", "B and C exchanged", _instead(B=lambda o: o["C"], C=lambda o: o["B"]))
_scan("discretisation", "B discretised exactly (zero-order hold) instead of delta * B",
      lambda o: _recurrence(o, lambda delta, A: np.expm1(delta * A) / A))
_scan("discretisation", "B not multiplied by delta", lambda o: _recurrence(o, lambda delta, A: np.ones_like(delta)))
_scan("discretisation", "decay to first order, 1 + delta A, instead of its exponential",
      lambda o: _first_order(o))
_scan("scan-step", "every step answers with the state before it", lambda o: _recurrence(o, late=True))
_scan("scan-step", "no state is kept: every step by itself", lambda o: chunked(o, 1))
_scan("scan-reset", "scan not reset between samples: the state runs on into the next", _carried,
      lambda g, n: n.shape[0] > 1)
_scan("scan-reset", "scan not reset between directions: the state runs on into the next", lambda o: _run_on(o),
      lambda g, n: n.shape[1] > 1)
for _size in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
    _scan("scan-reset", f"scan in chunks of {_size} steps that does not pass its state on",
          lambda o, size=_size: chunked(o, size), lambda g, n, size=_size: n.shape[-1] > size)


def _first_order(o):
    y, h = o["D"][:, :, None] * o["u"], 0.0
    for n in range(o["A"].shape[-1]):
        h = np.zeros(o["u"].shape[:-1])
        for step in range(o["u"].shape[-1]):
            delta = o["delta"][..., step]
            h = (1 + delta * o["A"][:, :, n]) * h + delta * o["u"][..., step] * o["B"][:, :, n, None, step]
            y[..., step] += o["C"][:, :, n, None, step] * h
    return y


def _run_on(o):
    """Directions one after another along one sequence, each with its own constants."""
    states, parts = None, []
    for k in range(o["u"].shape[1]):
        one = {name: o[name][:, k:k + 1] for name in ("u", "delta", "B", "C")} | {
            name: o[name][k:k + 1] for name in ("A", "D")}
        y, states = _from(one, states)
        parts.append(y)
    return np.concatenate(parts, 1)


def _from(o, states):
    """(y, last states) of a scan that begins in `states`."""
    y, last = o["D"][:, :, None] * o["u"], []
    for n in range(o["A"].shape[-1]):
        h = np.zeros(o["u"].shape[:-1]) if states is None else states[n]
        for step in range(o["u"].shape[-1]):
            delta = o["delta"][..., step]
            h = np.exp(delta * o["A"][:, :, n]) * h + delta * o["u"][..., step] * o["B"][:, :, n, None, step]
            y[..., step] += o["C"][:, :, n, None, step] * h
        last.append(h)
    return y, last


@plants("selective_scan", "scan-reset", "scan reset at every row of the map")
def _row_reset(graph, node):
    merge = next((user for user in graph.users[node] if user.name == "cross_merge"), None)
    if merge is None or node.shape[-1] != merge.shape[2] * merge.shape[3] or merge.shape[2] < 2:
        return None
    return {node: lambda o, a: chunked(o, merge.shape[3])}
