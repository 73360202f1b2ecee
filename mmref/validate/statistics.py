"""How two arrays differ, in figures that people know from elsewhere."""

from __future__ import annotations

import numpy as np


def statistics(expected: np.ndarray, got: np.ndarray, allowed: float) -> dict:
    """{off: share of values more than `allowed` apart, p50, p90, p99: percentiles of the absolute difference, largest:
    the largest one, at: its index, values: [expected, got] there, cosine} of two arrays of one shape; for scores
    (rows of at least two) also top1 and top5, the share of rows whose best, or best five, are the same."""
    if not expected.size:
        return {}
    difference = np.abs(got - expected)
    fine = np.isfinite(difference)
    if not fine.any():
        return {"off": 1.0}
    known = difference[fine]
    p50, p90, p99 = np.percentile(known, (50, 90, 99))
    at = np.unravel_index(np.where(fine, difference, -1).argmax(), difference.shape)
    length = float(np.linalg.norm(expected[fine]) * np.linalg.norm(got[fine]))
    found = {"off": float(1 - (known <= allowed).sum() / difference.size), "p50": float(p50), "p90": float(p90),
             "p99": float(p99), "largest": float(known.max()), "at": [int(i) for i in at],
             "values": [float(expected[at]), float(got[at])],
             "cosine": float(np.vdot(expected[fine], got[fine])) / length if length else None}
    if expected.ndim == 2 and expected.shape[1] > 1 and fine.all():
        for count in (1, 5):
            if count < expected.shape[1]:
                ours, theirs = (np.sort(np.argsort(-array, 1, kind="stable")[:, :count], 1)
                                for array in (expected, got))
                found[f"top{count}"] = float((ours == theirs).all(1).mean())
    return found


def not_finite(array) -> dict:
    """{nan, infinite: how many values; first: the index of the first one} of an array that is not all finite."""
    bad = ~np.isfinite(array)
    first = np.unravel_index(int(bad.argmax()), array.shape)
    return {"nan": int(np.isnan(array).sum()), "infinite": int(np.isinf(array).sum()), "of": int(array.size),
            "first": [int(i) for i in first]}


def said(figures: dict) -> str:
    """One line for people."""
    if not figures:
        return ""
    if "nan" in figures:
        return (f"{figures['nan']} NaN and {figures['infinite']} infinite of {figures['of']} values, the first at "
                f"{tuple(figures['first'])}")
    if "p50" not in figures:
        return "no finite value"
    ours, theirs = figures["values"]
    text = (f"{figures['off']:.1%} of the values off; absolute difference {figures['p50']:.2e} in the middle, "
            f"{figures['p99']:.2e} at 99 %, largest {figures['largest']:.2e} at {tuple(figures['at'])}: "
            f"{theirs:.6g} for {ours:.6g}")
    for count in (1, 5):
        if f"top{count}" in figures:
            text += f"; top-{count} the same for {figures[f'top{count}']:.1%} of the samples"
    return text
