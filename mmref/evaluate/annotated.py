"""Pictures with annotations in COCO's format: which file is which image, and which class which category."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmref.data.folders import pictures_below
from mmref.data.labels import coco_ids, coco_names
from mmref.errors import CheckpointError
from mmref.evaluate.batch import Batch
from mmref.evaluate.box_tally import BoxTally
from mmref.evaluate.folder import FolderError, evenly_spread
from mmref.tasks.coco import results_of
from mmref.weights.json_file import parse_json

__all__ = ["AnnotatedSet", "read_annotations"]


@dataclass(frozen=True)
class AnnotatedBatch(Batch):
    """A batch with the annotations' number and size (height, width) of each picture, and the category of each class."""

    images: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    categories: tuple[int, ...] = ()

    def record(self, answers) -> dict:
        """{"start": place, "found": [[entry in COCO's format of results, ...] or error text, one per picture]}."""
        return {"start": self.start, "found": [self._found(*each) for each in zip(answers, self.images, self.sizes,
                                                                                   strict=True)]}

    def _found(self, answer, image, size):
        if answer.error:
            return answer.error
        if answer.objects.size != size:
            return (f"{answer.picture}: the annotations are of a picture of {size[1]} x {size[0]} pixels, got "
                    f"{answer.objects.size[1]} x {answer.objects.size[0]}")
        return results_of(image, answer.objects, self.categories)


@dataclass(frozen=True)
class AnnotatedSet:
    """Pictures by their path below `root`, in the order of their numbers in the file `annotations`, whose `sha256`
    stands for its content; `notes` and `problems` as in `mmref.evaluate.PictureSet`."""

    root: Path
    paths: tuple[str, ...]
    images: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    categories: tuple[int, ...]
    annotations: Path
    sha256: str
    notes: tuple[str, ...] = field(default=())
    problems: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.paths)

    def digest(self) -> str:
        """sha256 of the list: two evaluations with the same digest are about the same files and annotations."""
        digest = hashlib.sha256(f"{self.sha256}{self.categories}".encode())
        for path, image in zip(self.paths, self.images, strict=True):
            digest.update(os.fsencode(path) + f"\0{image}\n".encode())
        return digest.hexdigest()

    def limit(self, count: int) -> AnnotatedSet:
        """`count` pictures spread evenly over the list."""
        chosen, note = evenly_spread(len(self), count)
        if not note:
            return self
        kept = {name: tuple(getattr(self, name)[i] for i in chosen) for name in ("paths", "images", "sizes")}
        return replace(self, **kept, notes=(*self.notes, *note))

    def batch(self, start: int, size: int) -> AnnotatedBatch:
        """The batch that begins at `start`."""
        part = slice(start, start + size)
        return AnnotatedBatch(os.path.abspath(self.root), self.paths[part], start, self.images[part], self.sizes[part],
                              self.categories)

    def tally(self, detector, class_names) -> BoxTally:
        """Where answers are entered."""
        return BoxTally(self.annotations, self.images, self.categories, class_names, detector.load().model.config.masks)


def read_annotations(root, annotations, class_names: Sequence[str]) -> AnnotatedSet:
    """The pictures that a file in COCO's format names, found below `root`, and the category of each of the network's
    classes: that of the same name, or, for COCO's 80 classes, of COCO's number.

    Raises FolderError where the file is something else, a class has no category, or no picture is there. Pictures of
    the file that are not there are problems: figures without them are of another data set. No picture is opened."""
    root, annotations = Path(root), Path(annotations)
    if not root.is_dir():
        raise FolderError(f"{root}: not a folder")
    data = annotations.read_bytes()
    try:
        content = parse_json(data, str(annotations))
    except CheckpointError as error:
        raise FolderError(str(error)) from error
    images, categories = (_entries(content, name, annotations) for name in ("images", "categories"))
    try:
        listed = sorted((int(one["id"]), str(one["file_name"]), (int(one["height"]), int(one["width"])))
                        for one in images)
        named = {str(one["name"]): int(one["id"]) for one in categories}
    except (KeyError, TypeError, ValueError) as error:
        raise FolderError(f"{annotations}: images must have id, file_name, height and width, categories id and name: "
                          f"{type(error).__name__} {error}") from error
    if len({image for image, *_ in listed}) < len(listed):
        raise FolderError(f"{annotations}: two images have the same id")
    ids = _categories(named, tuple(class_names), annotations)
    there = pictures_below(root)
    problems, pictures = there.problems, frozenset(there.pictures)
    by_name = {}
    for path in there.pictures:
        by_name.setdefault(os.path.basename(path), []).append(path)
    found, missing = [], []
    for image, name, size in listed:
        paths = [name] if name in pictures else by_name.get(os.path.basename(name), [])
        if len(paths) > 1:
            raise FolderError(f"{root}: {name} of {annotations} may be any of {', '.join(paths[:3])}")
        if paths:
            found.append((paths[0], image, size))
        else:
            missing.append(name)
    if not found:
        raise FolderError(f"{root}: none of the {len(listed)} pictures of {annotations}, for instance "
                          f"{listed[0][1] if listed else '(it names none)'}")
    if missing:
        problems = [*problems, f"{root}: {len(missing)} pictures of {annotations} are not there, first: {missing[0]}"]
    paths, numbers, sizes = zip(*found, strict=True)
    return AnnotatedSet(root, paths, numbers, sizes, ids, annotations, hashlib.sha256(data).hexdigest(),
                        (f"annotations: {len(named)} categories of {annotations.name}",), tuple(problems))


def _entries(content, name, path):
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or not isinstance(content.get("annotations"), list):
        raise FolderError(f"{path}: no annotations in COCO's format: it must be an object with the lists images, "
                          f"annotations and categories")
    return entries


def _categories(named, class_names, path):
    lacking = [name for name in class_names if name not in named]
    if not lacking:
        return tuple(named[name] for name in class_names)
    if class_names == coco_names() and set(coco_ids()) <= set(named.values()):
        return coco_ids()
    raise FolderError(f"{path}: no category is called {lacking[0]}, as a class of the network is; --class-names gives "
                      f"the classes their names ({', '.join(list(named)[:5])}, ...)")
