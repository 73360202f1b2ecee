"""Which pictures to evaluate, and the right class of each: class folders, or one folder with a label file."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmref.data.labels import imagenet_ids, imagenet_names
from mmref.errors import MmrefError

__all__ = ["EXTENSIONS", "FolderError", "PictureSet", "read_folder"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# looked for in a flat folder when no label file is named: the usual companions of ImageNet's validation pictures
LABEL_FILES = ("labels.txt", "labels.csv", "val.txt", "LOC_val_solution.csv",
               "imagenet_2012_validation_synset_labels.txt")
_DEVKIT = "ILSVRC2012_validation_ground_truth.txt"


class FolderError(MmrefError):
    """A folder or label file from which the classes cannot be determined."""


@dataclass(frozen=True)
class PictureSet:
    """Pictures by their path below `root`, sorted, and their classes; `notes` say how the classes were found."""

    root: Path
    paths: tuple[str, ...]
    targets: np.ndarray  # (pictures,) int32, classes as the model numbers them
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.paths)

    def digest(self) -> str:
        """sha256 of the list: two evaluations with the same digest are about the same pictures and classes."""
        digest = hashlib.sha256()
        for path, target in zip(self.paths, self.targets, strict=True):
            digest.update(f"{path}\0{target}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def limit(self, count: int) -> PictureSet:
        """`count` pictures spread evenly over the list, so that every class keeps its share."""
        if count < 1:
            raise FolderError(f"limit must be at least 1 picture, got {count}")
        if count >= len(self):
            return self
        chosen = np.arange(count) * len(self) // count
        return PictureSet(self.root, tuple(self.paths[i] for i in chosen), self.targets[chosen],
                          (*self.notes, f"{count} of {len(self)} pictures, evenly spread"))


def read_folder(root, class_names: Sequence[str], labels=None, class_map=None) -> PictureSet:
    """Find the pictures of a data set.

    root         a folder with one folder per class, or with pictures and a label file
    class_names  the model's, in output order
    labels       label file: lines `picture class` (blank or comma between; a header line is skipped), or one class per
                 line for the sorted pictures. A class is a number from 0, a class name or a WordNet identifier. None
                 looks for class folders, then for a label file of a usual name in `root`
    class_map    file that says which folder (or label) is which output: one name per line in output order, or JSON
                 {name: output}

    Raises FolderError where a class remains unknown. Nothing is opened: bad pictures show when they are decoded.
    """
    root = Path(root)
    if not root.is_dir():
        raise FolderError(f"{root}: not a folder")
    given = _read_class_map(class_map, len(class_names)) if class_map is not None else None
    if labels is None:
        folders, ignored = _class_folders(root)
        if folders:
            return _from_class_folders(root, folders, ignored, class_names, given)
        labels = next((root / name for name in LABEL_FILES if (root / name).is_file()), None)
        if labels is None:
            raise FolderError(f"{root}: neither class folders with pictures ({', '.join(EXTENSIONS)}) nor a label "
                              f"file; give one (--labels)")
    return _from_label_file(root, Path(labels), class_names, given)


# -- class folders -------------------------------------------------------------------------------------------

def _class_folders(root):
    """{folder name: pictures below it, as paths below root}, and how many files have another extension."""
    folders, ignored = {}, 0
    for name in sorted(os.listdir(root)):
        if name.startswith(".") or not (root / name).is_dir():
            continue
        found = []
        for folder, inner, files in os.walk(root / name):
            inner[:] = sorted(d for d in inner if not d.startswith("."))
            pictures = [f for f in files if f.lower().endswith(EXTENSIONS) and not f.startswith(".")]
            ignored += len(files) - len(pictures)
            found += [os.path.relpath(os.path.join(folder, f), root) for f in pictures]
        if found:
            folders[name] = sorted(found)
    return folders, ignored


def _from_class_folders(root, folders, ignored, class_names, given):
    classes, note = _match(list(folders), class_names, given, f"{root}: class folders")
    paths = [path for pictures in folders.values() for path in pictures]
    targets = np.repeat(np.array([classes[name] for name in folders], np.int32),
                        [len(pictures) for pictures in folders.values()])
    notes = (note,) if not ignored else (note, f"{ignored} files ignored that are no {', '.join(EXTENSIONS)}")
    return PictureSet(root, tuple(paths), targets, notes)


def _match(names, class_names, given, where):
    """{name: output} for every name, by the first rule that explains them all; and which rule it was."""
    count = len(class_names)
    plain = {_plain(name): i for i, name in enumerate(class_names)}
    rules = []
    if given is not None:
        rules.append(("class map", given.get))
    else:
        rules.append(("names", lambda name: plain.get(_plain(name))))
        if tuple(class_names) == imagenet_names():
            identifiers = {identifier: i for i, identifier in enumerate(imagenet_ids())}
            rules.append(("WordNet identifiers", identifiers.get))
        rules.append(("numbers", lambda name: int(name) if re.fullmatch(r"\d{1,9}", name) and int(name) < count
                      else None))
    for rule, find in rules:
        found = {name: find(name) for name in names}
        if None not in found.values():
            return found, f"classes by {rule}"
        best = [name for name, output in found.items() if output is None]
        if len(best) < len(names):  # some names fit: then sorting would give the others wrong classes
            raise FolderError(f"{where}: {len(best)} of {len(names)} are not among the model's {count} classes by "
                              f"{rule}, first {best[0]!r}")
    if given is None and len(names) == count:
        return {name: i for i, name in enumerate(sorted(names))}, "classes in the order of the sorted folder names"
    raise FolderError(f"{where}: {len(names)} (first {sorted(names)[0]!r}) cannot be matched with the model's {count} "
                      f"classes; give a class map (--class-map)")


def _plain(name):
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def _read_class_map(path, count):
    text = _read_text(path)
    try:
        mapping = json.loads(text) if str(path).endswith(".json") else {
            line.strip(): i for i, line in enumerate(text.splitlines()) if line.strip()}
    except ValueError as error:
        raise FolderError(f"{path}: not JSON: {error}") from error
    if not isinstance(mapping, dict):
        raise FolderError(f"{path}: must be an object {{name: output}}, got {type(mapping).__name__}")
    for name, output in mapping.items():
        if isinstance(output, bool) or not isinstance(output, int) or not 0 <= output < count:
            raise FolderError(f"{path}: {name!r} must be an output in 0..{count - 1}, got {output!r}")
    return mapping


# -- label files ---------------------------------------------------------------------------------------------

def _from_label_file(root, path, class_names, given):
    if path.name == _DEVKIT:
        raise FolderError(f"{path}: the development kit numbers classes in an order of its own, not the networks'; "
                          f"use class folders, val.txt or imagenet_2012_validation_synset_labels.txt")
    rows = _read_labels(path)
    pictures = sorted(name for name in os.listdir(root) if name.lower().endswith(EXTENSIONS)
                      and not name.startswith("."))
    notes = []
    if all(picture is None for picture, _ in rows):
        if len(rows) != len(pictures):
            raise FolderError(f"{path}: {len(rows)} classes for {len(pictures)} pictures in {root}")
        paths = pictures
    else:
        by_stem = {os.path.splitext(name)[0]: name for name in pictures}
        paths = [by_stem.get(name, name) for name, _ in rows]
        twice = len(paths) - len(set(paths))
        if twice:
            raise FolderError(f"{path}: {twice} pictures are listed twice")
        for name in paths:
            if os.path.isabs(name) or ".." in Path(name).parts:
                raise FolderError(f"{path}: pictures must lie below {root}, got {name!r}")
        unlabelled = len(set(pictures) - set(paths))
        if unlabelled:
            notes.append(f"{unlabelled} pictures without a label left out")
    labels = [label for _, label in rows]
    classes, note = _match(sorted(set(labels)), class_names, given, f"{path}: labels")
    if "sorted" in note:
        raise FolderError(f"{path}: labels are not among the model's class names or numbers, first {labels[0]!r}; "
                          f"give a class map (--class-map)")
    order = sorted(range(len(paths)), key=paths.__getitem__)
    targets = np.array([classes[labels[i]] for i in order], np.int32)
    return PictureSet(root, tuple(paths[i] for i in order), targets, (f"{note} of {path.name}", *notes))


def _read_labels(path) -> list[tuple[str | None, str]]:
    """[(picture or None, class)] of a label file."""
    text = _read_text(path)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise FolderError(f"{path}: no labels in it")
    if any("," in line for line in lines[:2]):
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
        if rows[0][0].lower() in ("imageid", "image", "filename", "file", "path", "picture", "name"):
            rows = rows[1:]
        # Kaggle's second column holds boxes after the class; identifiers have no blanks, names may
        rows = [[row[0], row[1].split()[0] if len(row) > 1 and re.match(r"n\d{8}\s", row[1]) else row[-1]]
                if len(row) == 2 else row for row in rows]
    else:
        rows = [line.split(None, 1) if _names_a_picture(line) else [line] for line in map(str.strip, lines)]
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or not lengths <= {1, 2}:
        raise FolderError(f"{path}: every line must be `picture class`, or every line a class, got "
                          f"{sorted(lengths)} columns")
    return [(None, row[0]) if len(row) == 1 else (row[0], row[1]) for row in rows]


def _names_a_picture(line):
    parts = line.split(None, 1)
    return len(parts) == 2 and (parts[0].lower().endswith(EXTENSIONS) or parts[0].startswith("ILSVRC2012_"))


def _read_text(path):
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FolderError(f"{path}: not a text file") from error
