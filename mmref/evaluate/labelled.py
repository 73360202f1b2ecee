"""Pictures with label maps: which file belongs to which picture, and what its values mean."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mmref.data.folders import pictures_below
from mmref.data.label_map import read_label_map
from mmref.errors import PictureError
from mmref.evaluate.batch import Batch, check_folder
from mmref.evaluate.folder import FolderError, evenly_spread
from mmref.evaluate.overlap import IGNORED, count_pixels
from mmref.evaluate.pixel_tally import PixelTally

__all__ = ["LabelRule", "LabelledSet", "read_labelled_folder"]


@dataclass(frozen=True)
class LabelRule:
    """What the values of label PNGs mean.

    classes      how many there are
    zero_other   0 is "other" and ignored, 1 to `classes` are the classes, as ADE20K has them; else 0 to classes - 1
                 are. 255 is ignored in both
    count_stray  a value that is none of these belongs to no class, yet what is predicted there counts as predicted (as
                 mmsegmentation has it); else it is an error, since such labels are most likely another data set's
    """

    classes: int
    zero_other: bool = False
    count_stray: bool = False

    @property
    def words(self) -> str:
        """For people."""
        values = f"0 is other and ignored, 1 to {self.classes}" if self.zero_other else f"0 to {self.classes - 1}"
        return f"labels: {values} are the classes, 255 is ignored"

    def read(self, path) -> np.ndarray:
        """(H, W) uint8, the class of each pixel, 255 where it is ignored; what is above is of no class. Raises
        PictureError, with the file's name."""
        labels = read_label_map(path)
        if self.zero_other:
            labels = np.where(labels == 0, IGNORED, labels - (labels != IGNORED)).astype(np.uint8)
        stray = (labels >= self.classes) & (labels != IGNORED)
        if not self.count_stray and stray.any():
            value = int(labels[stray].max()) + self.zero_other
            raise PictureError(f"{os.fspath(path)}: {self.words}, got the value {value} in {int(stray.sum())} of "
                               f"{labels.size} pixels (--stray-labels count lets them belong to no class)")
        return labels


@dataclass(frozen=True)
class LabelledBatch(Batch):
    """A batch with its label files."""

    labels_root: str = ""
    labels: tuple[str, ...] = ()
    rule: LabelRule | None = None

    def check_here(self) -> None:
        super().check_here()
        check_folder(self.labels_root, "the labels")

    def record(self, answers) -> dict:
        """{"start": place, "counts": [[[class, I, P, L], ...] or error text, one per picture]}."""
        return {"start": self.start, "counts": [self._counts(answer, os.path.join(self.labels_root, path))
                                                for answer, path in zip(answers, self.labels, strict=True)]}

    def _counts(self, answer, path):
        if answer.error:
            return answer.error
        try:
            labels = self.rule.read(path)
            if labels.shape != answer.labels.shape:
                raise PictureError(f"{path}: labels must have the size of their picture, "
                                   f"{_size(answer.labels)}, got {_size(labels)}")
        except PictureError as error:
            return str(error)
        counts = count_pixels(answer.labels, labels, self.rule.classes)
        occurring = np.flatnonzero(counts.any(0))
        return [[int(c), *map(int, counts[:, c])] for c in occurring]


def _size(labels):
    return f"{labels.shape[1]} x {labels.shape[0]}"


@dataclass(frozen=True)
class LabelledSet:
    """Pictures by their path below `root`, sorted, and their label files below `labels_root`; `notes` and `problems` as
    in `mmref.evaluate.PictureSet`."""

    root: Path
    paths: tuple[str, ...]
    labels_root: Path
    labels: tuple[str, ...]
    rule: LabelRule
    notes: tuple[str, ...] = field(default=())
    problems: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.paths)

    def digest(self) -> str:
        """sha256 of the list: two evaluations with the same digest are about the same files and the same rule."""
        digest = hashlib.sha256(repr(self.rule).encode())
        for pair in zip(self.paths, self.labels, strict=True):
            digest.update(b"\0".join(map(os.fsencode, pair)) + b"\n")
        return digest.hexdigest()

    def limit(self, count: int) -> LabelledSet:
        """`count` pictures spread evenly over the list."""
        chosen, note = evenly_spread(len(self), count)
        if not note:
            return self
        return replace(self, paths=tuple(self.paths[i] for i in chosen), labels=tuple(self.labels[i] for i in chosen),
                       notes=(*self.notes, *note))

    def batch(self, start: int, size: int) -> LabelledBatch:
        """The batch that begins at `start`."""
        part = slice(start, start + size)
        return LabelledBatch(os.path.abspath(self.root), self.paths[part], start, os.path.abspath(self.labels_root),
                             self.labels[part], self.rule)

    def tally(self, segmenter, class_names) -> PixelTally:
        """Where answers are entered."""
        return PixelTally(len(self), class_names)


def read_labelled_folder(root, labels, rule: LabelRule) -> LabelledSet:
    """Find the pictures below `root` and the label map of each below the folder `labels`: of the same path, with .png
    (or .PNG) after the picture's name or in place of its extension. Both may be the same folder, or one in the other.

    Raises FolderError where a folder is missing, a label may be of two pictures, or no picture has one. Pictures
    without labels are left out, and the notes say so. No picture is opened."""
    for folder in (root, labels):
        if not os.path.isdir(folder):
            raise FolderError(f"{folder}: not a folder" + ("; segmentation's labels are a folder of PNGs"
                                                           if os.path.isfile(folder) else ""))
    root, labels = Path(root), Path(labels)
    found, there = pictures_below(root), pictures_below(labels)
    present = {path for path in there.pictures if path.lower().endswith(".png")}
    inside = os.path.relpath(os.path.realpath(labels), os.path.realpath(root))
    pictures, unlabelled = {}, 0
    if inside != os.curdir and not inside.startswith(os.pardir):  # labels in a folder below the pictures'
        found.pictures = [path for path in found.pictures if not path.startswith(os.path.join(inside, ""))]
    elif inside == os.curdir:  # side by side: what is another's label is no picture
        of_others = {name for path in found.pictures for name in _label_names(path) if name in present and name != path}
        found.pictures = [path for path in found.pictures if path not in of_others]
    for path in found.pictures:
        label = next((name for name in _label_names(path) if name in present and (inside != os.curdir or name != path)),
                     None)
        unlabelled += label is None
        if label is not None:
            pictures[path] = label
    if not pictures:
        raise FolderError(f"{labels}: no labels of the {len(found.pictures)} pictures in {root}; a picture's label is "
                          f"called like it, with .png")
    label, often = Counter(pictures.values()).most_common(1)[0]
    if often > 1:
        both = ", ".join(path for path, name in pictures.items() if name == label)
        raise FolderError(f"{labels / label}: may be the label of any of {both}; call it {both.split(', ')[0]}.png")
    notes = [rule.words]
    if unlabelled:
        notes.append(f"{unlabelled} pictures without labels left out")
    if inside != os.curdir and (spare := len(present) - len(pictures)):
        notes.append(f"{spare} PNGs in {labels} are no picture's label")
    return LabelledSet(root, tuple(pictures), labels, tuple(pictures.values()), rule, tuple(notes),
                       tuple(dict.fromkeys((*found.problems, *there.problems))))


def _label_names(path):
    return tuple(stem + end for stem in (path, os.path.splitext(path)[0]) for end in (".png", ".PNG"))
