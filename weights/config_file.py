"""The `config.json` that timm and the hub leave beside weights: which network, which pictures, which classes.

Only the values that say how pictures are prepared and what the classes are called are taken, each checked; a file of
another kind (transformers' own config.json, a web project's) is told apart and left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mmref.errors import CheckpointError
from mmref.weights.json_file import read_json
from mmref.weights.pickle_tensors import short

NAME = "config.json"


@dataclass(frozen=True)
class Config:
    """What a timm-style configuration says; None or absent where it says nothing.

    transform    fields of mmref.Transform: size, crop_ratio, mean, std, interpolation
    label_names  names of the classes in output order, perhaps identifiers; `descriptions` of some or all of them
    """

    path: Path
    architecture: str | None = None
    num_classes: int | None = None
    in_chans: int | None = None
    transform: dict = field(default_factory=dict)
    label_names: tuple[str, ...] = ()
    descriptions: dict[str, str] = field(default_factory=dict)


def config_beside(path) -> Path | None:
    """The config.json in the folder of a weights file (or in the folder given), None if there is none."""
    path = Path(path)
    found = (path if path.is_dir() else path.parent) / NAME
    return found if found.is_file() else None


def read_config(path: Path, ours: Callable[[str], bool]) -> Config | None:
    """The configuration at `path`; None if it is not timm's.

    ours(architecture) says whether that name is the network's; if it is another's, the Config holds nothing else.
    Raises CheckpointError that names the file and the key.
    """
    try:
        values = read_json(path)
        if not isinstance(values, dict) or not (isinstance(values.get("pretrained_cfg"), dict)
                                                or isinstance(values.get("architecture"), str)):
            return None
        inner = values.get("pretrained_cfg")
        # what stands outside was written when the weights were saved, the inside comes from where training began
        merged = {**inner, **{k: v for k, v in values.items() if v is not None}} if isinstance(inner, dict) else values
        architecture = merged.get("architecture")
        if architecture is not None and not (isinstance(architecture, str) and architecture.isprintable()):
            raise _wrong("architecture", "a name", architecture)
        if architecture is not None and not ours(architecture):
            return Config(path, architecture)
        return Config(path, architecture, *_sizes(merged), _transform(merged), *_labels(merged))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def _wrong(key, expected, value):
    return CheckpointError(f"{key} must be {expected}, got {short(value)}")


def _sizes(values):
    classes, size = values.get("num_classes"), values.get("input_size")
    if classes is not None and not _integer(classes, 0):
        raise _wrong("num_classes", "an integer >= 0", classes)
    if size is not None and not (isinstance(size, list) and len(size) == 3 and all(_integer(n, 1) for n in size)):
        raise _wrong("input_size", "three integers, channels, height, width", size)
    return classes, size and size[0]


def _transform(values):
    size, found = values.get("input_size"), {}
    if size is not None:
        if size[1] != size[2]:
            raise _wrong("input_size", "square: height and width are equal for every network here", size)
        found["size"] = size[1]
    if values.get("crop_mode") not in (None, "center"):
        raise _wrong("crop_mode", "center, the only one that mmref has", values["crop_mode"])
    for key, name in (("crop_pct", "crop_ratio"), ("mean", "mean"), ("std", "std")):
        value = values.get(key)
        if value is not None:
            numbers = value if isinstance(value, list) else [value]
            if not numbers or len(numbers) > 64 or not all(_number(n) for n in numbers) or (
                    isinstance(value, list) != (name != "crop_ratio")):
                raise _wrong(key, "a finite number" if name == "crop_ratio" else "a list of finite numbers", value)
            found[name] = tuple(map(float, numbers)) if isinstance(value, list) else float(value)
    if values.get("interpolation") is not None:
        if not isinstance(values["interpolation"], str):
            raise _wrong("interpolation", "a name", values["interpolation"])
        found["interpolation"] = values["interpolation"]
    return found


def _labels(values):
    names, descriptions = values.get("label_names") or (), values.get("label_descriptions") or {}
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise _wrong("label_names", "a list of text", names)
    if isinstance(descriptions, list) and len(descriptions) == len(names):
        descriptions = dict(zip(names, descriptions, strict=True))
    if not isinstance(descriptions, dict) or not all(isinstance(text, str) for text in descriptions.values()):
        raise _wrong("label_descriptions", "an object {label name: text}, or a list with one text per label name",
                     descriptions)
    return tuple(names), descriptions


def _integer(value, least):
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 31


def _number(value):
    return (isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30
            and math.isfinite(value))
