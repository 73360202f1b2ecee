"""A file in COCO's format of annotations, looked through before pycocotools computes with it.

pycocotools believes what it reads: a box of three numbers ends in a traceback, an annotation of a picture or a category
that is not in the file counts for nothing without a word, one whose id is 0 never counts as found, and run lengths
beyond their picture are followed in C. So everything that it will look at is checked here, and annotations get ids of
their own.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from dataclasses import dataclass

from mmref.arguments import shown
from mmref.errors import CheckpointError
from mmref.evaluate.folder import FolderError
from mmref.weights.json_file import parse_json

__all__ = ["CocoFile", "read_coco"]

MAX_FILE = 1 << 29  # bytes; COCO's largest, of its training pictures, has 470 million


@dataclass(frozen=True, eq=False)
class CocoFile:
    """What pycocotools looks at in a file of annotations, checked.

    images       {id: (file name, (height, width))}
    categories   {name: id}
    annotations  as in the file, with ids 1, 2, ... and `iscrowd`
    sha256       of the file
    """

    path: os.PathLike
    images: dict[int, tuple[str, tuple[int, int]]]
    categories: dict[str, int]
    annotations: list[dict]
    sha256: str

    def check_masks(self) -> None:
        """Raise FolderError unless every annotation has a mask, polygons or run lengths of its picture's size."""
        for i, one in enumerate(self.annotations):
            if problem := _mask_problem(one.get("segmentation"), self.images[one["image_id"]][1]):
                raise FolderError(f"{self.path}: annotations[{i}]: segmentation {problem}")

    def as_pycocotools_reads(self) -> dict:
        """The content of a file with the same annotations, without what does not count."""
        return {"images": [{"id": image, "height": height, "width": width}
                           for image, (_, (height, width)) in self.images.items()],
                "categories": [{"id": number, "name": name} for name, number in self.categories.items()],
                "annotations": [dict(one) for one in self.annotations]}  # which pycocotools adds to


def read_coco(path) -> CocoFile:
    """Read annotations, such as instances_val2017.json. Raises FolderError that names the file and the entry."""
    data = _read(path)
    try:
        content = parse_json(data, str(path))
    except CheckpointError as error:
        raise FolderError(str(error)) from error
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list)
                                                for name in ("images", "annotations", "categories")):
        raise FolderError(f"{path}: no annotations in COCO's format: it must be an object with the lists images, "
                          f"annotations and categories")
    images, categories, annotations, known = {}, {}, [], set()
    for entry in _entries(path, content, "images"):
        number = entry.whole("id")
        size = entry.whole("height", 1), entry.whole("width", 1)
        if number in images:
            raise entry.wrong("id", "another one: two images have the same id")
        images[number] = entry.text("file_name"), size
    for entry in _entries(path, content, "categories"):
        number, name = entry.whole("id"), entry.text("name")
        if name in categories or number in known:
            raise entry.wrong("name" if name in categories else "id", "another one: two categories have the same")
        categories[name] = number
        known.add(number)
    for i, entry in enumerate(_entries(path, content, "annotations")):
        if entry.whole("image_id") not in images:
            raise entry.wrong("image_id", "the id of one of its images")
        if entry.whole("category_id") not in known:
            raise entry.wrong("category_id", "the id of one of its categories")
        entry.numbers("bbox", 4)
        if min(entry.value["bbox"][2:]) < 0:
            raise entry.wrong("bbox", "x, y, width and height, the last two at least 0")
        entry.numbers("area")
        crowd = entry.value.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise entry.wrong("iscrowd", "0 or 1")
        annotations.append({**entry.value, "id": i + 1, "iscrowd": int(crowd)})
    return CocoFile(path, images, categories, annotations, hashlib.sha256(data).hexdigest())


def _read(path):
    try:
        with open(path, "rb") as file:
            if stat.S_ISCHR(os.fstat(file.fileno()).st_mode):
                raise FolderError(f"{path}: must be a file of annotations, got a device")
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror or error}") from error
    if len(data) > MAX_FILE:
        raise FolderError(f"{path}: more than {MAX_FILE} bytes, which no file of annotations here should have")
    return data


class _Entry:
    """An object of one of the lists, and errors that say where it stands."""

    def __init__(self, where, value):
        self.where, self.value = where, value
        if not isinstance(value, dict):
            raise FolderError(f"{where} must be an object, got {shown(value)}")

    def wrong(self, key, expected):
        got = shown(self.value[key]) if key in self.value else "none"
        return FolderError(f"{self.where}: {key} must be {expected}, got {got}")

    def whole(self, key, least=None):
        value = self.value.get(key)
        if not _is_number(value) or value != int(value) or (least is not None and value < least):
            raise self.wrong(key, "an integer" + (f" >= {least}" if least is not None else ""))
        self.value[key] = int(value)
        return int(value)

    def text(self, key):
        value = self.value.get(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "text")
        return value

    def numbers(self, key, count=None):
        value = self.value.get(key)
        if count is None and not _is_number(value):
            raise self.wrong(key, "a finite number")
        if count is not None and not (isinstance(value, list) and len(value) == count and all(map(_is_number, value))):
            raise self.wrong(key, f"{count} finite numbers")


def _entries(path, content, name):
    for i, value in enumerate(content[name]):
        yield _Entry(f"{path}: {name}[{i}]", value)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15  # which NaN is not


# -- masks ---------------------------------------------------------------------------------------------------

def _mask_problem(mask, size) -> str | None:
    """What is wrong with a mask, in words."""
    if isinstance(mask, list):
        if mask and all(isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
                        and all(map(_is_number, polygon)) for polygon in mask):
            return None
        return f"must be polygons, each x and y of three corners or more, got {shown(mask)}"
    if not isinstance(mask, dict):
        return f"must be polygons or run lengths, got {shown(mask)}"
    if mask.get("size") != list(size):
        return f"must have the size of its picture, {list(size)}, got {shown(mask.get('size'))}"
    counts = mask.get("counts")
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    whole = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
    if not whole or sum(runs) != math.prod(size):
        return f"must have run lengths that fill its picture, got {shown(counts)}"
    return None


def _unpacked(counts) -> list[int] | None:
    """The run lengths of COCO's packed text: digits of five bits, the sixth says that another one follows; from the
    third run on the difference from the last but one. None if it is none."""
    runs, value, digits = [], 0, 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or digits > 12:
            return None
        value |= (code & 31) << 5 * digits
        digits += 1
        if not code & 32:
            if code & 16:
                value -= 1 << 5 * digits
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = digits = 0
    return None if digits else runs
