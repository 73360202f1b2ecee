"""What was done to a picture: the candidate's input held against the reference's.

Something is named only where it reproduces the input; else it is said what the difference looks like.
"""

from __future__ import annotations

import itertools

import numpy as np

from mmref.validate.findings import Diagnosis
from mmref.validate.roundings import bfloat16, float16
from mmref.validate.trace import largest

EXACT = 1e-3  # of the input's largest value: what a named change may leave unexplained
GEOMETRIES = {
    "": lambda x: x, "picture mirrored": lambda x: x[..., ::-1], "picture upside down": lambda x: x[:, :, ::-1],
    "picture turned round (EXIF orientation?)": lambda x: x[:, :, ::-1, ::-1],
    "rows and columns exchanged": lambda x: x.swapaxes(2, 3),
    "picture turned by 90 degrees (EXIF orientation?)": lambda x: x.swapaxes(2, 3)[..., ::-1],
    "picture turned by 270 degrees (EXIF orientation?)": lambda x: x.swapaxes(2, 3)[:, :, ::-1],
    "rows and columns exchanged, turned round": lambda x: x.swapaxes(2, 3)[:, :, ::-1, ::-1],
    "(height, width, channels) read as (channels, height, width)": lambda x: _reread(x, (0, 2, 3, 1)),
    "(channels, height, width) read as (height, width, channels)": lambda x: _reread_back(x)}


def _reread(x, axes):
    return np.ascontiguousarray(x.transpose(axes)).reshape(x.shape)


def _reread_back(x):
    batch, channels, height, width = x.shape
    return np.ascontiguousarray(x).reshape(batch, height, width, channels).transpose(0, 3, 1, 2)


def of_input(expected, got) -> tuple[list[Diagnosis], str]:
    """(what reproduces the candidate's input, a note where nothing does)."""
    if got is None:
        return [], "another size of input: resize or crop"
    if expected.ndim != 4 or not np.isfinite(got).all() or expected.shape != got.shape:
        return [], "the two runs had different inputs"
    for (geometry, turn), order in itertools.product(GEOMETRIES.items(), _orders(expected.shape[1])):
        moved = turn(expected)
        if moved.shape != got.shape:
            continue
        fits = _fits(moved[:, order], got)
        if fits is not None:
            return [_fitted(geometry, order, fits, moved[:, order], got)], ""
    return next(filter(None, (found(expected, got) for found in (
        _rounded, _samples, _curve, _clipped, _dead, _cropped))), None) or ([], _likeness(expected, got))


def _orders(channels):
    return [list(order) for order in itertools.permutations(range(channels))] if channels <= 3 else [
        list(range(channels)), list(reversed(range(channels)))]


def _fitted(geometry, order, fits, moved, got):
    said = [geometry] if geometry else []
    if order != sorted(order):
        said.append("colour channels reversed (BGR)" if order == sorted(order)[::-1] else
                    f"colour channels in the order {order}")
    if any(abs(a - 1) > 1e-3 or abs(b) > 1e-3 for a, b in fits):
        lines = ", ".join(f"{a:.4g} * x + {b:.4g}" for a, b in fits)
        said.append(f"mean, deviation or range of the pixels differ: got {lines}")
    if not said:  # the same, but for rounding
        return Diagnosis("rounded", f"rounded: {_rounding(moved, got)}", "input", 0.0)
    key = "input-permuted" if geometry or order != sorted(order) else "normalisation"
    return Diagnosis(key, "; ".join(said), "input", 0.0)


def _rounding(expected, got):
    return _stored(expected, got) or (
        f"differs by at most {largest(got - expected):.2e}, as fewer bits or another order of the arithmetic make")


def _stored(expected, got):
    """In which of fewer bits the reference's pixels are the candidate's, in words."""
    for name, rounding in (("float16", float16), ("bfloat16", bfloat16)):
        if np.array_equal(rounding(expected), got):
            return f"the reference's pixels stored in {name}"
    return ""


def _fits(expected, got):
    """[(a, b) a channel] where every channel of `got` is a * expected + b, else None."""
    lines = [_line(expected[:, c].ravel(), got[:, c].ravel()) for c in range(got.shape[1])]
    return [line[:2] for line in lines] if all(residual < EXACT for *_, residual in lines) else None


def _line(x, y):
    """(a, b, largest residual of y = a x + b over y's deviation)."""
    a, b = np.polyfit(x, y, 1) if x.std() else (0.0, float(y.mean()) if y.size else 0.0)
    if not a:
        return 0.0, float(b), float("inf") if y.std() or x.std() else 0.0
    return float(a), float(b), largest(y - a * x - b) / max(float(y.std()), 1e-30)


def _found(key, text):
    return [Diagnosis(key, text, "input", 0.0)], ""


def _samples(expected, got):
    if len(expected) < 2:
        return None
    limit = EXACT * largest(expected)
    nearest = [min(range(len(expected)), key=lambda i, one=one: np.abs(expected[i] - one).max()) for one in got]
    if nearest != list(range(len(got))) and all(
            np.abs(expected[i] - one).max() <= limit for i, one in zip(nearest, got, strict=True)):
        return _found("batch-mixed", f"samples in another order, or some of them more than once: {nearest[:12]}")
    return None


def _rounded(expected, got):
    """Pixels in fewer bits, or on fewer levels."""
    stored = _stored(expected, got)
    if stored:
        return _found("rounded", f"rounded: {stored}")
    step = float(np.median(np.abs(expected))) or 1.0
    levels = np.unique(np.round(got[0, 0].ravel(), 6)).size
    if largest(got - expected) < 0.05 * step and levels <= 256 < np.unique(np.round(expected[0, 0].ravel(), 6)).size:
        return _found("rounded", f"pixels on {levels} levels: rounded to whole numbers before or after resizing")
    return None


def _curve(expected, got):
    """Every value a function of the reference's value, the same one everywhere: gamma or another transfer curve."""
    curves = []
    for c in range(expected.shape[1]):
        x, y = expected[:, c].ravel(), got[:, c].ravel()
        order = np.argsort(x, kind="stable")
        x, y = x[order], y[order]
        steps = np.diff(y)
        # a curve has one value for one argument, and goes up
        if len(x) < 64 or (np.diff(x) == 0).all() or (steps < -EXACT * (y.max() - y.min() or 1)).any():
            return None
        curves.append((x, y))
    flat = [np.mean((y == y[0]) | (y == y[-1])) for _, y in curves]
    if max(flat) > 0.02:
        return _found("range", f"values saturate: {max(flat):.0%} of a channel lie at its ends (range cut off or "
                               f"integers that saturate)")
    return _found("curve",
                  "every pixel is one rising curve of the reference's, no straight line: gamma, or linear light")


def _clipped(expected, got):
    differs = np.abs(got - expected) > EXACT * largest(expected)
    ends = np.isin(got, (got.min(), got.max()))
    if differs.any() and ends[differs].all() and not differs.all():
        return _found("range", f"values cut off at {got.min():.4g} and {got.max():.4g}: {differs.mean():.1%} of them")
    return None


def _dead(expected, got):
    """Whole rows or columns of another value, the rest right."""
    differs = np.abs(got - expected) > EXACT * largest(expected)
    for axis, word in ((2, "rows"), (3, "columns")):
        lines = differs.any(axis=tuple(i for i in range(4) if i != axis))
        if lines.any() and lines.mean() <= 0.25:
            which = np.flatnonzero(lines)
            return _found("region", f"{len(which)} {word} differ and the others are right: {which[:8].tolist()}")
    samples = differs.any((1, 2, 3))
    if not samples.all():
        return _found("region", f"samples {np.flatnonzero(samples)[:8].tolist()} differ, the others are right")
    return None


def _cropped(expected, got):
    dy, dx = _shift(expected, got)
    height, width = expected.shape[2:]
    if abs(dy) < height - 8 and abs(dx) < width - 8 and (dy or dx):
        ours = expected[:, :, max(dy, 0):height + min(dy, 0), max(dx, 0):width + min(dx, 0)]
        theirs = got[:, :, max(-dy, 0):height + min(-dy, 0), max(-dx, 0):width + min(-dx, 0)]
        if np.median(np.abs(ours - theirs)) <= EXACT * largest(ours):  # the border may have been filled
            return _found("resize-crop", f"crop off by {dy} rows and {dx} columns")
    return None


def _shift(expected, got):
    """(rows, columns) by which `got` looks at a later part of the picture, from the phases of the first sample."""
    a, b = (np.fft.fft2(array[0].mean(0) - array[0].mean()) for array in (expected, got))
    product = a * b.conj()
    peak = np.fft.ifft2(product / np.maximum(np.abs(product), 1e-12)).real
    found = np.unravel_index(peak.argmax(), peak.shape)
    return tuple(int(i - n if i > n // 2 else i) for i, n in zip(found, peak.shape, strict=True))


def _likeness(expected, got):
    """What the difference looks like, where nothing reproduces it."""
    a, b = expected - expected.mean(), got - got.mean()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    similar = float(np.vdot(a, b)) / length if length else 0.0
    spectrum = np.abs(np.fft.rfft2(got - expected)).mean((0, 1))
    third = max(1, spectrum.shape[0] // 6)
    low = float(spectrum[:third, :third].mean() / max(spectrum.mean(), 1e-30))
    if similar > 0.5:
        where = ("in fine detail (resize filter, antialiasing, crop)" if low < 3 else
                 "in broad areas (colours, brightness)")
        return (f"nothing known reproduces this input: the pictures are alike (correlation {similar:.3f}), the "
                f"difference is {where}")
    return "the two runs had different inputs"
