"""Arrays as the page holds them: base64 of little-endian values, exact for numbers, eight bits for pictures.

A page has a budget. Maps of all layers together get MAP_BYTES, and where they need more every map keeps as many
channels as its share allows, those that vary most; sides above SIDE are shown by every second pixel, or third, ...
"""

from __future__ import annotations

import base64

import numpy as np

SIDE = 64             # pixels of a map's side on the page
MAP_BYTES = 1_900_000
PARAMETER_SIDE = 48   # of a parameter's picture
BARS = 64             # of a histogram


def packed(array, dtype=np.float32) -> str:
    """base64 of the array's values, little-endian."""
    array = np.ascontiguousarray(array)
    return base64.b64encode(array.astype(np.dtype(dtype).newbyteorder("<")).tobytes()).decode("ascii")


def as_maps(value: np.ndarray) -> np.ndarray:
    """The first sample as (C, H, W); a vector is C maps of one pixel."""
    value = value[0]
    if value.ndim == 1:
        return value[:, None, None]
    return value.reshape(-1, *value.shape[-2:]) if value.ndim >= 3 else value[:, None, :]


def thinned(maps: np.ndarray) -> tuple[np.ndarray, int]:
    """(every n-th pixel of every n-th row, n) with sides up to SIDE."""
    step = max(1, -(-max(maps.shape[1:]) // SIDE))
    return maps[:, ::step, ::step], step


def share(shapes: list[tuple[int, int, int]], budget: int = MAP_BYTES) -> int:
    """Bytes a map may take, so that all maps of these shapes (C, H, W) together stay within the budget."""
    low, high = 1, budget
    while low < high:
        middle = (low + high + 1) // 2
        total = sum(min(c, max(1, middle // (h * w))) * h * w for c, h, w in shapes)
        low, high = (middle, high) if total <= budget else (low, middle - 1)
    return low


def most_varied(maps: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the `count` channels that vary most over the map, ascending."""
    if count >= len(maps):
        return np.arange(len(maps))
    spread = maps.astype(np.float64).std((1, 2))
    return np.sort(np.argsort(-spread, kind="stable")[:count])


def map_record(value: np.ndarray, limit: int) -> dict:
    """A value of the run for the page: eight bits for every channel between its smallest and largest, and what is
    exact: range, mean and histogram of all of it."""
    whole = as_maps(value)
    maps, step = thinned(whole)
    kept = most_varied(maps, max(1, limit // (maps.shape[1] * maps.shape[2])))
    maps = maps[kept]
    low, high = maps.min((1, 2)), maps.max((1, 2))
    scale = np.where(high > low, high.astype(np.float64) - low, 1)
    levels = np.rint((maps.astype(np.float64) - low[:, None, None]) / scale[:, None, None] * 255)
    bottom, top = float(whole.min()), float(whole.max())
    counts = np.histogram(whole.astype(np.float64), BARS, (bottom, top if top > bottom else bottom + 1))[0]
    return {"shape": list(value.shape[1:]), "channels": len(whole), "size": list(maps.shape[1:]), "step": step,
            "kept": None if len(kept) == len(whole) else kept.tolist(), "low": packed(low), "high": packed(high),
            "levels": packed(levels, np.uint8), "min": bottom, "max": top, "mean": float(whole.mean(dtype=np.float64)),
            "histogram": counts.tolist()}


def parameter_record(name: str, array: np.ndarray) -> dict:
    """A parameter as a small picture: rows are outputs, columns what is read; small kernels stand side by side. Blue is
    negative, red positive, the largest magnitude full; a picture of a large matrix shows means of its blocks."""
    array = np.asarray(array, np.float64)
    plane, tiles = _plane(array)
    rows, columns = (-(-n // PARAMETER_SIDE) for n in plane.shape)
    if tiles is None and max(rows, columns) > 1:
        plane = _block_means(plane, rows, columns)
    else:
        rows = columns = 1
    largest = float(np.abs(plane).max(initial=0)) or 1.0
    return {"name": name, "shape": list(array.shape), "size": list(plane.shape), "tile": tiles,
            "block": [rows, columns], "levels": packed(np.rint(plane / largest * 127) + 128, np.uint8),
            "min": float(array.min()), "max": float(array.max()), "mean": float(array.mean())}


def _plane(array):
    """(a parameter as a matrix, side of the tiles it is made of or None)."""
    if array.ndim == 4 and 1 < array.shape[3] <= 16 and array.shape[2] == array.shape[3]:
        kernels = array.reshape(-1, *array.shape[2:])
        k = kernels.shape[1]
        across = max(1, min(PARAMETER_SIDE // k, len(kernels)))
        kernels = kernels[:across * across]
        kernels = np.concatenate([kernels, np.zeros((-len(kernels) % across, k, k))])
        return kernels.reshape(-1, across, k, k).swapaxes(1, 2).reshape(-1, across * k), k
    flat = array.ravel()
    if max(array.shape, default=1) == array.size:
        return flat[None, :], None
    return array.reshape(-1, array.shape[-1]) if array.ndim != 4 else array.reshape(len(array), -1), None


def _block_means(plane, rows, columns):
    edges = [np.arange(0, n, step) for n, step in zip(plane.shape, (rows, columns), strict=True)]
    sums = np.add.reduceat(np.add.reduceat(plane, edges[0], 0), edges[1], 1)
    counts = np.outer(*(np.diff(np.append(edge, n)) for edge, n in zip(edges, plane.shape, strict=True)))
    return sums / counts
