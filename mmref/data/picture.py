"""From a picture file to the network's input: decode safely, shrink, crop, normalise.

    image, notes = open_picture("photo.jpg")      # RGB, and what had to be done to get there
    x = to_array(image, model.transform)          # (3, size, size) float32

The evaluation transform of the published weights is torchvision's `Resize(int(size / 0.875), bicubic)`,
`CenterCrop(size)`, `ToTensor`, `Normalize`, to the last bit. Decoding trusts no file: four formats, everything
loaded at once (Pillow opens a truncated JPEG without a word), a limit on pixels, and one error type that names the
file.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmref.arguments import check_flag, check_integer, check_kind, check_number, check_numbers, shown
from mmref.errors import PictureError, ShapeError, ValueProblem

__all__ = ["FORMATS", "IMAGENET_MEAN", "IMAGENET_STD", "NANO_TRANSFORM", "Transform", "load_batch",
           "open_picture", "picture_name", "to_array"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 89_478_485          # Pillow's own limit, of which Pillow only warns up to twice as many
MAX_FILE = 1 << 29               # bytes; more than any picture of MAX_PIXELS has use for
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SLENDER = 64                    # long side / short side from which only the needed box is resized
_ORIENTATION = 0x0112            # EXIF tag
_warning_filters = threading.Lock()


@dataclass(frozen=True)
class Transform:
    """What is done to a picture before the network sees it; belongs to the weights, which have seen nothing else.

    size        side of the network's square input, pixels
    crop_ratio  the short side is first resized to int(size / crop_ratio); not used with `shrink_to`
    mean, std   per channel (red, green, blue), of pixels in 0..1
    shrink_to   for weights trained on tiny pictures: short side to `shrink_to`, centre crop of that size, and
                the square enlarged to `size`. A picture of exactly that size is enlarged only.

    Raises ValueProblem for values that no picture could be transformed by.
    """

    size: int
    crop_ratio: float = 0.875
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    shrink_to: int | None = None

    def __post_init__(self):
        for name in ("mean", "std"):
            object.__setattr__(self, name, check_numbers(f"transform: {name}", getattr(self, name), 3))
        if min(self.std) <= 0:
            raise ValueProblem(f"transform: std must be positive, got {self.std}")
        for name in ("size", "shrink_to"):
            value = getattr(self, name)
            if name == "shrink_to" and value is None:
                continue
            object.__setattr__(self, name, check_integer(f"transform: {name}", value, 1, 4096))
        object.__setattr__(self, "crop_ratio", check_number("transform: crop_ratio", self.crop_ratio, 0.1, 1))

    @property
    def crop_size(self) -> int:
        """Side of the square cut from the resized picture."""
        return self.shrink_to or self.size

    @property
    def resize_to(self) -> int:
        """Length of the short side before the crop."""
        return self.shrink_to or int(self.size / self.crop_ratio)

    def to_dict(self) -> dict:
        """Plain values, as kept in a weights file's metadata; `from_dict` reads them back."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> Transform:
        """The inverse of `to_dict`. Raises ValueProblem for anything else, an unknown key included: a step of
        the transform that is not understood must not be left out."""
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or "size" not in values or not set(values) <= known:
            raise ValueProblem(f"transform must be a dict with size and perhaps "
                               f"{', '.join(sorted(known - {'size'}))}, got {str(values)[:200]}")
        return cls(**values)


NANO_TRANSFORM = Transform(size=128, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
                           shrink_to=32)
"""Of weights trained on CIFAR-10: 32x32 pictures enlarged are all they have seen."""


def open_picture(picture, exif: bool = False) -> tuple[Image.Image, list[str]]:
    """Decode one picture completely.

    picture  path, bytes of a file, binary file object, or a PIL image
    exif     turn the picture as its EXIF orientation asks; off, as in the published evaluation

    Returns (8-bit RGB image, notes): a note is a few words on what was dropped or changed, for the user.
    Raises PictureError, with the file's name, for whatever is no readable JPEG, PNG, WEBP or BMP picture.
    """
    exif, name = check_flag("exif", exif), picture_name(picture)
    try:
        if isinstance(picture, Image.Image):
            picture.load()
            return _to_rgb(picture, exif)
        data = _read(picture)
        if not data:
            raise PictureError("empty file")
        with _open_header(data) as image:
            image.load()
            return _to_rgb(image, exif)
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
            data = file.read(MAX_FILE + 1)
    elif hasattr(picture, "read"):
        data = picture.read(MAX_FILE + 1)
        if not isinstance(data, bytes):
            raise PictureError(f"file must be opened in binary mode, reading gave {type(data).__name__}")
    else:
        raise PictureError("picture must be a path, bytes, a binary file or a PIL image")
    if len(data) > MAX_FILE:
        raise PictureError(f"more than {MAX_FILE} bytes")
    return data


def _open_header(data: bytes) -> Image.Image:
    """Pillow's image, not yet decoded. The lock: warning filters belong to the whole process."""
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.UnidentifiedImageError as error:
            raise PictureError(f"expected JPEG, PNG, WEBP or BMP, got {_looks_like(data)}") from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise PictureError(f"too many pixels: {_one_line(error)}") from error
    if image.width * image.height > MAX_PIXELS:  # where somebody has switched Pillow's own limit off
        raise PictureError(f"too many pixels: {image.width} x {image.height} is more than {MAX_PIXELS}")
    if image.width < 1 or image.height < 1:
        raise PictureError(f"no pixels: {image.width} x {image.height}")
    return image


def _looks_like(data: bytes) -> str:
    start = data[:64].lstrip()
    for kind, magics in {"TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "GIF": (b"GIF8",),
                         "PDF": (b"%PDF",), "PostScript": (b"%!PS",), "a git-LFS pointer": (b"version https://git-lfs",),
                         "HTML or XML": (b"<",), "a zip file": (b"PK\3\4",), "an icon": (b"\0\0\1\0",),
                         "JPEG 2000": (b"\0\0\0\x0cjP",), "a NumPy array": (b"\x93NUMPY",),
                         "a broken JPEG": (b"\xff\xd8",), "a broken PNG": (b"\x89PNG",),
                         "a broken WEBP": (b"RIFF",), "a broken BMP": (b"BM",)}.items():
        if data.startswith(magics) or start.startswith(magics):
            return kind
    if data[4:8] == b"ftyp":
        return "HEIC, AVIF or a video"
    return "something else"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _to_rgb(image: Image.Image, exif: bool) -> tuple[Image.Image, list[str]]:
    notes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"animated: first of {frames} frames taken")
    image, note = _orient(image, exif)
    notes += note
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        notes.append("alpha dropped")
    if image.mode == "F":
        raise PictureError("floating-point pixels have no agreed range")
    if image.mode.startswith("I"):  # convert("RGB") clips: nearly all of a 16-bit picture would turn white
        image = _scale_16_bit(image)
        notes.append("16-bit grey scaled to 8 bits")
    if image.mode != "RGB":
        image = image.copy()
        image.info.pop("transparency", None)  # convert would warn about palettes that carry one
        image = image.convert("RGB")
    return image, notes


def _orient(image, exif):
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF says nothing about the pixels
        return image, ["EXIF unreadable"] if exif else []
    if orientation == 1 or orientation not in range(1, 9):
        return image, []
    if not exif:
        return image, [f"EXIF orientation {orientation} not applied"]
    return ImageOps.exif_transpose(image), [f"EXIF orientation {orientation} applied"]


def _scale_16_bit(image):
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise PictureError(f"grey values must be in 0..65535, got {values.min()}..{values.max()}")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def to_array(image: Image.Image, transform: Transform) -> np.ndarray:
    """(3, size, size) float32: the RGB image resized, cropped and normalised.

    Raises ShapeError where the image is no 8-bit RGB (`open_picture` gives such) or has no pixels."""
    if not isinstance(image, Image.Image):
        raise ShapeError(f"image must be a PIL image (open_picture gives one), got {shown(image)}")
    check_kind("transform", transform, Transform, "a Transform, such as model.transform")
    if image.mode != "RGB" or min(image.size) < 1:
        raise ShapeError(f"image must be 8-bit RGB with at least one pixel (open_picture gives such), "
                         f"got mode {image.mode}, {image.width} x {image.height}")
    image = _resize_and_crop(image, transform.resize_to, transform.crop_size)
    if image.size != (transform.size, transform.size):
        image = image.resize((transform.size, transform.size), Image.Resampling.BICUBIC)
    x = np.asarray(image, np.float32)                                                    # (size, size, 3)
    x = x / np.float32(255)
    x -= np.asarray(transform.mean, np.float32)
    x /= np.asarray(transform.std, np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def _resize_and_crop(image, short, crop):
    """Short side to `short`, then the central square of side `crop`; rounding as torchvision has it.

    A slender picture would grow without bound (1 x 5000 to 219 x 1,095,000): from a ratio of 64 on only the
    square is computed, from its own box in the picture. Pillow keeps such a box in single precision and may take
    its two passes in another order, so grey levels may differ a little from resize-then-crop, which holds to
    the bit below that ratio."""
    width, height = image.size
    long = int(short * max(width, height) / min(width, height))
    resized = (short, long) if width <= height else (long, short)
    left, top = (int(round((side - crop) / 2.0)) for side in resized)
    if long <= _SLENDER * short:
        if resized != image.size:
            image = image.resize(resized, Image.Resampling.BICUBIC)
        return image.crop((left, top, left + crop, top + crop))
    ranges = [_source_range(size, new, start, crop)
              for size, new, start in zip(image.size, resized, (left, top), strict=True)]
    (x0, x1, x_first, x_last), (y0, y1, y_first, y_last) = ranges
    near = image.crop((x_first, y_first, x_last, y_last))
    box = (x0 - x_first, y0 - y_first, x1 - x_first, y1 - y_first)
    return near.resize((crop, crop), Image.Resampling.BICUBIC, box=box)


def _source_range(size, new, start, crop):
    """Along one axis: what of 0..size the square covers, and the whole pixels within the filter's reach."""
    scale = size / new
    first, last = start * scale, min((start + crop) * scale, size)
    reach = 2 * max(scale, 1) + 2
    return first, last, max(0, int(first - reach)), min(size, int(last + reach) + 1)


def check_pictures(pictures):
    """`pictures` itself, which must be several: one path would otherwise be taken for a picture a letter, and an open
    file for a picture a line. Raises ValueProblem."""
    if isinstance(pictures, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)) or hasattr(pictures, "read"):
        raise ValueProblem(f"pictures must be a list of pictures, got one {type(pictures).__name__}: write [picture]")
    if not isinstance(pictures, Iterable) or (isinstance(pictures, np.ndarray) and pictures.dtype.kind not in "OU"):
        raise ValueProblem(f"pictures must be a list of paths, bytes, binary files or PIL images, got {shown(pictures)}"
                           f" (PIL.Image.fromarray makes a picture of an array)")
    return pictures


def load_batch(pictures, transform: Transform, exif: bool = False) -> np.ndarray:
    """(N, 3, size, size) float32 from N pictures, N >= 0. Raises PictureError at the first that cannot be
    read (`mmref.Predictor` reports bad ones and goes on), ValueProblem for one picture in place of several."""
    pictures = list(check_pictures(pictures))
    check_kind("transform", transform, Transform, "a Transform, such as model.transform")
    batch = np.empty((len(pictures), 3, transform.size, transform.size), np.float32)
    for x, picture in zip(batch, pictures, strict=True):
        x[:] = to_array(open_picture(picture, exif)[0], transform)
    return batch
