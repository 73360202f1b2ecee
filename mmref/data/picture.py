"""From a picture file to the network's input: decode safely, shrink, crop, normalise.

    image, notes = open_picture("photo.jpg")      # RGB, and what had to be done to get there
    x = to_array(image, model.transform)          # (3, size, size) float32

The evaluation transform of the published weights is torchvision's `Resize(int(size / 0.875), bicubic)`,
`CenterCrop(size)`, `ToTensor`, `Normalize`, to the last bit. Decoding trusts no file: four formats, their containers
looked through first (container.py: limits on pixels and on work), everything loaded at once (Pillow opens a truncated
JPEG without a word), and one error type that names the file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, WebPImagePlugin  # noqa: F401

from mmref.arguments import check_choice, check_flag, check_integer, check_kind, check_number, shown
from mmref.data.container import Contents, check_size, inspect
from mmref.data.preparation import IMAGENET_MEAN, IMAGENET_STD, Preparation
from mmref.errors import PictureError, ShapeError, ValueProblem

__all__ = ["NANO_TRANSFORM", "Transform", "load_batch",
           "open_picture", "picture_name", "to_array"]

MAX_FILE = 300_000_000           # bytes; the most pixels allowed take 268,435,455 as they are
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest")
_SLENDER = 64                    # long side / short side from which only the needed box is resized
_MOST_RESIZED = 1 << 25          # pixels from which on, too
_PIECE = 1 << 20                 # bytes read at once
_EIGHT_BITS = ((np.arange(1 << 16) * 255 + 32767) // 65535).astype(np.uint8)   # 16-bit grey, scaled and rounded
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}  # EXIF orientation: what undoes it

Image.preinit()  # all imports now, not with the first picture: one that a fork cuts in two hangs the child


@dataclass(frozen=True)
class Transform(Preparation):
    """What is done to a picture before the network sees it; belongs to the weights, which have seen nothing else.

    Parameters
    ----------
    size
        side of the network's square input, pixels
    crop_ratio
        the short side is first resized to int(size / crop_ratio); not used with `shrink_to`
    mean, std
        per channel (red, green, blue), of pixels in 0..1; one number each for a network of one input channel, which
        sees the picture in grey (ITU-R 601 luma, as Pillow's mode L)
    shrink_to
        for weights trained on tiny pictures: short side to `shrink_to`, centre crop of that size, and the square
        enlarged to `size`. A picture of exactly that size is enlarged only.
    interpolation
        of every resizing: bicubic, bilinear, lanczos or nearest, as Pillow has them

    Raises
    ------
    ValueProblem
        for values that no picture could be transformed by

    Examples
    --------
    >>> import mmref
    >>> mmref.Transform(192)
    Transform(size=192, crop_ratio=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), ...)
    """

    size: int
    crop_ratio: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    shrink_to: int | None = None
    interpolation: str = "bicubic"

    needed = ("size",)
    later = (("interpolation", "bicubic"),)

    def __post_init__(self):
        self.check_mean_and_std()
        for name in ("size", "shrink_to"):
            value = getattr(self, name)
            if name == "shrink_to" and value is None:
                continue
            object.__setattr__(self, name, check_integer(f"transform: {name}", value, 1, 4096))
        object.__setattr__(self, "crop_ratio", check_number("transform: crop_ratio", self.crop_ratio, 0.1, 1))
        check_choice("transform: interpolation", self.interpolation, INTERPOLATIONS)

    @property
    def crop_size(self) -> int:
        """Side of the square cut from the resized picture."""
        return self.shrink_to or self.size

    @property
    def resize_to(self) -> int:
        """Length of the short side before the crop."""
        return self.shrink_to or int(self.size / self.crop_ratio)

    def with_size(self, size: int) -> Transform:
        """The same for another side of the network's input."""
        return replace(self, size=size)


NANO_TRANSFORM = Transform(size=128, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
                           shrink_to=32)
"""Of weights trained on CIFAR-10: 32x32 pictures enlarged are all they have seen."""


def open_picture(picture, exif: bool = False) -> tuple[Image.Image, list[str]]:
    """Decode one picture completely.

    picture  path, bytes of a file, binary file object, or a PIL image
    exif     turn the picture as its EXIF orientation asks; off, as in the published evaluation

    Returns (8-bit RGB image, notes): a note is a few words on what was dropped or changed, for the user.
    Raises PictureError, with the file's name, for anything that is not a readable JPEG, PNG, WEBP or BMP picture, and
    for files that ask for more pixels, seconds or bytes than `mmref.data.container` allows.
    """
    exif = check_flag("exif", exif)
    with _named(picture):
        if isinstance(picture, Image.Image):
            picture.load()
            if not picture.width or not picture.height:
                raise PictureError(f"no pixels: {picture.width} x {picture.height}")
            return _to_rgb(picture, _pil_orientation(picture), getattr(picture, "n_frames", 1), exif)
        contents = inspect(_read(picture))
        return _to_rgb(_decode(contents), contents.orientation, contents.frames, exif)


def read_contents(picture) -> Contents:
    """What a file (path, bytes or binary file object) holds, not yet decoded. Raises PictureError, with its name."""
    with _named(picture):
        return inspect(_read(picture))


def decoded(picture, contents: Contents) -> Image.Image:
    """The image of `read_contents(picture)`, in the mode it is stored in. Raises PictureError, with the file's name."""
    with _named(picture):
        return _decode(contents)


@contextmanager
def _named(picture):
    """Whatever goes wrong in the block becomes a PictureError that names the picture."""
    name = picture_name(picture)
    try:
        yield
    except PictureError as error:
        raise PictureError(f"{name}: {error}") from error
    except MemoryError as error:
        raise PictureError(f"{name}: not enough memory to decode it") from error
    except OSError as error:
        raise PictureError(f"{name}: {error.strerror or _one_line(error)}") from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them trip over
        raise PictureError(f"{name}: broken picture ({type(error).__name__}: {_one_line(error)})") from error


def picture_name(picture) -> str:
    """What messages call a picture: its path, or what it is."""
    if isinstance(picture, (str, os.PathLike)):
        return os.fspath(picture)
    known = getattr(picture, "filename", None) or getattr(picture, "name", None)
    return str(known or f"<{type(picture).__name__}>")


def _read(picture) -> bytes:
    if isinstance(picture, (bytes, bytearray, memoryview)):
        data = bytes(picture[:MAX_FILE + 1])
    elif isinstance(picture, (str, os.PathLike)):
        path = Path(picture)
        if path.exists() and not path.is_file():  # a named pipe would block, a device never end
            raise PictureError("not a regular file" if not path.is_dir() else "a folder, not a picture")
        with open(path, "rb") as file:
            data = _read_all(file)
    elif hasattr(picture, "read"):
        data = _read_all(picture)
    else:
        advice = " (PIL.Image.fromarray makes one)" if isinstance(picture, np.ndarray) else ""
        raise PictureError(f"picture must be a path, bytes, a binary file or a PIL image{advice}, got {shown(picture)}")
    if len(data) > MAX_FILE:
        raise PictureError(f"more than {MAX_FILE:,} bytes")
    if not data:
        raise PictureError("empty file")
    return data


def _read_all(file) -> bytes:
    """What is left in a file, a byte beyond MAX_FILE at most. In pieces: asking for all at once would take memory for
    MAX_FILE bytes, however small the file is."""
    pieces, size = [], 0
    while size <= MAX_FILE:
        piece = file.read(min(_PIECE, MAX_FILE + 1 - size))
        if not isinstance(piece, bytes):
            raise PictureError(f"file must be opened in binary mode, reading gave {type(piece).__name__}")
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def _decode(contents) -> Image.Image:
    """Pillow's image, completely decoded."""
    try:
        image = Image.open(io.BytesIO(contents.data), formats=(contents.format,))
    except Image.UnidentifiedImageError as error:
        raise PictureError(f"a broken {contents.format}") from error
    check_size(image.width, image.height)
    if image.width * image.height > contents.width * contents.height:  # the limits were meant for another picture
        raise PictureError(f"a broken {contents.format}: two sizes, {contents.width} x {contents.height} and "
                           f"{image.width} x {image.height}")
    image.load()
    return image


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _to_rgb(image, orientation, frames, exif) -> tuple[Image.Image, list[str]]:
    notes = []
    if frames > 1:
        notes.append(f"animated: first of {frames} frames taken")
    if orientation == 0 and exif:
        notes.append("EXIF unreadable")
    elif orientation in _TURNS:
        notes.append(f"EXIF orientation {orientation} {'applied' if exif else 'not applied'}")
        image = image.transpose(_TURNS[orientation]) if exif else image
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        notes.append("alpha dropped")
    if image.mode == "F":
        raise PictureError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):  # convert("RGB") clips: nearly all of a 16-bit picture would turn white
        image = _scale_16_bit(image)
        notes.append("16-bit grey scaled to 8 bits")
    if image.mode != "RGB":
        if "transparency" in image.info:
            image = image.copy()
            image.info.pop("transparency")  # convert would warn about palettes that carry one
        image = image.convert("RGB")
    return image, notes


def _pil_orientation(image):
    """EXIF orientation of somebody's PIL image, as `Contents.orientation`."""
    try:
        return image.getexif().get(0x0112)
    except Exception:  # broken EXIF says nothing about the pixels
        return 0


def _scale_16_bit(image):
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise PictureError(f"grey values must be in 0..65535, got {low}..{high}")
    return Image.fromarray(_EIGHT_BITS[values])


def check_rgb(image) -> None:
    """Raise ShapeError unless `image` is a PIL image of 8-bit RGB with at least one pixel."""
    if not isinstance(image, Image.Image):
        raise ShapeError(f"image must be a PIL image (open_picture gives one), got {shown(image)}")
    if image.mode != "RGB" or min(image.size) < 1:
        raise ShapeError(f"image must be 8-bit RGB with at least one pixel (open_picture makes it so), "
                         f"got mode {image.mode}, {image.width} x {image.height}")


def to_array(image: Image.Image, transform: Transform) -> np.ndarray:
    """(3, size, size) float32: the RGB image resized, cropped and normalised; (1, size, size) for a grey transform.

    Raises ShapeError where the image is not 8-bit RGB (`open_picture` makes it so) or has no pixels."""
    check_rgb(image)
    check_kind("transform", transform, Transform, "a Transform, such as model.transform")
    if transform.channels == 1:
        image = image.convert("L")
    resampling = Image.Resampling[transform.interpolation.upper()]
    image = _resize_and_crop(image, transform.resize_to, transform.crop_size, resampling)
    if image.size != (transform.size, transform.size):
        image = image.resize((transform.size, transform.size), resampling)
    x = np.asarray(image, np.float32).reshape(transform.size, transform.size, transform.channels)
    x = x / np.float32(255)
    x -= np.asarray(transform.mean, np.float32)
    x /= np.asarray(transform.std, np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def _resize_and_crop(image, short, crop, resampling=Image.Resampling.BICUBIC):
    """Short side to `short`, then the central square of side `crop`; rounding as torchvision has it.

    A slender picture would grow without bound (1 x 5000 to 219 x 1,095,000): from a ratio of 64 on, or where it would
    have more than 2**25 pixels, only the square is computed, from its own box in the picture. Pillow keeps such a box
    in single precision and may take its two passes in another order, so grey levels may differ a little from
    resize-then-crop, which holds to the bit below that."""
    width, height = image.size
    long = int(short * max(width, height) / min(width, height))
    resized = (short, long) if width <= height else (long, short)
    left, top = (int(round((side - crop) / 2.0)) for side in resized)
    if long <= _SLENDER * short and long * short <= _MOST_RESIZED:
        if resized != image.size:
            image = image.resize(resized, resampling)
        return image.crop((left, top, left + crop, top + crop))
    ranges = [_source_range(size, new, start, crop)
              for size, new, start in zip(image.size, resized, (left, top), strict=True)]
    (x0, x1, x_first, x_last), (y0, y1, y_first, y_last) = ranges
    near = image.crop((x_first, y_first, x_last, y_last))
    box = (x0 - x_first, y0 - y_first, x1 - x_first, y1 - y_first)
    return near.resize((crop, crop), resampling, box=box)


def _source_range(size, new, start, crop):
    """Along one axis: what of 0..size the square covers, and the whole pixels within the filter's reach."""
    scale = size / new
    first, last = start * scale, min((start + crop) * scale, size)
    reach = 3 * max(scale, 1) + 2  # Lanczos' three pixels are the widest
    return first, last, max(0, int(first - reach)), min(size, int(last + reach) + 1)


def check_pictures(pictures):
    """`pictures` itself, which must be several: one path would otherwise be taken for one picture per letter, and an
    open file for one per line. Raises ValueProblem."""
    if isinstance(pictures, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)) or hasattr(pictures, "read"):
        raise ValueProblem(f"pictures must be a list of pictures, got one {type(pictures).__name__}: write [picture]")
    if not isinstance(pictures, Iterable) or (
            isinstance(pictures, np.ndarray) and (pictures.dtype.kind not in "OU" or pictures.ndim != 1)):
        raise ValueProblem(f"pictures must be a list of paths, bytes, binary files or PIL images, got {shown(pictures)}"
                           f" (PIL.Image.fromarray makes a picture of an array)")
    return pictures


def load_batch(pictures, transform: Transform, exif: bool = False) -> np.ndarray:
    """(N, channels, size, size) float32 from N pictures, N >= 0. Raises PictureError at the first that cannot be
    read (`mmref.Predictor` reports bad ones and goes on), ValueProblem for one picture in place of several."""
    pictures = list(check_pictures(pictures))
    check_kind("transform", transform, Transform, "a Transform, such as model.transform")
    batch = np.empty((len(pictures), transform.channels, transform.size, transform.size), np.float32)
    for x, picture in zip(batch, pictures, strict=True):
        x[:] = to_array(open_picture(picture, exif)[0], transform)
    return batch
