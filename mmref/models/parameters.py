"""Checkpoint tensors into a model, strictly: every parameter exactly once, with its shape.

A state dict is a flat {name: array}, names as in the published checkpoints; `num_batches_tracked`, which PyTorch's
batch norm keeps beside its statistics and inference ignores, may be there or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mmref.errors import ParameterMismatch
from mmref.models.network import Network
from mmref.models.registry import can_be_headless, classes_of, head_prefix, models, training_prefixes
from mmref.models.variants import Variant

LISTED = 10  # differences an error spells out
PREFIXES = ("", "backbone.")  # of a backbone's names: alone, and in a network built on it


def is_folded(state: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of a checkpoint with batch norms folded in."""
    return any(f"{prefix}patch_embed.0.weight" in state for prefix in PREFIXES) \
        and not any(name.endswith(".running_var") for name in state)


def expected_shapes(config: Variant, folded: bool = False) -> dict[str, tuple[int, ...]]:
    """{parameter name: shape} of a variant, in the order of the call."""
    return _shapes(_skeleton(config, folded))


def _skeleton(config, folded):
    model = config.build()
    return model.fold_batchnorm() if folded else model


def _shapes(model):
    return {name: layer.shapes[attribute] for name, layer, attribute in model.named_parameters()}


def load_parameters(config: Variant, state: Mapping[str, np.ndarray], dtype=np.float32, source: str = "weights",
                    num_classes: int | None = None, in_chans: int | None = None) -> Network:
    """A model with the parameters of `state`, folded where they are folded.

    num_classes, in_chans  what is wanted; None takes what the state has (no head if it has none), 0 classes leave
                           its head out

    Arrays are converted to `dtype` (copied if that changes them). Raises ParameterMismatch: a head or channels that
    the state does not have; parameters that do not fit, of which it lists the first ten and names the variant that
    would fit, if one does. The model's `notes` say what was left alone.
    """
    config = _sized(config, state, source, num_classes, in_chans)
    if num_classes == 0:
        state = {name: array for name, array in state.items() if not name.startswith(head_prefix(config))}
    model = _skeleton(config, is_folded(state))
    shapes, got = _shapes(model), _parameter_shapes(state, config)
    if shapes != got:
        raise ParameterMismatch(f"{source}: {_differences(config, shapes, got)} {_advice(state)}")
    for name, layer, attribute in model.named_parameters():
        array = np.asarray(state[name])
        if array.dtype.kind != "f":
            raise ParameterMismatch(f"{source}: {name} must be of floating point, got {array.dtype}")
        setattr(layer, attribute, array.astype(dtype, copy=False))
    model.notes = tuple(f"{prefix}*, {count} tensors that only training needs, left alone"
                        for prefix, count in _counts_of_training(state, config).items())
    return model


def _counts_of_training(state, config):
    """{prefix: how many} of the tensors in `state` that take part in the training of this network only."""
    counts = {prefix: sum(name.startswith(prefix) for name in state) for prefix in training_prefixes(config)}
    return {prefix: count for prefix, count in counts.items() if count}


def random_parameters(config: Variant, seed: int = 0, dtype=np.float32) -> Network:
    """An untrained model: the starting values of training, the same for the same seed."""
    return config.build().initialise(seed, dtype)


def head_classes(state: Mapping[str, np.ndarray]) -> int | None:
    """The number of classes that a checkpoint's head answers, None where it has no head."""
    return (_first_size(state, ("head.l.weight", "head.weight", "classifier.head.weight"), 0, 2)
            or _first_size(state, ("decode_head.conv_seg.weight",), 0, 4))


def stem_channels(state: Mapping[str, np.ndarray]) -> int | None:
    """The number of input channels of a checkpoint's first convolution, None where it has none."""
    names = [f"{prefix}patch_embed.0.{rest}" for prefix in PREFIXES for rest in ("c.weight", "weight")]
    return _first_size(state, [*names, "patch_embed.proj.weight"], 1, 4)


def _first_size(state, names, axis, rank):
    for name in names:
        shape = np.shape(state.get(name, ()))
        if len(shape) == rank and shape[axis]:
            return shape[axis]
    return None


def _sized(config, state, source, num_classes=None, in_chans=None):
    """The variant with the classes and channels of `state`, or an error where others are wanted."""
    classes, channels = classes_of(config, state) or head_classes(state), stem_channels(state)
    headed, headless = any(name.startswith(head_prefix(config)) for name in state), can_be_headless(config)
    if num_classes and classes is None and not headed and headless:
        raise ParameterMismatch(f"{source}: num_classes={num_classes} needs a head, and the weights have none; without "
                                f"num_classes the network gives pooled features")
    if not headed:                # that it answers something tells of another kind of network
        classes = None
    if num_classes and classes not in (None, num_classes):
        raise ParameterMismatch(f"{source}: num_classes must be {classes}, which its head answers"
                                f"{', or 0 for no head' if headless else ''}, got {num_classes}")
    if in_chans and channels not in (None, in_chans):
        raise ParameterMismatch(f"{source}: in_chans must be {channels}, which its first convolution takes, "
                                f"got {in_chans}")
    if num_classes is None:  # half a head is an error that names what is missing, not a network without head
        half = classes is None and (headed or not headless)
        num_classes = config.num_classes if half else classes or 0
    return replace(config, num_classes=num_classes, in_chans=channels or in_chans or config.in_chans)


def _parameter_shapes(state, config):
    """{name: shape} of what inference needs."""
    return {name: np.shape(array) for name, array in state.items()
            if not name.endswith("num_batches_tracked") and not name.startswith(training_prefixes(config))}


def _differences(config, shapes, got):
    problems = [f"missing {name} {shape}" for name, shape in shapes.items() if name not in got]
    problems += [f"unexpected {name} {shape}" for name, shape in got.items() if name not in shapes]
    problems += [f"{name}: expected {shapes[name]}, got {shape}" for name, shape in got.items()
                 if name in shapes and shapes[name] != shape]
    listed = "; ".join(problems[:LISTED])
    more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return (f"{len(problems)} of its parameters do not fit {config.name} with {config.num_classes} classes: "
            f"{listed}{more}.")


def _advice(state):
    fits = fitting_variants(state)
    if fits:
        return f"They fit {' or '.join(described(variant) for variant in fits)}."
    prefix, inside = "", state
    for _ in range(4):  # prefixes of a larger model: visual.trunk.
        first = next(iter(inside), "").partition(".")[0] + "."
        prefix += first
        inside = {name.removeprefix(first): array for name, array in inside.items() if name.startswith(first)}
        fits = fitting_variants(inside)
        if fits and len(inside) == len(state):
            return f"They would fit {described(fits[0])} without {prefix!r} before every name."
        if fits:
            return (f"Those below {prefix!r} fit {described(fits[0])}; the other {len(state) - len(inside)} belong to "
                    f"something built on it.")
    return "They fit no variant mmref knows."


def fitting_variants(state: Mapping[str, np.ndarray]) -> list[Variant]:
    """The variants whose names and shapes are those of `state`, with its number of classes and of input channels."""
    sized = (_sized(variant, state, "") for variant in models().values())
    return [variant for variant in sized
            if expected_shapes(variant, is_folded(state)) == _parameter_shapes(state, variant)]


def described(variant: Variant) -> str:
    """A variant by name, with its classes, and its input channels where they are not three."""
    head = f"with num_classes={variant.num_classes}" if variant.num_classes else "without head"
    channels = f", in_chans={variant.in_chans}" if variant.in_chans != 3 else ""
    return f"{variant.name} {head}{channels}"


def account_of_fit(state: Mapping[str, np.ndarray]) -> str:
    """In words, which variants `state` fits; if none, which is nearest and what is missing or too much."""
    fits = fitting_variants(state)
    folded = " (folded)" if is_folded(state) else ""
    if fits:
        return f"fits {' or '.join(map(described, fits))}{folded}"
    nearest, most = None, 0
    for variant in models().values():
        shapes, got = expected_shapes(_sized(variant, state, ""), is_folded(state)), _parameter_shapes(state, variant)
        common = len(shapes.items() & got.items())
        if common > most:
            nearest, most = (_sized(variant, state, ""), shapes, got), common
    if nearest is None:
        return "fits no variant mmref knows: no tensor in it has a name and shape of theirs"
    return f"fits no variant mmref knows, nearest {nearest[0].name}: {_differences(*nearest)} {_advice(state)}"
