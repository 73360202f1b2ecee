"""Objects drawn on a picture: boxes, masks, names; readable on light and on dark ones.

A line is drawn in its class's colour between two thinner ones, black outside and white inside; one of the three stands
out anywhere. Names stand on a ground of the class's colour, in black or white, whichever is farther from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmref.arguments import check_number
from mmref.data.picture import check_rgb
from mmref.detection.masks import pasted_part
from mmref.detection.result import Detections
from mmref.errors import ShapeError
from mmref.show.overlay import drawable

__all__ = ["draw_objects"]


def draw_objects(image: Image.Image, objects: Detections, names: Sequence[str], colours: np.ndarray,
                 opacity: float = 0.45) -> Image.Image:
    """The RGB picture with objects on it, the best on top.

    names    of each object
    colours  (classes, 3) uint8
    opacity  of masks, 0 to 1

    Raises ShapeError where the objects are another picture's, ValueProblem."""
    check_rgb(image)
    opacity = check_number("opacity", opacity, 0, 1)
    if objects.size != (image.height, image.width):
        raise ShapeError(f"image must be the objects' own, {objects.size[0]} x {objects.size[1]} (height x width), got "
                         f"{image.height} x {image.width}")
    pixels = np.array(image)
    order = range(len(objects) - 1, -1, -1)
    if objects.probabilities is not None:
        for i in order:
            _lay_over(pixels, objects.probabilities[i], objects.exact[i], colours[objects.labels[i]], opacity)
    shown = Image.fromarray(pixels)
    draw, width = ImageDraw.Draw(shown), max(1, min(image.size) // 250)
    font = ImageFont.load_default(max(11, min(image.size) // 32))
    shades = [tuple(map(int, colours[label])) for label in objects.labels]
    for i in order:
        _outline(draw, objects.boxes[i].tolist(), shades[i], width)
    for i in order:                              # no line through a name
        _name(draw, image.size, objects.boxes[i].tolist(), f"{names[i]} {objects.scores[i]:.0%}", shades[i], font)
    return shown


def _lay_over(pixels, probabilities, box, colour, opacity):
    """The mask's colour on its pixels, in place; its edge in full colour."""
    top, left, values = pasted_part(probabilities, box, pixels.shape[:2])
    mask = values >= 0.5
    around = np.pad(mask, 1)
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    part = pixels[top:top + mask.shape[0], left:left + mask.shape[1]]
    part[mask] = np.rint((1 - opacity) * part[mask] + opacity * np.asarray(colour)).astype(np.uint8)
    part[mask & ~inner] = colour


def _outline(draw, box, colour, width):
    for shift, thick, line in ((-1, 1, "black"), (0, 2 * width, colour), (2 * width, 1, "white")):
        x1, y1, x2, y2 = (round(value) for value in box)
        corners = x1 + shift, y1 + shift, x2 - 1 - shift, y2 - 1 - shift
        if corners[2] >= corners[0] and corners[3] >= corners[1]:
            draw.rectangle(corners, outline=line, width=thick)


def _name(draw, size, box, text, colour, font):
    """Above the box, or in it where the picture ends; pushed in from the sides."""
    text = drawable(font, text)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 4
    x = max(0, min(round(box[0]), size[0] - width))
    y = round(box[1]) - height
    y = y if y >= 0 else max(0, min(round(box[1]), size[1] - height))
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.rectangle((x, y, x + width, y + height), fill=colour, outline="black")
    draw.text((x + 3 - left, y + 2 - top), text, fill="black" if brightness > 128 else "white", font=font)
