"""What is known about weights beside their numbers: how pictures are prepared, what the classes are called.

It comes from the weights' own metadata first, then from a timm-style config.json in their folder, which describes
classifiers only. Published weights have the classes of their data set, ImageNet-1k's or ADE20K's: those that
`pretrained=True` takes, and files that are theirs byte for byte. A file's name says nothing, nor does a number of
classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mmref.errors import CheckpointError, ValueProblem
from mmref.models.variants import Variant


@dataclass(frozen=True)
class Description:
    """`source`: where the parameters come from; `notes`: what was decided in reading them, in words. The others are
    None where the weights say nothing."""

    source: str
    notes: tuple[str, ...] = ()
    transform: object = None
    class_names: tuple[str, ...] | None = None


def default_transform(config: Variant):
    """The evaluation transform of the published weights, at the variant's size; in grey for one input channel. A
    configuration that is not a classifier's brings its own, of another kind."""
    if hasattr(config, "default_transform"):
        return config.default_transform()
    from mmref.data.picture import Transform
    from mmref.data.preparation import IMAGENET_GREY
    if config.in_chans == 1:
        return Transform(config.img_size, mean=IMAGENET_GREY[0], std=IMAGENET_GREY[1])
    return Transform(config.img_size)


def describe_weights(checkpoint, config: Variant, pretrained: bool = False) -> Description:
    """What a `mmref.weights.Checkpoint` says about itself, for the network of `config`.

    Raises CheckpointError for metadata or a config.json that cannot be understood."""
    metadata, notes = checkpoint.metadata, [checkpoint.account] if checkpoint.account else []
    try:
        transform, names = _of_metadata(metadata, config)
    except (CheckpointError, ValueProblem) as error:
        raise CheckpointError(f"{checkpoint.named}: metadata: {error}") from error
    if checkpoint.path is not None and not pretrained and isinstance(config, Variant):
        beside = _of_config(checkpoint.path, config, notes, transform is None, names is None)
        transform, names = transform or beside[0], names or beside[1]
    if names is None and (published := _published_names(config)) and (pretrained or _is_published(checkpoint)):
        names = published
    return Description(checkpoint.named, tuple(notes), transform, names)


def _published_names(config):
    """What the outputs of the published weights are called, None for a network that has none of their size."""
    if hasattr(config, "published_names"):
        return config.published_names()
    from mmref.data.labels import imagenet_names
    return imagenet_names() if config.num_classes == 1000 else None


def _of_metadata(metadata, config):
    """(transform, class names) of a safetensors file's metadata, each None where it says nothing."""
    from mmref.data.labels import check_class_names
    from mmref.weights.json_file import parse_json
    transform = names = None
    if "transform" in metadata:
        kind = type(default_transform(config))
        transform = kind.from_dict(parse_json(metadata["transform"].encode("utf-8", "replace"), "transform"))
    if "class_names" in metadata and config.num_classes:
        names = check_class_names("class_names", parse_json(metadata["class_names"].encode("utf-8", "replace"),
                                                            "class_names"), config.num_classes)
    return transform, names


def _of_config(path, config, notes, want_transform, want_names):
    """(transform, class names) of the config.json beside a weights file; `notes` grows by what was taken."""
    from mmref.weights.config_file import config_beside, read_config
    beside = config_beside(path)
    found = beside and read_config(beside, lambda name: _is_name_of(config, name))
    if not found:
        return None, None
    other = _is_for_another(found, config)
    if other:
        notes.append(f"{beside.name} beside them is not theirs and not used: {other}")
        return None, None
    transform = names = None
    try:
        if want_transform and found.transform:
            transform = replace(default_transform(config), **found.transform)
        if want_names and found.label_names:
            names = _names(found, config, notes)
    except ValueProblem as error:
        raise CheckpointError(f"{beside}: {error}") from error
    taken = [*found.transform] if transform else []
    taken += ["class names"] if names else []
    if taken:
        notes.append(f"{', '.join(taken)} from {beside.name} beside them")
    return transform, names


def _is_name_of(config, architecture):
    """Whether timm's name of an architecture, `name.tag`, is that of the variant, dagger or not."""
    name = architecture.partition(".")[0].lower()
    return name in (config.name, f"{config.name}s")


def _is_for_another(found, config) -> str:
    if found.architecture is not None and not _is_name_of(config, found.architecture):
        return f"its architecture is {found.architecture}"
    if found.num_classes is not None and config.num_classes not in (0, found.num_classes):
        return f"it has {found.num_classes} classes, the weights {config.num_classes}"
    if found.in_chans is not None and found.in_chans != config.in_chans:
        return f"it has {found.in_chans} input channels, the weights {config.in_chans}"
    return ""


def _names(found, config, notes):
    """Class names of a configuration: its label names, or descriptions where the names are WordNet identifiers."""
    from mmref.data.labels import check_class_names, imagenet_ids, imagenet_names
    names = found.label_names
    if not config.num_classes:
        return None
    if len(names) != config.num_classes:
        notes.append(f"its {len(names)} label_names are not used, the weights have {config.num_classes} classes")
        return None
    if names == imagenet_ids():
        return imagenet_names()
    if all(name[:1] == "n" and name[1:].isdigit() for name in names):
        names = [found.descriptions.get(name) or name for name in names]
    return check_class_names("label_names", list(names), config.num_classes)


def _is_published(checkpoint) -> bool:
    """Whether weights are a published file, or converted from one: by its hash where that is on record, or by the
    address that `mmref weights fetch` leaves in what it converts."""
    from mmref.weights.store import known_sha256, manifest, sha256
    if checkpoint.metadata.get("source") in {entry.url for entry in manifest().values()}:
        return True
    known = known_sha256()
    return bool(known) and checkpoint.path is not None and Path(checkpoint.path).suffix != ".json" and (
        sha256(checkpoint.path) in known)
