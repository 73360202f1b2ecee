"""How the axes of a stored record lie: NCHW or NHWC, tokens, axes of length one."""

from __future__ import annotations

import numpy as np

# How a map may be stored: name and the axes of the stored array that give (B, C, H, W).
LAYOUTS = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 3, 1, 2), "HWNC": (2, 3, 0, 1)}


def layouts(expected: tuple, got: tuple) -> list[tuple[str, tuple]]:
    """(name, axes) of the ways to turn an array of shape `got` into `expected`; the plain one first."""
    expected, got = tuple(expected), tuple(got)
    if len(expected) == 4 and len(got) == 4:
        found = [(name, axes) for name, axes in LAYOUTS.items() if tuple(got[i] for i in axes) == expected]
        if found:
            return found
    if expected == got:
        return [("", tuple(range(len(got))))]
    if tuple(n for n in expected if n != 1) == tuple(n for n in got if n != 1):
        return [("squeezed", ())]
    if len(expected) == 4 and len(got) == 3:
        batch, channels, height, width = expected
        ways = (("tokens", (batch, height * width, channels), (0, 2, 1)),
                ("channels and tokens", (batch, channels, height * width), (0, 1, 2)))
        return [(name, axes) for name, shape, axes in ways if got == shape]
    return []


def arranged(reference, candidate) -> tuple[np.ndarray | None, str]:
    """`candidate` as float64 with the reference's axes, and the name of its layout; None where no layout fits.

    Where several fit (a square map with as many channels) the nearest is taken."""
    found = []
    for name, axes in layouts(reference.shape, candidate.shape):
        array = candidate.transpose(axes) if axes else candidate
        found.append((np.asarray(array, np.float64).reshape(reference.shape), name))
    if len(found) < 2:
        return found[0] if found else (None, "")
    with np.errstate(invalid="ignore", over="ignore"):
        return min(found, key=lambda item: np.nan_to_num(np.abs(item[0] - reference).max(), nan=np.inf))
