"""Mistakes in taking maps apart and putting them together, as in faults.py: splits, wavelets, resizing."""

from __future__ import annotations

import itertools

import numpy as np

from mmref.nn.operation import OPERATIONS, apply
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
