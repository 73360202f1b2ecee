"""What a network sees of a picture: as its input, and as a photograph for people, which covers just the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from mmref.data.frame import Frame, filled_up, to_frame
from mmref.data.keep_ratio import KeepRatio, pixels, to_map
from mmref.data.picture import Transform, to_array

SIDE = 384  # pixels of the photograph's shorter side


def network_input(picture, transform) -> np.ndarray:
    """(channels, H, W) float32 of an RGB image: what the transform, of any kind, makes of it."""
    if isinstance(transform, KeepRatio):
        return to_map(picture, transform)
    if isinstance(transform, Frame):
        return filled_up([to_frame(picture, transform)[0]], transform.multiple)[0]
    return to_array(picture, transform)


def photograph(picture, transform) -> np.ndarray:
    """(h, w, 3) in 0..1 of the same, in more pixels than the network sees it in, grey where that is."""
    if isinstance(transform, Transform):
        array = to_array(picture, replace(transform, size=SIDE)).transpose(1, 2, 0)
        array = array * np.float32(transform.std) + np.float32(transform.mean)
    else:  # nothing is cropped, and a detector's picture is filled up on the right and below
        height, width = filled = network_input(picture, transform).shape[1:]
        if isinstance(transform, Frame):
            height, width = transform.size(picture.height, picture.width)
        scale = min(SIDE / min(filled), 4 * SIDE / max(filled))
        rows, columns, height, width = (max(1, round(side * scale)) for side in (*filled, height, width))
        array = np.empty((rows, columns, transform.channels))
        array[:] = transform.mean
        array[:height, :width] = pixels(picture.resize((width, height), Image.Resampling.BICUBIC), transform) / 255
    return np.clip(np.broadcast_to(array, (*array.shape[:2], 3)), 0, 1)
