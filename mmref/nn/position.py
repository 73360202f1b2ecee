"""Tables of positions resized to another map: bicubic interpolation, of parameters and not of activations."""

from __future__ import annotations

import numpy as np

SHARPNESS = -0.75  # Keys' a: the value of PyTorch's interpolation, which published checkpoints are resized with


def resize_bicubic(table: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w, C) -> (height, width, C), as `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`: the
    centres of the corner pixels do not meet, and what lies outside has the value of the border. float64 inside; the
    table's dtype; the table itself where it has that size."""
    if table.shape[:2] == (height, width):
        return table
    rows, columns = _weights(table.shape[0], height), _weights(table.shape[1], width)
    return np.einsum("yh,hwc,xw->yxc", rows, table.astype(np.float64), columns, optimize=True).astype(table.dtype)


def _weights(size: int, wanted: int) -> np.ndarray:
    """(wanted, size): what each of the old values counts for in each of the new."""
    place = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    first, matrix = np.floor(place).astype(int), np.zeros((wanted, size))
    for neighbour in range(-1, 3):
        weight = _cubic(np.abs(place - first - neighbour))
        np.add.at(matrix, (np.arange(wanted), np.clip(first + neighbour, 0, size - 1)), weight)
    return matrix


def _cubic(distance):
    near = ((SHARPNESS + 2) * distance - (SHARPNESS + 3)) * distance ** 2 + 1
    far = ((SHARPNESS * distance - 5 * SHARPNESS) * distance + 8 * SHARPNESS) * distance - 4 * SHARPNESS
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
