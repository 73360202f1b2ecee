"""Which networks there are, by name. A family of networks is a module with a table VARIANTS of its configurations.

A configuration is a frozen dataclass with `name`, `img_size`, `in_chans` and `num_classes`, which every network has,
the family's own fields, and `build()`, which gives the network without parameters. It may say more about its
checkpoints (`head_prefix` and the following). To add a family, name its module.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module

from mmref.errors import ValueProblem

FAMILIES = ("mmref.models.variants", "mmref.models.fpn", "mmref.models.deeplabv3", "mmref.models.pspnet")


def head_prefix(config) -> str:
    """Where the names of its head's parameters begin: the configuration's `head`, "head." where it has none."""
    return getattr(config, "head", "head.")


def can_be_headless(config) -> bool:
    """Whether the network without its head is one, too (num_classes=0): the configuration's `headless`, else True."""
    return getattr(config, "headless", True)


def training_prefixes(config) -> tuple[str, ...]:
    """Where the names of parameters begin that checkpoints hold for training only: its `training_only`, else none."""
    return getattr(config, "training_only", ())


@cache
def models() -> dict[str, object]:
    """{name: configuration} of every network, family by family."""
    return {name: config for family in FAMILIES for name, config in import_module(family).VARIANTS.items()}


def resolve(name: str) -> tuple[object, bool]:
    """(configuration, dagger) of a name in any spelling people use: `mobilemamba_t2`, upstream's `MobileMamba_T2`, and
    `mobilemamba_t2s` for the dagger weights (the same network trained longer). Raises ValueProblem."""
    known, plain = models(), str(name).lower()
    if plain in known:
        return known[plain], False
    match = re.fullmatch(r"(mobilemamba_[tsb]\d)s", plain)
    if match and match[1] in known:
        return known[match[1]], True
    raise ValueProblem(f"model must be one of {', '.join(known)} (an s at the end asks for the dagger weights), "
                       f"got {name!r}")
