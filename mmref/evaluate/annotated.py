"""Pictures with annotations in COCO's format: which file is which image, and which class which category."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmref.data.folders import pictures_below
from mmref.data.labels import coco_ids, coco_names
from mmref.evaluate.batch import Batch
from mmref.evaluate.box_tally import BoxTally
from mmref.evaluate.coco_file import CocoFile, read_coco
from mmref.evaluate.folder import FolderError, evenly_spread
from mmref.tasks.coco import results_of

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
    """Pictures by their path below `root`, in the order of their numbers in `annotations`; `notes` and `problems` as in
    `mmref.evaluate.PictureSet`."""

    root: Path
    paths: tuple[str, ...]
    images: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    categories: tuple[int, ...]
    annotations: CocoFile
    notes: tuple[str, ...] = field(default=())
    problems: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.paths)

    def digest(self) -> str:
        """sha256 of the list: two evaluations with the same digest are about the same files and annotations."""
        digest = hashlib.sha256(f"{self.annotations.sha256}{self.categories}".encode())
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
        """Where answers are entered. Raises FolderError for a detector of masks where annotations have none."""
        masks = detector.load().model.config.masks
        if masks:
            self.annotations.check_masks()
        return BoxTally(self.annotations, self.images, self.categories, class_names, masks)


def read_annotations(root, annotations, class_names: Sequence[str]) -> AnnotatedSet:
    """The pictures that a file in COCO's format names, found below `root`, and the category of each of the network's
    classes: that of the same name, or, for COCO's 80 classes, of COCO's number.

    Raises FolderError where the file is something else, a class has no category, or no picture is there. Pictures of
    the file that are not there are problems: figures without them are of another data set. No picture is opened."""
    root = Path(root)
    if not root.is_dir():
        raise FolderError(f"{root}: not a folder")
    content = read_coco(annotations := Path(annotations))
    listed = sorted((image, *entry) for image, entry in content.images.items())
    named = content.categories
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
    return AnnotatedSet(root, paths, numbers, sizes, ids, content,
                        (f"annotations: {len(named)} categories of {annotations.name}",), tuple(problems))


def _categories(named, class_names, path):
    lacking = [name for name in class_names if name not in named]
    if not lacking:
        return tuple(named[name] for name in class_names)
    if class_names == coco_names() and set(coco_ids()) <= set(named.values()):
        return coco_ids()
    raise FolderError(f"{path}: no category is called {lacking[0]}, as a class of the network is; --class-names gives "
                      f"the classes their names ({', '.join(list(named)[:5])}, ...)")
