"""Numbers in fewer bits."""

from __future__ import annotations

import numpy as np


def bfloat16(array):
    """Rounded to eight bits of mantissa, ties to even, as float64."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def tf32(array):
    """Rounded to eleven bits of mantissa, as tensor cores read float32, as float64."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xffffe000)).view(np.float32).astype(np.float64)


def float16(array):
    """Rounded to float16, as float64."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(np.float32).astype(np.float16).astype(np.float64)


def integers(array, axes=None):
    """Rounded to 255 steps of one size, symmetric about 0: int8, one scale for all or one for every output channel."""
    largest = np.abs(array).max(axis=axes, keepdims=axes is not None)
    scale = np.maximum(largest, 1e-30) / 127
    return np.clip(np.round(array / scale), -128, 127) * scale


ROUNDINGS = {"float16": float16, "bfloat16": bfloat16, "int8 (one scale)": integers,
             "int8 (a scale for every channel)": lambda w: integers(w, tuple(range(1, w.ndim)))}
