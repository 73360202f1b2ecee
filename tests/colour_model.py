"""A stand-in for a network whose right answers are known: it names the colour of a picture."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from PIL import Image

from mmref.data.frame import Frame
from mmref.data.keep_ratio import KeepRatio
from mmref.data.picture import Transform
from mmref.detection.candidates import scale_factor
from mmref.detection.result import detections

COLOURS = {"black": (0, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0),
           "white": (255, 255, 255), "yellow": (255, 255, 0)}


class ColourModel:
    """logits = minus the distance of the mean colour from each of six; counts its runs."""

    def __init__(self):
        self.config = SimpleNamespace(name="colours", img_size=8, num_classes=len(COLOURS))
        self.transform = Transform(size=8, crop_ratio=1.0, mean=(0, 0, 0), std=(1, 1, 1))
        self.class_names = tuple(COLOURS)
        self.runs = 0

    def __call__(self, x):
        assert x.dtype == np.float32 and x.ndim == 4 and x.shape[1] == 3
        self.runs += 1
        palette = np.array(list(COLOURS.values()), np.float32) / 255
        return -np.square(x.mean((2, 3))[:, None] - palette).sum(-1)


def paint(path, colour, size=(12, 9)):
    """A picture of one colour, as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS.get(colour, colour)).save(path)
    return path


class PixelColourModel:
    """logits of every pixel = minus the distance of its colour from each of six; keeps the sizes it was given."""

    def __init__(self, short=16, class_names=None):
        names = tuple(class_names or COLOURS)
        self.config = SimpleNamespace(name="pixels", img_size=short, num_classes=len(names), task="segment")
        self.transform = KeepRatio(short, 4 * short, mean=(0, 0, 0), std=(1, 1, 1))
        self.class_names, self.sizes = names, []

    def __call__(self, x):
        assert x.dtype == np.float32 and x.shape[:2] == (1, 3)
        self.sizes.append(x.shape[2:])
        palette = np.array(list(COLOURS.values()), np.float32) / 255
        return -np.square(x[:, None] - palette[:, :, None, None]).sum(2)


def patches(path, rows, side=8):
    """A picture of squares in the colours named, row by row, as a file; returns the classes of its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.array([[list(COLOURS).index(name) for name in row.split()] for row in rows], np.uint8)
    numbers = numbers.repeat(side, 0).repeat(side, 1)
    Image.fromarray(np.array(list(COLOURS.values()), np.uint8)[numbers]).save(path)
    return numbers


class RectangleModel:
    """Finds the rectangles of pure red, green and blue in a picture, one of each at most, with masks that fill them."""

    def __init__(self, masks=False, short=40, class_names=("red", "green", "blue")):
        self.config = SimpleNamespace(name="rectangles", img_size=short, num_classes=3, task="detect", masks=masks)
        self.transform = Frame(short, 4 * short, mean=(0, 0, 0), std=(1, 1, 1))
        self.class_names, self.dtype, self.shapes = class_names, np.dtype(np.float32), []

    def __call__(self, x):
        raise AssertionError("detect is what is called")

    def detect(self, x, image_sizes, original_sizes):
        assert x.dtype == np.float32
        self.shapes.append(x.shape)
        return [self._found(*each) for each in zip(x, image_sizes, original_sizes, strict=True)]

    def _found(self, x, size, original):
        boxes, labels = [], []
        for label, colour in enumerate(np.eye(3, dtype=np.float32)):
            rows, columns = np.nonzero((np.abs(x - colour[:, None, None]) < 0.4).all(0))
            if len(rows):
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                labels.append(label)
        boxes = np.array(boxes, np.float64).reshape(-1, 4) / scale_factor(size, original)
        scores = np.linspace(0.9, 0.5, len(boxes))
        ones = np.ones((len(boxes), 28, 28)) if self.config.masks else None
        return detections(boxes, scores, np.array(labels, np.int64), original, self.dtype, ones)


def rectangles(path, size, boxes):
    """A black picture (height, width) with {colour: (x1, y1, x2, y2)} filled, as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*size, 3), np.uint8)
    for name, (x1, y1, x2, y2) in boxes.items():
        pixels[y1:y2, x1:x2] = np.eye(3, dtype=np.uint8)[("red", "green", "blue").index(name)] * 255
    Image.fromarray(pixels).save(path)
    return path
