"""RoIAlign: a map's content inside a box, as a small map of fixed size (He et al. 2017, section 3).

A box is cut into n x n bins; a bin is the mean of bilinear samples on a regular grid inside it. Samples, their weights
and what counts as outside are products of a part along y and a part along x. So each box is two matrix products: rows
of the map into rows of bins, columns into columns of bins.
"""

from __future__ import annotations

import numpy as np

from mmref.arguments import check_array, check_integer, check_ndarray, check_number
from mmref.errors import ShapeError
from mmref.nn.functional import channels_last, check_backend


def roi_align(features, rois, size: int, scale: float, *, backend: str = "numpy"):
    """(n, C, size, size), of the features' dtype, stored channels-last: one small map for each region.

    features (B, C, H, W); rois (n, 5): which sample, then x1 y1 x2 y2 in pixels of the network's input, of which
    `scale` (1 / stride) makes pixels of the map. Pixel i's value stands at i, its middle at i + 0.5, so boxes are moved
    by half a pixel ("aligned"). ceil(bin) samples a bin and axis: a region without area gives zeros.
    `backend="numba"` runs the compiled kernel (float32 only). Raises ShapeError, ValueProblem, MissingBackend.
    """
    backend = check_backend(backend, ("numpy", "numba"))
    check_array("features", features, "batch channels height width")
    rois, size = check_rois(rois, len(features)), check_integer("size", size, 1, 1024)
    scale = check_number("scale", scale)
    pixels = channels_last(features)                                        # (B, H, W, C)
    if backend == "numba":
        from mmref.kernels import load_op
        return load_op("roi_align", "numba")(pixels, rois, size, scale).transpose(0, 3, 1, 2)
    _, height, width, channels = pixels.shape
    out = np.zeros((len(rois), size, size, channels), features.dtype)
    for bins, (sample, *box) in zip(out, rois, strict=True):
        x1, y1, x2, y2 = (side * scale - 0.5 for side in box)
        top, rows = bin_weights(y1, y2 - y1, size, height)                  # (size, rows of the map in use)
        left, columns = bin_weights(x1, x2 - x1, size, width)
        part = pixels[int(sample), top:top + rows.shape[1], left:left + columns.shape[1]]
        mixed = np.tensordot(rows.astype(part.dtype), part, 1)              # (size, columns of the map, C)
        bins[...] = columns.astype(part.dtype) @ mixed
    return out.transpose(0, 3, 1, 2)


def bin_weights(start: float, extent: float, size: int, length: int) -> tuple[int, np.ndarray]:
    """How much each pixel of an axis counts in each of `size` bins, as (first pixel, weights (size, pixels)), float64.

    The bins share the `extent` from `start` on, in pixels of a map of `length`. A sample beyond a pixel outside of the
    map counts 0, one nearer than that has the value of the pixel at the edge.
    """
    bin = extent / size
    count = int(np.ceil(bin)) if bin > 0 else 0
    if not count or not length:
        return 0, np.zeros((size, 0))
    index = np.arange(size)[:, None]
    at = start + index * bin + (np.arange(count) + 0.5) * bin / count       # (size, count)
    inside = (at >= -1) & (at <= length)
    at = np.clip(at, 0, length - 1)
    low = at.astype(np.int64)
    high, fraction = np.minimum(low + 1, length - 1), at - low
    first = low.min()
    weights = np.zeros((size, high.max() - first + 1))
    np.add.at(weights, (index, low - first), inside * (1 - fraction) / count)
    np.add.at(weights, (index, high - first), inside * fraction / count)
    return int(first), weights


def check_rois(rois, batch: int) -> np.ndarray:
    """Regions (n, 5) as float64. Raises ShapeError."""
    check_ndarray("rois", rois, "regions sample,x1,y1,x2,y2")
    if rois.ndim != 2 or rois.shape[1] != 5 or rois.dtype.kind not in "fiu":
        raise ShapeError(f"rois must be (regions, 5), sample x1 y1 x2 y2, got shape {rois.shape} of {rois.dtype}")
    rois = rois.astype(np.float64)
    if not np.isfinite(rois).all() or len(rois) and not (0 <= rois[:, 0].min() and rois[:, 0].max() < batch):
        raise ShapeError(f"rois must be finite and of samples 0..{batch - 1}")
    return rois


def pyramid_levels(boxes, count: int, finest: float = 56.0) -> np.ndarray:
    """(n,) int64: which of `count` maps, finest first, a box is cut from: each is for boxes twice as large as the one
    before; `finest` is the side from which on the second is taken, halved (Lin et al. 2017, equation 1)."""
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    return np.clip(np.floor(np.log2(sides / finest + 1e-6)), 0, count - 1).astype(np.int64)


def pyramid_roi_align(maps, boxes, samples, size: int, strides, *, backend: str = "numpy"):
    """`roi_align` of boxes (n, 4) of samples (n,), each from the one of `maps` that fits it; (n, C, size, size)."""
    level, rois = pyramid_levels(boxes, len(maps)), np.concatenate([np.reshape(samples, (-1, 1)), boxes], axis=1)
    out = np.zeros((len(boxes), size, size, maps[0].shape[1]), maps[0].dtype).transpose(0, 3, 1, 2)
    for i, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        out[level == i] = roi_align(features, rois[level == i], size, 1 / stride, backend=backend)
    return out
