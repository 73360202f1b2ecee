"""A picture for a network that answers pixel by pixel: scaled with its ratio kept, nothing cropped, normalised.

    x = to_map(open_picture("photo.jpg", exif=True)[0], KeepRatio())      # (3, 512, 683) float32

That is the published evaluation on ADE20K (mmsegmentation's `Resize(scale=(2048, 512), keep_ratio=True)`); its resize
is OpenCV's, met to the last bit (resize.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmref.arguments import check_integer, check_kind
from mmref.data.picture import check_rgb
from mmref.data.preparation import IMAGENET_MEAN, IMAGENET_STD, Preparation
from mmref.data.resize import resize, resized_size

__all__ = ["KeepRatio", "normalised", "to_map"]


@dataclass(frozen=True)
class KeepRatio(Preparation):
    """What is done to a picture before a network for segmentation sees it; belongs to the weights.

    Parameters
    ----------
    short, long
        the picture is scaled, up or down, until its shorter side is `short` or its longer is `long`, whichever comes
        first
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
    >>> mmref.KeepRatio().with_size(256)
    KeepRatio(short=256, long=1024, ...)
    """

    short: int = 512
    long: int = 2048
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self):
        self.check_mean_and_std()
        object.__setattr__(self, "short", check_integer("transform: short", self.short, 1, 8192))
        object.__setattr__(self, "long", check_integer("transform: long", self.long, self.short, 8192))

    def with_size(self, short: int) -> KeepRatio:
        """The same for another shorter side; the longest side grows and shrinks with it."""
        return KeepRatio(short, min(8192, max(short, short * self.long // self.short)), self.mean, self.std)


def to_map(image: Image.Image, transform: KeepRatio) -> np.ndarray:
    """(3, height, width) float32: the RGB image scaled and normalised; (1, height, width) for a grey transform.

    Raises ShapeError where the image is not 8-bit RGB (`open_picture` makes it so), PictureError where it is so slender
    that a side would round to nothing."""
    check_rgb(image)
    check_kind("transform", transform, KeepRatio, "a KeepRatio, such as model.transform")
    size = resized_size(image.height, image.width, transform.long, transform.short)
    return normalised(resize(pixels(image, transform), size), transform)


def pixels(image: Image.Image, transform: KeepRatio) -> np.ndarray:
    """(height, width, channels) uint8 of an RGB image, in grey where the transform is."""
    array = np.asarray(image if transform.channels == 3 else image.convert("L"))
    return array.reshape(image.height, image.width, transform.channels)


def normalised(array: np.ndarray, transform: KeepRatio) -> np.ndarray:
    """(height, width, channels) uint8 -> (channels, height, width) float32, minus mean, over std."""
    x = array.astype(np.float32)
    x -= np.multiply(transform.mean, 255).astype(np.float32)   # 123.675 and so on, as the published pipeline has them
    x /= np.multiply(transform.std, 255).astype(np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1))
