"""A picture for a detector: scaled, normalised; batches filled up with zeros on the right and below.

    x, size = to_frame(open_picture("photo.jpg", exif=True)[0], Frame())   # (3, 800, 1067) float32, (800, 1067)

That is the published evaluation on COCO (mmdetection's `Resize` and `Pad`); the resize is OpenCV's, met to the last bit
(resize.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from mmref.arguments import check_flag, check_integer, check_kind
from mmref.data.keep_ratio import normalised, pixels
from mmref.data.picture import check_rgb
from mmref.data.preparation import IMAGENET_MEAN, IMAGENET_STD, Preparation
from mmref.data.resize import resize, resized_size

__all__ = ["Frame", "filled_up", "to_frame"]


@dataclass(frozen=True)
class Frame(Preparation):
    """What is done to a picture before a detector sees it; belongs to the weights.

    Parameters
    ----------
    short, long
        with `keep_ratio` the picture is scaled, up or down, until its shorter side is `short` or its longer is `long`,
        whichever comes first; without, it becomes `short` pixels high and `long` wide
    multiple
        height and width are filled up with zeros to multiples of it
    mean, std
        per channel (red, green, blue), of pixels in 0..1; one number each for a network of one input channel, which
        sees the picture in grey

    Raises
    ------
    ValueProblem
        for values that no picture could be transformed by

    Examples
    --------
    >>> import mmref
    >>> mmref.Frame()                                                    # Mask R-CNN's and RetinaNet's
    Frame(short=800, long=1333, keep_ratio=True, multiple=32, ...)
    """

    short: int = 800
    long: int = 1333
    keep_ratio: bool = True
    multiple: int = 32
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self):
        self.check_mean_and_std()
        check_flag("transform: keep_ratio", self.keep_ratio)
        object.__setattr__(self, "short", check_integer("transform: short", self.short, 1, 8192))
        least = self.short if self.keep_ratio else 1
        object.__setattr__(self, "long", check_integer("transform: long", self.long, least, 8192))
        object.__setattr__(self, "multiple", check_integer("transform: multiple", self.multiple, 1, 1024))

    def with_size(self, short: int) -> Frame:
        """The same for another shorter side; the longer grows and shrinks with it."""
        return replace(self, short=short, long=min(8192, max(short, round(short * self.long / self.short))))

    def with_mean_and_std(self, mean, std) -> Frame:
        return replace(self, mean=mean, std=std)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a picture is scaled to. Raises PictureError where a side would round to nothing."""
        return resized_size(height, width, self.long, self.short) if self.keep_ratio else (self.short, self.long)


def to_frame(image: Image.Image, transform: Frame) -> tuple[np.ndarray, tuple[int, int]]:
    """((3, height, width) float32, (height, width)): the RGB image scaled and normalised; one channel for a grey
    transform.

    Raises ShapeError where the image is not 8-bit RGB (`open_picture` makes it so), PictureError where it is so slender
    that a side would round to nothing."""
    check_rgb(image)
    check_kind("transform", transform, Frame, "a Frame, such as model.transform")
    size = transform.size(image.height, image.width)
    return normalised(resize(pixels(image, transform), size), transform), size


def filled_up(arrays, multiple: int) -> np.ndarray:
    """(B, channels, height, width) of arrays (channels, h, w): zeros right of and below each, up to a common size whose
    sides are multiples of `multiple`."""
    height, width = (-(-max(array.shape[axis] for array in arrays) // multiple) * multiple for axis in (1, 2))
    batch = np.zeros((len(arrays), len(arrays[0]), height, width), arrays[0].dtype)
    for target, array in zip(batch, arrays, strict=True):
        target[:, :array.shape[1], :array.shape[2]] = array
    return batch
