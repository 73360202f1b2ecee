"""Which known mistake makes the first diverging layer come out as it did.

The unit around that layer (stem, block, merging, head) is run again from the reference's own input with one mistake
planted at a time, in every layer that may be to blame: the diverging one, what contains it, and what ran before it
without being in the candidate. A mistake that reproduces the candidate to rounding is named. Before that, what
needs no run: records permuted, flipped, scaled, taken from elsewhere, a picture prepared otherwise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np

from mmref.models.detection import DetectionNetwork
from mmref.models.segmentation import Segmentation
from mmref.nn import functional as F
from mmref.nn.layer import recording
from mmref.validate.faults import FAULTS
from mmref.validate.segmentation_faults import Decoder
from mmref.validate.trace import canonical, largest

LIMIT = 60.0      # units of rounding noise within which a mistake reproduces the candidate,
CLOSER = 0.02     # and the share of the difference it may leave unexplained;
FAINT = 8.0, 0.3  # or fewer units and a larger share: a difference that hardly stands out of the noise
SHOWN = 3


@dataclass
class Diagnosis:
    """`key` as in faults.py; `left` the error that remains, in units of rounding noise."""

    key: str
    text: str
    layer: str
    left: float


def diagnose(model, reference, values, comparison, noise) -> tuple[list[Diagnosis], str]:
    """(diagnoses, best first; a note where there is none). `values` {name: (candidate's array, layout)}."""
    first = comparison.first
    got, unit = values[first][0], max(noise.get(first, 0.0), 1e-300)
    if got is None:
        return [], ("another size of input: resize or crop" if first == "input" else
                    "another shape: padding, stride or the split of channels")
    fine = np.isfinite(got)
    overflow = "" if fine.all() else f"NaN or infinity in {1 - fine.mean():.0%} of the values"
    error = largest(np.where(fine, got - reference[first], 0))

    def explains(array):
        if array.shape != got.shape:
            return None
        if overflow:
            return _overflows_alike(array, got, fine)
        with np.errstate(invalid="ignore", over="ignore"):
            left = float(np.abs(array - got).max())
        explained = left <= min(CLOSER * error, LIMIT * unit) or left <= min(FAINT[1] * error, FAINT[0] * unit)
        return left / unit if explained else None
    if first == "input":
        return of_input(reference["input"], got)
    found = list(plain(first, reference, explains))
    if model is None:
        note = "" if found else "no known pattern; with the reference's weights (--weights) mistakes can be tried"
        return found, note
    if "input" not in reference:
        return found, "the reference trace lacks its input, so no mistake can be tried"
    checked = {row.name for row in comparison.rows if row.verdict == "same"}
    model = model.astype(np.float32 if overflow else np.float64)  # float64 would overflow elsewhere
    # Whoever folded batch norms made mistakes in the folded layers, or when folding.
    folded = not model.folded and not any(name.endswith(".bn") for name in values)
    for version in (model.fold_batchnorm(), model) if folded else (model,):
        found += planted(version, reference["input"], first, checked, explains)
    if not found:
        note = overflow or "no mistake that mmref knows reproduces this difference"
        if "input" not in checked:
            note += "; the candidate's `input` was not recorded: perhaps it was prepared otherwise"
        return [], note
    least = min(diagnosis.left for diagnosis in found)
    best = [d for d in found if d.left <= max(8 * least, 4.0)]
    best.sort(key=lambda d: (d.key == "wiring", d.left))  # a mistake with a name says more than "the value of"
    return list({d.key + d.text: d for d in reversed(best)}.values())[::-1][:SHOWN], overflow


def _overflows_alike(array, got, fine):
    """0 where two arrays are finite in the same places and alike there (what is near overflow is rounded coarsely)."""
    both = fine & np.isfinite(array)
    alike = (np.isfinite(array) == fine).mean() > 0.99
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(array - got)[both] <= 1e-2 * np.abs(got[both]) + 1e-3 * largest(got[both])
    return 0.0 if alike and not np.isfinite(array).all() and near.all() else None


def plain(name, reference, explains):
    """Patterns that need no run."""
    expected = reference[name]
    if expected.ndim >= 2 and len(expected) > 1:
        for text, order in (("samples of the batch in reverse order", slice(None, None, -1)),
                            ("every sample has the first one's result", np.zeros(len(expected), int)),
                            ("samples of the batch shifted by one", np.roll(np.arange(len(expected)), 1)),
                            ("samples of the batch shifted by one", np.roll(np.arange(len(expected)), -1))):
            yield from _named("batch-mixed", text, name, explains(expected[order]))
        mean = np.broadcast_to(expected.mean(0, keepdims=True), expected.shape)
        yield from _named("batch-mixed", "every sample has the batch's mean", name, explains(mean))
    if expected.ndim == 4:
        for text, array in (("map mirrored left to right", expected[..., ::-1]),
                            ("map upside down", expected[:, :, ::-1]), ("map turned round", expected[:, :, ::-1, ::-1]),
                            ("rows and columns exchanged", expected.swapaxes(2, 3)),
                            ("channels in reverse order", expected[:, ::-1])):
            yield from _named("permuted", text, name, explains(array))
    yield from _named("zero", "all zeros: never written?", name, explains(expected * 0))
    before = [other for other in reference if other != name and reference[other].shape == expected.shape]
    for other in before[-40:]:
        yield from _named("wiring", f"this is the value of {other}", name, explains(reference[other]))


def _named(key, text, layer, left):
    if left is not None:
        yield Diagnosis(key, text, layer, left)


def of_input(expected, got):
    """What was done to the picture: (diagnoses, note)."""
    if expected.ndim != 4 or not np.isfinite(got).all():
        return [], "the two runs had different inputs"
    for geometry, axes in (("", slice(None)), ("picture mirrored", np.s_[:, :, :, ::-1]),
                           ("picture upside down", np.s_[:, :, ::-1]),
                           ("picture turned round", np.s_[:, :, ::-1, ::-1]), ("rows and columns exchanged", None)):
        moved = expected.swapaxes(2, 3) if axes is None else expected[axes]
        for colours in ("", "colour channels reversed (BGR)"):
            said = [word for word in (geometry, colours) if word]
            fits = _fits(moved[:, ::-1] if colours else moved, got)
            if fits is None:
                continue
            if any(abs(a - 1) > 1e-3 or abs(b) > 1e-3 for a, b in fits):
                lines = ", ".join(f"{a:.4g} * x + {b:.4g}" for a, b in fits)
                said.append(f"mean, deviation or range of the pixels differ: got {lines}")
            key = "input-permuted" if geometry or colours else "normalisation"
            return [Diagnosis(key, "; ".join(said), "input", 0.0)], ""
    dy, dx = _shift(expected, got)
    height, width = expected.shape[2:]
    if abs(dy) < height - 8 and abs(dx) < width - 8 and (dy or dx):
        ours = expected[:, :, max(dy, 0):height + min(dy, 0), max(dx, 0):width + min(dx, 0)]
        theirs = got[:, :, max(-dy, 0):height + min(-dy, 0), max(-dx, 0):width + min(-dx, 0)]
        if np.median(np.abs(ours - theirs)) <= 1e-3 * largest(ours):  # the border may have been filled
            return [Diagnosis("resize-crop", f"crop off by {dy} rows and {dx} columns", "input", 0.0)], ""
    similar = np.corrcoef(expected.ravel(), got.ravel())[0, 1] if expected.std() and got.std() else 0.0
    if similar > 0.5:
        text = (f"resize or crop off: pictures alike (correlation {similar:.3f}), pixels not; look at the filter, "
                f"antialiasing and rounding of sizes")
        return [Diagnosis("resize-crop", text, "input", 0.0)], ""
    return [], "the two runs had different inputs"


def _fits(expected, got):
    """[(a, b) a channel] where every channel of `got` is a * expected + b, else None."""
    if expected.shape != got.shape:
        return None
    lines = [_line(expected[:, c].ravel(), got[:, c].ravel()) for c in range(got.shape[1])]
    return [line[:2] for line in lines] if all(residual < 1e-3 for *_, residual in lines) else None


def _shift(expected, got):
    """(rows, columns) by which `got` looks at a later part of the picture, from the phases of the first sample."""
    a, b = (np.fft.fft2(array[0].mean(0) - array[0].mean()) for array in (expected, got))
    product = a * b.conj()
    peak = np.fft.ifft2(product / np.maximum(np.abs(product), 1e-12)).real
    found = np.unravel_index(peak.argmax(), peak.shape)
    return tuple(int(i - n if i > n // 2 else i) for i, n in zip(found, peak.shape, strict=True))


def _line(x, y):
    """(a, b, largest residual of y = a x + b over y's deviation)."""
    a, b = np.polyfit(x, y, 1) if x.std() else (0.0, float(y.mean()) if y.size else 0.0)
    return float(a), float(b), largest(y - a * x - b) / max(float(y.std()), 1e-30)


# ------------------------------------------------------------------------------------------------ planted mistakes

def planted(model, x, first, checked, explains):
    """Diagnoses of the mistakes that reproduce record `first`."""
    unit, inside, x = unit_of(model, np.asarray(x, model.dtype), first)
    if unit is None:
        return
    order = list(_outputs(unit, x))
    names = {canonical(layer.name): path for path, layer in unit.walk()}
    until = order.index(first) if first in order else len(order)
    owner = first.split(":")[0]
    for name, path in names.items():
        contains = not path or owner == name or owner.startswith(f"{name}.") or first in ("output",)
        earlier = name not in checked and (name not in order or order.index(name) <= until)
        within = name.startswith(f"{owner}.") and name not in checked
        if not (contains or earlier or within):
            continue
        for key, text, plant in FAULTS.get(type(_at(unit, path)), ()):
            copied = clone(unit)
            if plant(_at(copied, path)) is False:
                continue
            with np.errstate(all="ignore"):
                outputs = _outputs(copied, x)
            value = outputs.get(first if first in outputs else "", None)
            left = None if value is None else explains(value)
            if left is not None:
                yield Diagnosis(key, text, name, left)
    if inside == "head":
        for key, text, value in (("pooling", "maximum instead of mean over the pixels", x.max((2, 3))),
                                 ("pooling", "sum instead of mean over the pixels", x.sum((2, 3))),
                                 ("pooling", "one pixel instead of the mean over all", x[:, :, 0, 0]),
                                 ("batch-mixed", "mean over the batch too: samples mixed",
                                  np.broadcast_to(x.mean((0, 2, 3)), x.shape[:2]))):
            outputs = _outputs(model.head, value)
            left = explains(outputs.get(first if first in outputs else "", value))
            if left is not None:
                yield Diagnosis(key, text, "head", left)


def unit_of(model, x, first):
    """(the unit that computes record `first`, its kind, its input): stem, a child of a stage, or the head."""
    if isinstance(model, Segmentation):
        if not first.startswith(model.backbone.name + "."):
            return Decoder(model), "decoder", [*model.forward_features(x), x]
        model = model.backbone
    if isinstance(model, DetectionNetwork):
        if not first.startswith(model.backbone.name + "."):
            return None, "", x                   # no mistakes in necks and heads are known
        model = model.backbone
    if first.startswith(model.patch_embed.name):
        return model.patch_embed, "stem", x
    x = model.patch_embed(x)
    for stage in (model.blocks1, model.blocks2, model.blocks3):
        children = list(stage.children.values())
        for child in children:
            if first == child.name or first.startswith(child.name + ".") or (first == stage.name and
                                                                             child is children[-1]):
                return child, "block", x
            x = child(x)
    if first.startswith(model.head.name or "head") or first == "output":
        return _Tail(model.head), "head", x
    return None, "", x


class _Tail:
    """Pooling and head, with the walk of the head."""

    def __init__(self, head):
        self.head, self.name = head, head.name

    def walk(self):
        return self.head.walk()

    def __call__(self, x):
        return self.head(F.global_average_pool(x) if x.ndim == 4 else x)


def _outputs(unit, x):
    """{canonical name: output} of a unit, its result under "" as well."""
    outputs = {}
    with recording(lambda name, value, layer: outputs.__setitem__(canonical(name), value)):
        outputs[""] = unit(x)
    return outputs


def clone(layer):
    """A copy whose layers may be changed; parameters are shared."""
    if isinstance(layer, _Tail):
        return _Tail(clone(layer.head))
    if isinstance(layer, Decoder):
        return Decoder(clone(layer.network))
    copied = copy.copy(layer)
    for name, child in layer.children.items():
        setattr(copied, name, clone(child))
    return copied


def _at(unit, path):
    return next(layer for found, layer in unit.walk() if found == path)
