"""Which pictures to evaluate, and the right class of each: class folders, or one folder with a label file."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mmref.arguments import check_choice, check_integer, check_path
from mmref.data.folders import EXTENSIONS, Found, is_picture_name, natural_key, pictures_below
from mmref.data.labels import check_class_names, imagenet_ids, imagenet_names
from mmref.errors import MmrefError
from mmref.evaluate.batch import Batch
from mmref.evaluate.tally import Tally

__all__ = ["ORDERS", "FolderError", "PictureSet", "read_folder"]

MAX_FILE = 256 << 20  # bytes of a label file or class map; two million pictures with long names
ORDERS = ("lexicographic", "natural")
# looked for in a flat folder when no label file is named: the usual companions of ImageNet's validation pictures
LABEL_FILES = ("labels.txt", "labels.csv", "val.txt", "LOC_val_solution.csv",
               "imagenet_2012_validation_synset_labels.txt")
_DEVKIT = "ILSVRC2012_validation_ground_truth.txt"


class FolderError(MmrefError):
    """A folder or label file from which the right classes cannot be determined."""


@dataclass(frozen=True)
class PictureSet:
    """Pictures by their path below `root`, sorted, and their classes; `notes` say how the classes were found,
    `problems` what is left out because it could not be read: figures without it are of another data set."""

    root: Path
    paths: tuple[str, ...]
    targets: np.ndarray  # (pictures,) int32, classes as the model numbers them
    notes: tuple[str, ...] = field(default=())
    problems: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.paths)

    def digest(self) -> str:
        """sha256 of the list: two evaluations with the same digest are about the same pictures and classes."""
        digest = hashlib.sha256()
        for path, target in zip(self.paths, self.targets, strict=True):
            digest.update(os.fsencode(path) + f"\0{target}\n".encode())
        return digest.hexdigest()

    def limit(self, count: int) -> PictureSet:
        """`count` pictures spread evenly over the list, so that every class keeps its share."""
        chosen, note = evenly_spread(len(self), count)
        if not note:
            return self
        return replace(self, paths=tuple(self.paths[i] for i in chosen), targets=self.targets[chosen],
                       notes=(*self.notes, *note))

    def batch(self, start: int, size: int) -> Batch:
        """The batch that begins at `start`."""
        return Batch(os.path.abspath(self.root), self.paths[start:start + size], start)

    def tally(self, predictor, class_names) -> Tally:
        """Where answers are entered."""
        return Tally(self.targets, class_names, predictor.topk)


def evenly_spread(pictures: int, count: int) -> tuple[np.ndarray, list[str]]:
    """(places of `count` of so many pictures, a note where these are not all). Raises ValueProblem."""
    count = check_integer("limit", count, 1)
    if count >= pictures:
        return np.arange(pictures), []
    return np.arange(count) * pictures // count, [f"{count} of {pictures} pictures, evenly spread"]


def read_folder(root, class_names: Sequence[str], labels=None, class_map=None, order: str | None = None) -> PictureSet:
    """Find the pictures of a data set.

    root         a folder with one folder per class, or with pictures and a label file
    class_names  the model's, in output order
    labels       label file: lines `picture class` (blank or comma between; a header line is skipped), or one class per
                 line for the sorted pictures. A class is a number from 0, a class name or a WordNet identifier. None
                 looks for class folders, then for a label file of a usual name in `root`
    class_map    file that says which folder (or label) is which output: a name per line in output order, or JSON
                 {name: output}
    order        how names are sorted where nothing but their order says which is which: "lexicographic" (1, 10, 2, as
                 torchvision's ImageFolder sorts) or "natural" (1, 2, 10). None: both must be the same

    Raises FolderError where a class remains unknown, ValueProblem for arguments that cannot be meant. Folders that
    cannot be read are in the result's `problems`. No picture is opened: bad ones show when they are decoded.
    """
    if order is not None:
        check_choice("order", order, ORDERS)
    class_names = check_class_names("class_names", class_names)
    root = check_path("root", root)
    if not root.is_dir():
        raise FolderError(f"{root}: not a folder")
    given = None if class_map is None else _read_class_map(check_path("class_map", class_map), len(class_names))
    if labels is None:
        folders, found = _class_folders(root)
        if folders:
            return _from_class_folders(root, folders, found, class_names, given, order)
        labels = next((root / name for name in LABEL_FILES if (root / name).is_file()), None)
        if labels is None:
            raise FolderError(f"{root}: neither class folders with pictures ({', '.join(EXTENSIONS)}) nor a label "
                              f"file; name one (--labels)")
    return _from_label_file(root, check_path("labels", labels), class_names, given, order)


# -- class folders -------------------------------------------------------------------------------------------

def _class_folders(root):
    """{folder name: pictures below it, as paths below root}, and `Found` of the rest. A folder that cannot be read is a
    class, too: without it the others might be numbered otherwise."""
    folders, rest = {}, Found()
    for name in sorted(os.listdir(root)):
        if name.startswith("."):
            continue
        if not (root / name).is_dir():
            if (root / name).is_symlink() and not (root / name).exists():
                rest.problems.append(f"{root / name}: a link to nothing")
            elif is_picture_name(name):
                rest.pictures.append(name)
            continue
        found = pictures_below(root / name)
        rest.problems += found.problems
        rest.others += found.others
        if found.pictures or found.problems:
            folders[name] = [os.path.join(name, path) for path in found.pictures]
    return (folders if any(folders.values()) or not rest.pictures else {}), rest


def _from_class_folders(root, folders, rest, class_names, given, order):
    classes, note = _match(list(folders), class_names, given, f"{root}: class folders", order)
    paths = [path for pictures in folders.values() for path in pictures]
    targets = np.repeat(np.array([classes[name] for name in folders], np.int32),
                        [len(pictures) for pictures in folders.values()])
    notes = [note]
    if rest.others:
        notes.append(f"{rest.others} files ignored that are no {', '.join(EXTENSIONS)}")
    if rest.pictures:
        notes.append(f"{len(rest.pictures)} pictures ignored that lie beside the class folders")
    return PictureSet(root, tuple(paths), targets, tuple(notes), tuple(rest.problems))


def _match(names, class_names, given, where, order=None, may_sort=True):
    """{name: output} for every name, by the first rule that explains them all; and which rule it was."""
    count = len(class_names)
    rules = []
    if given is not None:
        rules.append(("class map", given.get))
    else:
        rules.append(("names", _by_name(class_names, where)))
        if tuple(class_names) == imagenet_names():
            identifiers = {identifier: i for i, identifier in enumerate(imagenet_ids())}
            rules.append(("WordNet identifiers", identifiers.get))
        rules.append(("numbers", lambda name: int(name) if re.fullmatch(r"[0-9]{1,9}", name) and int(name) < count
                      else None))
    for rule, find in rules:
        found = {name: find(name) for name in names}
        if None not in found.values():
            return found, f"classes by {rule}"
        unknown = [name for name, output in found.items() if output is None]
        if len(unknown) < len(names):  # some names fit: then sorting would give the others wrong classes
            raise FolderError(f"{where}: {len(unknown)} of {len(names)} are none of the model's {count} classes by "
                              f"{rule}, first {unknown[0]!r}; give a class map (--class-map)")
    if given is None and may_sort and len(names) == count:
        ordered, how = _in_order(names, order, where)
        return {name: i for i, name in enumerate(ordered)}, f"classes in {how} of the sorted folder names"
    raise FolderError(f"{where}: {len(names)} (first {min(names)!r}) cannot be matched with the model's {count} "
                      f"classes; give a class map (--class-map)")


def _by_name(class_names, where):
    """Function name -> output: the very name first, then in any case of letters and with - or _ for blanks."""
    exact, plain = {}, {}
    for output, name in enumerate(class_names):
        exact.setdefault(name, []).append(output)
        plain.setdefault(_plain(name), []).append(output)

    def find(name):
        outputs = exact.get(name) or plain.get(_plain(name), [None])
        if len(outputs) > 1:
            raise FolderError(f"{where}: {name!r} may be any of the outputs {', '.join(map(str, outputs))}, which have "
                              f"the same name; give a class map (--class-map)")
        return outputs[0]
    return find


def _plain(name):
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def _in_order(names, order, where):
    """(names in the order that is asked for, that order in words). FolderError where none is and it matters."""
    orders = {"lexicographic": sorted(names), "natural": sorted(names, key=natural_key)}
    if order is not None:
        return orders[order], f"the {order} order"
    plain, natural = orders.values()
    if plain == natural:
        return plain, "the order"
    at = next(i for i, pair in enumerate(zip(plain, natural, strict=True)) if pair[0] != pair[1])
    shown = {name: ", ".join(map(repr, ordered[max(at - 1, 0):at + 2])) for name, ordered in orders.items()}
    raise FolderError(f"{where}: only their order can say which is which, and there are two: from number "
                      f"{max(at - 1, 0)} on {shown['lexicographic']}, ... (lexicographic, as torchvision sorts) or "
                      f"{shown['natural']}, ... (natural); choose one (--order lexicographic, --order natural) or give "
                      f"a class map (--class-map)")


def _read_class_map(path, count):
    def unique(pairs):
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise FolderError(f"{path}: {len(names) - len(set(names))} names are listed twice")
        return dict(pairs)

    text = _read_text(path)
    if not str(path).endswith(".json"):
        lines = (line.strip() for line in _lines(text))
        mapping = unique([(name, output) for output, name in enumerate(filter(None, lines))])
    else:
        try:
            mapping = json.loads(text, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise FolderError(f"{path}: not JSON: {error}") from error
    if not isinstance(mapping, dict):
        raise FolderError(f"{path}: must be an object {{name: output}}, got {type(mapping).__name__}")
    for name, output in mapping.items():
        if isinstance(output, bool) or not isinstance(output, int) or not 0 <= output < count:
            raise FolderError(f"{path}: {name!r} must be an output in 0..{count - 1}, got {output!r}")
    return mapping


# -- label files ---------------------------------------------------------------------------------------------

def _from_label_file(root, path, class_names, given, order):
    if path.name == _DEVKIT:
        raise FolderError(f"{path}: the development kit numbers classes in an order of its own, not the networks'; "
                          f"use class folders, val.txt or imagenet_2012_validation_synset_labels.txt")
    rows = _read_labels(path)
    pictures = sorted(filter(is_picture_name, os.listdir(root)))
    notes = []
    if all(picture is None for picture, _ in rows):
        if len(rows) != len(pictures):
            raise FolderError(f"{path}: {len(rows)} classes for {len(pictures)} pictures in {root}")
        paths, how = _in_order(pictures, order, f"{path}: pictures of the {len(rows)} lines")
        notes.append(f"pictures in {how} of their names")
    else:
        paths = _named_pictures(path, [name for name, _ in rows], pictures, root)
        unlabelled = len(set(pictures) - set(paths))
        if unlabelled:
            notes.append(f"{unlabelled} pictures without a label left out")
    labels = [label for _, label in rows]
    classes, note = _match(sorted(set(labels)), class_names, given, f"{path}: labels", may_sort=False)
    by_path = sorted(range(len(paths)), key=paths.__getitem__)
    targets = np.array([classes[labels[i]] for i in by_path], np.int32)
    return PictureSet(root, tuple(paths[i] for i in by_path), targets, (f"{note} of {path.name}", *notes))


def _named_pictures(path, names, pictures, root):
    """The file of each name in a label file: the one of that very name, else the one that is called so but for its
    extension, else the name itself (a path below root, or a picture that is not there)."""
    present, by_stem = set(pictures), {}
    for picture in pictures:
        by_stem.setdefault(os.path.splitext(picture)[0], []).append(picture)
    files = []
    for name in names:
        candidates = [name] if name in present else by_stem.get(name, [name])
        if len(candidates) > 1:
            raise FolderError(f"{path}: {name!r} may be any of {', '.join(map(repr, candidates))}; write the extension")
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise FolderError(f"{path}: pictures must lie below {root}, got {name!r}")
        files += candidates
    if len(files) > len(set(files)):
        raise FolderError(f"{path}: {len(files) - len(set(files))} pictures are listed twice")
    return files


def _read_labels(path) -> list[tuple[str | None, str]]:
    """[(picture or None, class)] of a label file."""
    text = _read_text(path)
    lines = [line for line in _lines(text) if line.strip()]
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


def _lines(text):
    return re.split("\r\n|\r|\n", text)  # not splitlines: names may hold what that takes for a line end, too


def _read_text(path):
    """The text of a file in UTF-8, with or without a byte order mark. Other bytes are kept as Python keeps those of
    file names, so that a list of files finds them whatever they are called."""
    try:
        with open(path, "rb") as file:  # a pipe will do, and a device never ends
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror or error}") from error
    if len(data) > MAX_FILE:
        raise FolderError(f"{path}: more than {MAX_FILE} bytes, which no list of pictures has")
    if b"\0" in data:
        raise FolderError(f"{path}: not a text file in UTF-8")
    return data.decode("utf-8-sig", "surrogateescape")
