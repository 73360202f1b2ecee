"""Answers laid over pictures: colours on the pixels of each class, and a legend below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmref.arguments import check_number
from mmref.data.label_map import label_image
from mmref.data.picture import check_rgb
from mmref.errors import ShapeError

__all__ = ["overlay", "with_legend"]

_NARROWEST = 240  # pixels of a picture with a legend: words need room


def overlay(image: Image.Image, labels: np.ndarray, colours: np.ndarray, opacity: float = 0.5) -> Image.Image:
    """The RGB picture with the colour of each pixel's class over it.

    labels   (H, W) unsigned, of the picture's size
    colours  (classes, 3) uint8
    opacity  0 shows the picture alone, 1 the colours alone

    Raises ShapeError and ValueProblem."""
    opacity = check_number("opacity", opacity, 0, 1)
    check_rgb(image)
    shown = label_image(labels, colours)
    if shown.size != image.size:
        raise ShapeError(f"labels must be of the picture's size, {image.height} x {image.width} (height x width), "
                         f"got {shown.height} x {shown.width}")
    return Image.blend(image, shown.convert("RGB"), opacity)


def with_legend(image: Image.Image, entries: Sequence[tuple]) -> Image.Image:
    """The picture with a legend below, in as many columns as fit.

    entries  (colour (3,), text) of each line"""
    width = max(image.width, _NARROWEST)
    size = min(max(width // 45, 12), 64)
    font = ImageFont.load_default(size)
    texts = [drawable(font, text) for _, text in entries]
    cell = max((int(font.getlength(text)) for text in texts), default=0) + 3 * size
    columns = max(1, min(width // cell, len(entries)))
    rows, step = -(-len(entries) // columns), size * 3 // 2
    result = Image.new("RGB", (width, image.height + rows * step + size // 2), "white")
    result.paste(image, (0, 0))
    draw = ImageDraw.Draw(result)
    for i, ((colour, _), text) in enumerate(zip(entries, texts, strict=True)):
        x = size // 2 + i // rows * (width // columns)
        y = image.height + size // 2 + i % rows * step
        draw.rectangle((x, y, x + size, y + size), fill=tuple(int(c) for c in colour), outline="black")
        draw.text((x + size * 3 // 2, y), text, fill="black", font=font)
    return result


def drawable(font, text):
    """`text`, or what of it Pillow's own small font can draw, where it is built without FreeType."""
    return text if isinstance(font, ImageFont.FreeTypeFont) else text.encode("latin-1", "replace").decode("latin-1")
