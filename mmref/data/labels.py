"""Names of the classes, in the order of the networks' outputs.

Which classes a network answers is known by its weights and by whoever trained it, never by how many there are: a
user's network of ten classes must not answer with CIFAR-10's names. So names come from the weights' own metadata,
from a description beside them, or from `read_class_names`; without any of these they are "class 0", "class 1", ...

`ade20k_classes.txt` has the 150 classes of ADE20K's scene parsing, one per line in the order of the networks' outputs:
the colour that label maps are usually shown in (red, green, blue), then the name. `coco_classes.txt` has COCO's 80,
each with its number in COCO's files (1 to 90, with gaps). `imagenet_classes.txt` has ImageNet-1k's classes, one per
line: WordNet identifier, then a short English name. They stand in the order of the identifiers, which is that of the
class folders of every copy of the data set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from mmref.arguments import check_integer, check_path, shown
from mmref.errors import ValueProblem

__all__ = ["CIFAR10", "ade20k_colours", "ade20k_names", "check_class_names", "class_names", "coco_ids", "coco_names",
           "imagenet_ids", "imagenet_names", "load_class_names", "read_class_names"]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MAX_NAME, MAX_FILE = 500, 16 << 20  # characters of a name, bytes of a file of names


@cache
def _imagenet() -> tuple[tuple[str, ...], tuple[str, ...]]:
    lines = (files("mmref.data") / "imagenet_classes.txt").read_text("utf-8").splitlines()
    ids, names = zip(*(line.split(" ", 1) for line in lines), strict=True)
    return ids, names


def imagenet_ids() -> tuple[str, ...]:
    """WordNet identifiers (`n01440764`, ...) of ImageNet-1k's 1000 classes, in output order."""
    return _imagenet()[0]


def imagenet_names() -> tuple[str, ...]:
    """Short English names of ImageNet-1k's 1000 classes, in output order."""
    return _imagenet()[1]


@cache
def _ade20k() -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    lines = (files("mmref.data") / "ade20k_classes.txt").read_text("utf-8").splitlines()
    *colours, names = zip(*(line.split(" ", 3) for line in lines), strict=True)
    return names, tuple(tuple(map(int, colour)) for colour in zip(*colours, strict=True))


def ade20k_names() -> tuple[str, ...]:
    """Names of ADE20K's 150 classes, in output order."""
    return _ade20k()[0]


def ade20k_colours() -> tuple[tuple[int, ...], ...]:
    """(red, green, blue) of ADE20K's 150 classes; road and skyscraper share one."""
    return _ade20k()[1]


@cache
def _coco() -> tuple[tuple[int, ...], tuple[str, ...]]:
    lines = (files("mmref.data") / "coco_classes.txt").read_text("utf-8").splitlines()
    numbers, names = zip(*(line.split(" ", 1) for line in lines), strict=True)
    return tuple(map(int, numbers)), names


def coco_ids() -> tuple[int, ...]:
    """Numbers of COCO's 80 classes in COCO's own files, in output order."""
    return _coco()[0]


def coco_names() -> tuple[str, ...]:
    """Names of COCO's 80 classes, in output order."""
    return _coco()[1]


def class_names(model) -> tuple[str, ...]:
    """The names, one per output: a model's own (`model.class_names`), else "class 0", "class 1", ...

    model  a model, a `mmref.Variant`, or a number of classes. Raises ValueProblem if it is none of these.
    """
    own = getattr(model, "class_names", None)
    if own:
        return tuple(own)
    config = getattr(model, "config", model)
    count = getattr(config, "num_classes", config)
    try:
        count = check_integer("model", count, 0)
    except ValueProblem as error:
        raise ValueProblem(f"model must be a model, a Variant or a number of classes >= 0, "
                           f"got {shown(model)}") from error
    return tuple(f"class {i}" for i in range(count))


class Names(tuple):
    """Names that know their `source`, a file or a word, for messages; None for a sequence's."""

    source: str | None = None


def read_class_names(source, count: int) -> tuple[str, ...]:
    """The names that `source` gives to `count` outputs; see `load_class_names`. Raises ValueProblem for another number
    of names, too."""
    count = check_integer("count", count, 0)
    return check_class_names("class_names", load_class_names(source), count)


def load_class_names(source) -> Names:
    """The names that `source` gives.

    source  "imagenet", "cifar10", "ade20k" or "coco"; a sequence of names; or a file: one name per line, or JSON, a
            list of names or an object {"0": name, ...}

    Raises ValueProblem for names that cannot be printed or a file that is something else, OSError where it cannot be
    read.
    """
    known = {"imagenet": imagenet_names, "cifar10": lambda: CIFAR10, "ade20k": ade20k_names, "coco": coco_names}
    if isinstance(source, str) and source in known:
        return _from(source, known[source]())
    if isinstance(source, (list, tuple)):
        return _from(getattr(source, "source", None), check_class_names("class_names", source))
    path = check_path("class_names", source, f"{', '.join(known)}, a sequence of names or the path of a file of them")
    with open(path, "rb") as file:
        data = file.read(MAX_FILE + 1)
    try:
        if len(data) > MAX_FILE:
            raise ValueError(f"more than {MAX_FILE} bytes")
        text = data.decode("utf-8-sig")
        names = (json.loads(text) if text.lstrip().startswith(("[", "{"))
                 else [line.strip() for line in text.splitlines() if line.strip()])
        if isinstance(names, dict):
            names = [names[str(i)] for i in range(len(names))]
    except KeyError as error:
        raise ValueProblem(f"{path}: class names as an object must have the keys \"0\", \"1\", ..., "
                           f"{error} is missing") from error
    except (ValueError, RecursionError) as error:
        raise ValueProblem(f"{path}: class names must be UTF-8 text, one per line, or JSON ({error})") from error
    return _from(str(path), check_class_names(f"{path}: class names", names))


def _from(source, names):
    names = Names(names)
    names.source = source
    return names


def check_class_names(argument: str, names: Sequence, count: int | None = None) -> tuple[str, ...]:
    """`names` as a tuple, if they are printable text, `count` of them. Raises ValueProblem that names `argument`."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueProblem(f"{argument} must be a list of text, got {shown(names)}")
    if count is not None and len(names) != count:
        of = f" of {names.source}" if getattr(names, "source", None) else ""
        raise ValueProblem(f"{argument}{of} must be {count}, one per output, got {len(names)}")
    for name in names:
        if not name or not name.isprintable() or len(name) > MAX_NAME:  # they are printed; terminals obey control codes
            raise ValueProblem(f"{argument} must be printable text of at most {MAX_NAME} characters, got {shown(name)}")
    return tuple(names)
