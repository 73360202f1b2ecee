"""What a callable answers: lists and dicts of one array are taken as such, softmax and float16 are recognised."""

from __future__ import annotations

import numpy as np

from mmref.errors import ValueProblem
from mmref.validate.trace import largest

LIMIT = 64.0  # units of rounding noise


def answer_of(value) -> np.ndarray:
    """The array of an answer. Raises ValueProblem saying what was given instead of one."""
    if isinstance(value, dict) or (hasattr(value, "keys") and hasattr(value, "__getitem__")):
        names = list(value.keys())
        raise ValueProblem(f"gave a dict of {len(names)} ({', '.join(map(str, names[:5]))}): return one array, for "
                           f"instance the one of {names[0]!r}" if names else "gave an empty dict")
    if isinstance(value, (list, tuple)) and value and all(hasattr(part, "shape") for part in value):
        shapes = ", ".join(str(tuple(part.shape)) for part in value[:4])
        raise ValueProblem(f"gave a {type(value).__name__} of {len(value)} arrays ({shapes}): return one array, for "
                           f"instance its first")
    if value is None:
        raise ValueProblem("gave None: return the array of scores")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        return np.asarray(value)
    except Exception as error:
        raise ValueProblem(f"gave a {type(value).__name__} that NumPy takes for no array: {error}") from error


def wrong(got, truth, single) -> str | None:
    """Why `got` is not the network's answer `truth` (float64); None where it is. `single`: what float32 gives."""
    if got.shape != truth.shape:
        extra = ""
        if got.size == truth.size:
            extra = ", the same values in another shape"
        return f"gave shape {got.shape}, expected {truth.shape}{extra}"
    if got.dtype.kind != "f":
        return f"gave no floats ({got.dtype})"
    if not np.isfinite(got).all():
        return (f"gave NaN, infinity: {int(np.isnan(got).sum())} NaN and {int(np.isinf(got).sum())} infinite of "
                f"{got.size} values")
    noise = max(largest(single - truth), np.finfo(np.float32).eps * largest(truth))
    got64 = got.astype(np.float64)
    error = largest(got64 - truth)
    if error <= LIMIT * noise:
        return None
    units = f"{error / max(noise, 1e-300):.3g} units of float32 rounding"
    for name, function in ALIKE.items():
        if largest(got64 - function(truth)) <= LIMIT * noise + 1e-6 * largest(function(truth)):
            return f"gave the {name} of the scores: return the scores themselves"
    halves = got.dtype == np.float16 or np.array_equal(got64, got64.astype(np.float32).astype(np.float16))
    scale = largest(truth) or 1.0
    if halves and error <= 0.05 * scale:
        return (f"off by {error:.3g} ({units}); computes in float16, whose error this may be: largest "
                f"{error / scale:.1e} of the largest score")
    worst = int(np.abs(got64 - truth).reshape(len(got), -1).max(axis=1).argmax())
    return f"off by {error:.3g} ({units}), most in sample {worst} of {len(got)}"


def _softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


ALIKE = {"softmax": _softmax, "logarithm of the softmax": lambda x: np.log(np.maximum(_softmax(x), 1e-300)),
         "sigmoid": lambda x: 1 / (1 + np.exp(-np.clip(x, -700, 700)))}
