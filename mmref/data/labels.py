"""Names of the classes, in the order of the networks' outputs.

`imagenet_classes.txt` has ImageNet-1k's classes, one a line: WordNet identifier, then a short English name. They
stand in the order of the identifiers, which is that of the class folders of every copy of the data set.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from mmref.arguments import check_integer, shown
from mmref.errors import ValueProblem

__all__ = ["CIFAR10", "class_names", "imagenet_ids"]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@cache
def _imagenet() -> tuple[tuple[str, ...], tuple[str, ...]]:
    lines = (files("mmref.data") / "imagenet_classes.txt").read_text("utf-8").splitlines()
    ids, names = zip(*(line.split(" ", 1) for line in lines), strict=True)
    return ids, names


def imagenet_ids() -> tuple[str, ...]:
    """WordNet identifiers (`n01440764`, ...) of ImageNet-1k's 1000 classes, in output order."""
    return _imagenet()[0]


def class_names(model) -> tuple[str, ...]:
    """The names, one an output.

    model  number of classes, a `mmref.Variant`, or a model. 1000 means ImageNet-1k. 10 means CIFAR-10 for a bare
           number and for mobilemamba_nano. A model whose weights brought `class_names` keeps those.

    For any other number the names are "class 0", "class 1", ... Raises ValueProblem where it is none.
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
    if count == 1000:
        return _imagenet()[1]
    if count == 10 and getattr(config, "name", "mobilemamba_nano") == "mobilemamba_nano":
        return CIFAR10
    return tuple(f"class {i}" for i in range(count))
