"""A colour for every class: ADE20K's own for its classes, else one made for each, the same in every picture."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

from mmref.data.labels import ade20k_colours, ade20k_names

__all__ = ["class_colours"]

_TURN = 0.61803398875  # of the colour wheel from class to class: the golden ratio keeps neighbours in number far apart
_SHADES = ((0.85, 0.95), (0.65, 0.75), (1.0, 0.65), (0.45, 1.0))  # saturation and value, by turns


def class_colours(class_names: Sequence[str]) -> np.ndarray:
    """(classes, 3) uint8, red green blue. A class called "background" is black, so that what it covers steps back."""
    if tuple(class_names) == ade20k_names():
        return np.array(ade20k_colours(), np.uint8)
    colours = [(0.0, 0.0, 0.0) if name == "background" else colorsys.hsv_to_rgb(i * _TURN % 1, *_SHADES[i % 4])
               for i, name in enumerate(class_names)]
    return np.rint(255 * np.array(colours).reshape(-1, 3)).astype(np.uint8)
