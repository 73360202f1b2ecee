"""Label maps as files: PNGs whose values are the classes.

A map is written with a palette, which only shows the classes: their numbers are the pixels' indices, so that classes
that share a colour stay apart. Such PNGs are read, and grey ones of 8 bits, as data sets hold them. Whatever would
change a value on the way is refused: colours, other depths, files that lose something in packing.
"""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from mmref.arguments import check_rank
from mmref.data.picture import decoded, read_contents
from mmref.errors import PictureError, ShapeError, ValueProblem
from mmref.files import replacing

__all__ = ["MOST_CLASSES", "read_label_map", "write_label_map"]

MOST_CLASSES = 256  # that a pixel of 8 bits can tell apart
_GREY, _PALETTE = 0, 3  # PNG's colour types
_KINDS = {2: "colours (RGB)", 4: "grey with alpha", 6: "colours with alpha (RGBA)"}


def write_label_map(path, labels: np.ndarray, colours: np.ndarray) -> None:
    """Write labels (H, W), each in 0..255, as an indexed PNG with the palette `colours` (classes, 3) uint8.

    The file appears whole or not at all. Raises ShapeError for other arrays, ValueProblem for more classes than an
    indexed PNG holds, OSError where the file cannot be written."""
    with replacing(path) as temporary:
        label_image(labels, colours).save(temporary, "PNG")


def label_image(labels: np.ndarray, colours: np.ndarray) -> Image.Image:
    """The same as a PIL image of mode P. Raises ShapeError and ValueProblem."""
    check_rank("labels", labels, "height width")
    if labels.dtype.kind != "u" or 0 in labels.shape:
        raise ShapeError(f"labels must be unsigned integers, one pixel at least, got {labels.dtype} of shape "
                         f"{labels.shape}")
    if len(colours) > MOST_CLASSES:
        raise ValueProblem(f"labels must be of at most {MOST_CLASSES} classes, all that an indexed PNG holds, got "
                           f"{len(colours)}: keep the array itself, np.save('labels.npy', labels)")
    if labels.max() >= len(colours):
        raise ValueProblem(f"labels must be below {len(colours)}, the number of colours, got {labels.max()}")
    image = Image.fromarray(np.ascontiguousarray(labels, np.uint8))
    palette = np.zeros((MOST_CLASSES, 3), np.uint8)  # a shorter one would be written with fewer bits per pixel
    palette[:len(colours)] = colours
    image.putpalette(palette.tobytes())  # which makes mode P of mode L
    return image


def read_label_map(path) -> np.ndarray:
    """(H, W) uint8, the values of a label PNG as they stand in the file.

    Raises PictureError, with the file's name, for what is not a PNG of indices or 8-bit grey values, or is broken."""
    name = os.fspath(path)
    contents = read_contents(path)
    if contents.format != "PNG":
        raise PictureError(f"{name}: labels must be a PNG, which keeps every value, got {contents.format}")
    bits, kind = contents.data[24], contents.data[25]  # of the header, which the container reader puts first
    if kind not in (_GREY, _PALETTE):
        raise PictureError(f"{name}: labels must be indices or 8-bit grey values, one number per pixel, got "
                           f"{_KINDS.get(kind, f'colour type {kind}')}")
    if kind == _GREY and bits != 8:  # a decoder would stretch 1, 2 and 4 bits over 0..255
        raise PictureError(f"{name}: labels must be indices or 8-bit grey values, got grey of {bits} bits")
    image = decoded(path, contents)
    if image.mode not in ("L", "P"):
        raise PictureError(f"{name}: labels must be indices or 8-bit grey values, got Pillow's mode {image.mode}")
    return np.array(image, np.uint8)
