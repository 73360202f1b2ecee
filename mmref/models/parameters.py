"""Checkpoint tensors into a model, strictly: every parameter exactly once, with its shape.

A state dict is a flat {name: array}, names as in the published checkpoints; `num_batches_tracked`, which PyTorch's
batch norm keeps beside its statistics and inference ignores, may be there or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mmref.errors import ParameterMismatch
from mmref.models.mobilemamba import MobileMamba
from mmref.models.variants import VARIANTS, Variant

LISTED = 10  # differences an error spells out


def is_folded(state: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of a checkpoint with batch norms folded in."""
    return "patch_embed.0.weight" in state


def expected_shapes(config: Variant, folded: bool = False) -> dict[str, tuple[int, ...]]:
    """{parameter name: shape} of a variant, in the order of the call."""
    return _shapes(_skeleton(config, folded))


def _skeleton(config, folded):
    model = MobileMamba(config)
    return model.fold_batchnorm() if folded else model


def _shapes(model):
    return {name: layer.shapes[attribute] for name, layer, attribute in model.named_parameters()}


def load_parameters(config: Variant, state: Mapping[str, np.ndarray], dtype=np.float32,
                    source: str = "weights") -> MobileMamba:
    """A model with the parameters of `state`, folded where they are folded.

    Arrays are converted to `dtype` (copied if that changes them). Raises ParameterMismatch, which lists the first
    ten differences and names the variant that would fit, if one does.
    """
    model = _skeleton(config, is_folded(state))
    shapes = _shapes(model)
    got = {name: np.shape(array) for name, array in state.items() if not name.endswith("num_batches_tracked")}
    if shapes != got:
        raise ParameterMismatch(_differences(config, shapes, got, state, source))
    for name, layer, attribute in model.named_parameters():
        setattr(layer, attribute, np.asarray(state[name], dtype))
    return model


def random_parameters(config: Variant, seed: int = 0, dtype=np.float32) -> MobileMamba:
    """An untrained model: the starting values of training, the same for the same seed."""
    model = MobileMamba(config)
    rng = np.random.default_rng(seed)
    for _, layer, attribute in model.named_parameters():
        setattr(layer, attribute, layer.initial(attribute, rng).astype(dtype))
    return model


def head_classes(state: Mapping[str, np.ndarray]) -> int | None:
    """The number of classes that a checkpoint's head answers, None where it has no head."""
    for name in ("head.l.weight", "head.weight"):
        if name in state:
            return len(state[name])
    return None


def _differences(config, shapes, got, state, source):
    problems = [f"missing {name} {shape}" for name, shape in shapes.items() if name not in got]
    problems += [f"unexpected {name} {shape}" for name, shape in got.items() if name not in shapes]
    problems += [f"{name}: expected {shapes[name]}, got {shape}" for name, shape in got.items()
                 if name in shapes and shapes[name] != shape]
    fits = fitting_variants(state)
    listed = "; ".join(problems[:LISTED])
    more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return (f"{source}: {len(problems)} of its parameters do not fit {config.name} with {config.num_classes} classes: "
            f"{listed}{more}. They fit {' or '.join(fits) if fits else 'no variant mmref knows'}.")


def fitting_variants(state: Mapping[str, np.ndarray]) -> list[str]:
    """The variants whose names and shapes are those of `state`, whatever the number of classes."""
    got = {name: np.shape(array) for name, array in state.items() if not name.endswith("num_batches_tracked")}
    classes = head_classes(state) or 0
    return [f"{variant.name} with num_classes={classes}" for variant in VARIANTS.values()
            if expected_shapes(replace(variant, num_classes=classes), is_folded(state)) == got]
