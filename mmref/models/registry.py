"""Which networks there are, by name. A family of networks is a module with a table VARIANTS of its configurations
and, where something was published of them, a table ACCURACY.

A configuration is a frozen dataclass with `name`, `img_size`, `in_chans` and `num_classes`, which every network has,
the family's own fields, and `build()`, which gives the network without parameters. It may say more about its
checkpoints (`head_prefix` and the following). To add a family, name its module.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module

from mmref.errors import ValueProblem

FAMILIES = ("mmref.models.variants", "mmref.models.fpn", "mmref.models.deeplabv3", "mmref.models.pspnet",
            "mmref.models.localvim", "mmref.models.efficientvmamba", "mmref.models.ssdlite", "mmref.models.retinanet",
            "mmref.models.mask_rcnn")


def head_prefix(config) -> str:
    """Where the names of its head's parameters begin: the configuration's `head`, "head." where it has none."""
    return getattr(config, "head", "head.")


def can_be_headless(config) -> bool:
    """Whether the network without its head is one, too (num_classes=0): the configuration's `headless`, else True."""
    return getattr(config, "headless", True)


def training_prefixes(config) -> tuple[str, ...]:
    """Where the names of parameters begin that checkpoints hold for training only: its `training_only`, else none."""
    return getattr(config, "training_only", ())


def classes_of(config, state) -> int | None:
    """The number of classes that the head in a checkpoint tells apart, None where it has none of this network's kind:
    what the configuration's `classes_of` says, None where it has no such method."""
    return config.classes_of(state) if hasattr(config, "classes_of") else None


def task_of(config) -> str:
    """What the network is for: the configuration's `task`, "segment" or "detect", "classify" where it has none."""
    return getattr(config, "task", "classify")


@cache
def models() -> dict[str, object]:
    """{name: configuration} of every network, family by family."""
    return {name: config for family in FAMILIES for name, config in import_module(family).VARIANTS.items()}


@cache
def accuracies() -> dict[str, dict[str, float]]:
    """{name: published figures, percent of ImageNet's validation set} of the networks that have such."""
    return {name: figures for family in FAMILIES
            for name, figures in getattr(import_module(family), "ACCURACY", {}).items()}


def resolve(name: str) -> tuple[object, bool]:
    """(configuration, dagger) of a name in any spelling people use: `mobilemamba_t2`, upstream's `MobileMamba_T2`, and
    `mobilemamba_t2s` for the dagger weights (the same network trained longer). Raises ValueProblem."""
    known, plain = models(), str(name).lower()
    if plain in known:
        return known[plain], False
    match = re.fullmatch(r"(mobilemamba_[tsb]\d)s", plain)
    if match and match[1] in known:
        return known[match[1]], True
    first = import_module(FAMILIES[0]).VARIANTS
    raise ValueProblem(f"model must be one of {', '.join(first)} (an s at the end asks for the dagger weights), or "
                       f"another of the {len(known)} that mmref.list_models() and `mmref models` list, got {name!r}")
