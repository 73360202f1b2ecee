"""What every network shares: checks of its input, parameters, other precisions, folding, a frozen copy for engines."""

from __future__ import annotations

import copy
import math

import numpy as np

from mmref.arguments import (
    check_array,
    check_dtype,
    check_flag,
    check_integer,
    check_integers,
    check_kind,
    check_ndarray,
)
from mmref.errors import ShapeError, ValueProblem
from mmref.nn.layer import BatchNorm, Layer
from mmref.nn.operation import Symbol


class Network(Layer):
    """Base of networks: a `config` with `name`, `img_size`, `in_chans` and `num_classes`; `transform`, how a picture
    becomes its input; `class_names`, its labels (both may be None); `source`, where its parameters come from, and
    `notes`, what was decided in reading them, in words."""

    def __init__(self, config):
        super().__init__()
        self.config, self.transform, self.class_names = config, None, None
        self.source, self.notes = "", ()

    def check_input(self, x) -> None:
        """Validate an input: rank, channels, dtype, at least one pixel, finite values. ShapeError or ValueProblem."""
        if isinstance(x, Symbol):  # a backend that traces the network checks its inputs itself
            return
        check_shape(x, self.config.in_chans, self.dtype)
        if not np.isfinite(x).all():
            raise_not_finite()

    def stages(self) -> tuple:
        """Functions of a map that make up the network up to its last map, the first of which checks the input; a
        network with stages has `strides`, the pixels of the picture that a pixel of each one's result stands for."""
        raise NotImplementedError

    def forward_features(self, x):
        """The last feature map, (B, C, H/stride, W/stride)."""
        for stage in self.stages():
            x = stage(x)
        return x

    def forward_intermediates(self, x, indices: int | list[int] | None = None, intermediates_only: bool = False):
        """Feature maps of the stages, at `strides`; the first is that of the stem.

        `indices`: which (negative ones count from the end), an int n for the last n, None for all.
        Returns (last feature map, list of the maps asked for), or the list alone. Raises ShapeError and ValueProblem.
        """
        wanted = take_indices(indices, len(self.strides))
        intermediates_only = check_flag("intermediates_only", intermediates_only)
        maps = []
        for stage in self.stages():
            if intermediates_only and len(maps) > max(wanted, default=-1):
                break                                # nobody will see what follows
            x = stage(x)
            maps.append(x)
        chosen = [maps[i] for i in wanted]
        return chosen if intermediates_only else (x, chosen)

    def initialise(self, seed: int = 0, dtype=np.float32) -> Network:
        """Give the network the starting values of training, the same for the same seed, in place; returns it."""
        rng = np.random.default_rng(seed)
        for _, layer, attribute in self.named_parameters():
            setattr(layer, attribute, layer.initial(attribute, rng).astype(dtype))
        return self

    def frozen(self, parameters: bool = False) -> Network:
        """A copy of the tree of layers that shares the parameters: layers exchanged in one are not in the other. With
        `parameters` these are copied too (one that several layers share stays one)."""
        clone, copies = _copy_tree(self), {}
        clone.name_layers()
        for _, layer, attribute in clone.named_parameters() if parameters else ():
            array = getattr(layer, attribute)
            if id(array) not in copies:
                copies[id(array)] = array, array.copy()  # the array beside, so that its id stays its own
            setattr(layer, attribute, copies[id(array)][1])
        return clone

    @property
    def dtype(self) -> np.dtype:
        """float32, or float64 after `astype`. ValueProblem where parameters are not loaded yet, ShapeError where one is
        no array."""
        for name, layer, attribute in self.named_parameters():
            return _parameter(name, layer, attribute).dtype
        return np.dtype(np.float32)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Parameters by checkpoint name: learned ones, running statistics and wavelet filters. Not copies."""
        return {name: getattr(layer, attribute) for name, layer, attribute in self.named_parameters()}

    def astype(self, dtype) -> Network:
        """A copy of the model that computes in `dtype`, float32 or float64. Raises ValueProblem for another."""
        dtype = check_dtype("dtype", dtype)
        clone = copy.deepcopy(self)
        for name, layer, attribute in clone.named_parameters():
            setattr(layer, attribute, np.asarray(_parameter(name, layer, attribute), dtype))
        return clone

    def fold_batchnorm(self) -> Network:
        """The same function with every batch norm folded into a convolution or linear layer; self is unchanged.

        The result has the parameter names of folded checkpoints. Folding a folded model gives a copy.
        """
        folded = super().fold_batchnorm()
        folded = copy.deepcopy(folded)  # names are kept on the layers, and layers without BN are still shared
        folded.name_layers()
        return folded

    @property
    def folded(self) -> bool:
        """Whether batch norms are folded."""
        return not any(isinstance(layer, BatchNorm) for _, layer in self.walk())

    def parameter_count(self) -> int:
        """Learned parameters, as papers count them."""
        return sum(math.prod(layer.shapes[name]) for _, layer, name in self.named_parameters() if layer.learned(name))


def _parameter(name, layer, attribute):
    """The array of a parameter, which may not be loaded yet: then ValueProblem; ShapeError for what is no array."""
    array = getattr(layer, attribute)
    if array is None:
        raise ValueProblem(f"model must have parameters, got none for {name}: mmref.create_model gives it some")
    check_ndarray(name, array)
    return array


def _copy_tree(layer):
    clone = copy.copy(layer)
    for name, child in layer.children.items():
        setattr(clone, name, _copy_tree(child))
    return clone


def raise_not_finite():
    raise ValueProblem("x must be finite, got NaN or infinity")


def check_shape(x, channels, dtype):
    """`check_input` but for the values."""
    check_ndarray("x", x, f"batch {channels} height width")
    if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
        raise ShapeError(f"x must have shape (batch, {channels}, height, width) with height and width >= 1, "
                         f"got {x.shape}")
    if x.dtype != dtype:
        raise ShapeError(f"x must be {dtype}, the model's dtype, got {x.dtype} (x.astype(np.{dtype}) is; model.astype "
                         f"changes the model's)")


def check_numpy_model(model) -> None:
    """ValueProblem unless `model` is a network that runs in NumPy, layer by layer."""
    check_kind("model", model, Network, "a network that runs in NumPy, of create_model(..., backend='numpy')")


def check_features(x, channels, dtype):
    """Validate a last feature map (batch, channels, height, width) that `forward_head` is given."""
    traced = isinstance(x, Symbol)  # whose sizes must not be looked at, or its graph would hold for them alone
    check_array("x", x, "batch channels height width", dtype)
    if x.shape[1] != channels or not traced and 0 in x.shape[2:]:
        raise ShapeError(f"x must be a last feature map (batch, {channels}, height, width) with height and width >= 1, "
                         f"got shape {x.shape}")


def take_indices(indices, count):
    """Normalise timm-style `indices` (None, how many of the last, or a list of positions, negative ones from the end)
    to a list of positions 0..count-1. Raises ValueProblem for anything else."""
    if indices is None:
        return list(range(count))
    if isinstance(indices, (int, np.integer)):
        last = check_integer("indices, where it counts maps,", indices, 1, count)
        return list(range(count - last, count))
    chosen = check_integers("indices", indices, None, -count, count - 1)
    return [index + count if index < 0 else index for index in chosen]
