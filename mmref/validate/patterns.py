"""Differences that need no run to be tried: a record moved about, or another in its place."""

from __future__ import annotations

import numpy as np

from mmref.validate.findings import Diagnosis


def patterns(name, expected, known, explains):
    """Patterns that need no run: `expected` moved about, or another record in its place."""
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
        for height in (1,) if expected.shape[2:] != (1, 1) else ():
            moved = np.roll(expected, height, 2), np.roll(expected, height, 3)
            for text, array in zip(("map shifted by one row", "map shifted by one column"), moved, strict=True):
                yield from _named("permuted", text, name, explains(array))
    yield from _named("zero", "all zeros: never written?", name, explains(expected * 0))
    for other in [other for other in known if other != name and known[other].shape == expected.shape][-60:]:
        if np.isfinite(known[other]).all():
            yield from _named("wiring", f"this is the value of {other}", name, explains(known[other]))


def _named(key, text, layer, left):
    if left is not None:
        yield Diagnosis(key, text, layer, left)
