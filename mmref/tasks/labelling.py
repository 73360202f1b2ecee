"""From logits to classes: at another size without ever holding that size's logits, and window by window.

A photograph of 12 million pixels has 7 GB of logits for 150 classes, and nobody wants them. Bilinear values are means
of their four neighbours, so where these agree about the class, the new pixel's class is theirs: only the pixels on the
borders between classes are computed, a few rows at a time.
"""

from __future__ import annotations

import numpy as np

from mmref.nn.resize import bilinear_sources

__all__ = ["labels_at", "spans"]

_PIXELS = 1 << 20    # of the answer at once
_VALUES = 1 << 24    # of logits at once: 64 MiB


def labels_at(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """logits (classes, h, w) -> (height, width) uint8 or uint16, each pixel's class: that of the largest logit after
    resizing them bilinearly (`mmref.nn.resize.resize`), the first of equal ones."""
    classes, h, w = logits.shape
    labels = np.empty((height, width), label_dtype(classes))
    (top, bottom, down), (left, right, across) = bilinear_sources(h, height), bilinear_sources(w, width)
    down, across = down.astype(logits.dtype), across.astype(logits.dtype)
    rows = max(1, min(_PIXELS // width, _VALUES // (classes * w) * height // h))
    for start in range(0, height, rows):
        block = slice(start, start + rows)
        first = top[block][0]
        slab = np.ascontiguousarray(logits[:, first:bottom[block][-1] + 1].transpose(1, 2, 0))    # (rows, w, classes)
        _label_block(slab, top[block] - first, bottom[block] - first, down[block], left, right, across, labels[block])
    return labels


def _label_block(slab, top, bottom, down, left, right, across, labels):
    """Fill `labels` from the pixels `slab` (h, w, classes) and each new pixel's neighbours and their shares."""
    whole = slab.argmax(-1).astype(labels.dtype)                                                # (h, w)
    above, below = whole[top], whole[bottom]
    labels[:] = above[:, left]
    agreed = (above[:, right] == labels) & (below[:, left] == labels) & (below[:, right] == labels)
    rows, columns = np.nonzero(~agreed)
    most = max(1, _VALUES // 4 // slab.shape[2])
    for start in range(0, len(rows), most):
        y, x = rows[start:start + most], columns[start:start + most]
        lower, upper = (_between(slab[row[y], left[x]], slab[row[y], right[x]], across[x]) for row in (top, bottom))
        labels[y, x] = _between(lower, upper, down[y]).argmax(-1)


def _between(first, second, share):
    """first + share * (second - first), as a weighted mean: (n, classes), (n, classes), (n,) -> (n, classes)."""
    first *= (1 - share)[:, None]
    second *= share[:, None]
    first += second
    return first


def label_dtype(classes: int) -> np.dtype:
    """uint8 for up to 256 classes, uint16 beyond."""
    return np.min_scalar_type(max(classes - 1, 0))


def spans(size: int, window: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Windows along an axis of `size` pixels: (start, stop, first, last) of each. It sees pixels start to stop, and its
    answer counts for first to last, up to the middle of what it shares with its neighbours.

    Windows are `window` long, the same distance apart to a pixel, and share at least `overlap`; one is enough, and
    shorter, where the axis is."""
    if size <= window:
        return [(0, size, 0, size)]
    count = -(-(size - overlap) // (window - overlap))
    starts = [i * (size - window) // (count - 1) for i in range(count)]
    cuts = [0, *((start + before + window) // 2 for before, start in zip(starts, starts[1:], strict=False)), size]
    return [(start, start + window, first, last) for start, first, last in zip(starts, cuts, cuts[1:], strict=False)]
