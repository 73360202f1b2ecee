"""`list_models` and `create_model`: names, weights and backends, following timm's conventions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from mmref.arguments import MATMULS, check_choice, check_dtype, check_flag, check_integer, check_kind, check_weights
from mmref.data.labels import read_class_names
from mmref.errors import CheckpointError, MissingBackend, ValueProblem
from mmref.models.description import Description, default_transform, describe_weights
from mmref.models.parameters import load_parameters, random_parameters
from mmref.models.registry import models, resolve
from mmref.models.variants import MOST_CHANNELS, MOST_CLASSES
from mmref.nn.functional import check_backend

__all__ = ["create_model", "list_models"]


def list_models(filter: str = "*") -> list[str]:
    """Names of the models, those that match a shell-style pattern.

    Parameters
    ----------
    filter
        a pattern such as '*_b*'

    Returns
    -------
    list of str
        the names, family by family

    Raises
    ------
    ValueProblem
        for something else than a text

    Examples
    --------
    >>> import mmref
    >>> mmref.list_models("mobilemamba_b?")
    ['mobilemamba_b1', 'mobilemamba_b2', 'mobilemamba_b4']
    """
    from fnmatch import fnmatch
    check_kind("filter", filter, str, "a pattern such as '*_b*'")
    return [name for name in models() if fnmatch(name, filter)]


def create_model(name: str = "mobilemamba_nano", weights=None, *, pretrained: bool = False,
                 num_classes: int | None = None, in_chans: int | None = None, prefer: str = "auto", class_names=None,
                 backend: str = "numpy", dtype=np.float32, seed: int = 0, threads: int | None = None,
                 graph: bool | None = None, matmul: str = "cublas", tf32: bool = False, **changes):
    """Build a network.

    The model is callable, (B, in_chans, H, W) -> (B, num_classes). Its `transform` and `class_names` (None where nobody
    knows them) are those of the weights' metadata, or of a timm-style config.json beside them; its `source` says where
    the parameters come from, its `notes` what was decided in reading them.

    Parameters
    ----------
    name
        a name of `list_models()`, upstream's spelling (`MobileMamba_T2`), or with an s at the end for the dagger
        weights (`mobilemamba_t2s`)
    weights
        a .safetensors or .pth file, an index or a folder (see `mmref.read_checkpoint`), or a state dict {name: array};
        None for untrained parameters drawn from `seed`
    pretrained
        use the included weights (mobilemamba_nano, mobilemamba_nano_fpn, mobilemamba_nano_ssdlite) or the published
        file in the user's cache
    num_classes
        checked against the weights; None takes theirs, or the variant's own; 0 leaves the head out (the result is then
        the pooled features)
    in_chans
        channels of the input, checked against the weights; None takes theirs, or 3
    prefer
        which of several state dicts in `weights`: a name, "ema", "raw", or "auto" (the moving average where it is
        there)
    class_names
        names of the outputs: "imagenet", "cifar10", a list or a file (`mmref.data.labels.read_class_names`); None takes
        those that the weights bring, if they do
    backend
        "numpy" (the reference), "numba" (compiled, any CPU) or "cuda" (an NVIDIA GPU)
    dtype
        float32, or float64 (numpy backend only)
    threads
        for backend="numba": how many, None for all cores
    graph, matmul, tf32
        for backend="cuda": see `mmref.engine.cuda.DeviceModel`
    changes
        fields of `mmref.models.variants.Variant` to replace, e.g. scan_order="cross", for untrained networks

    Returns
    -------
    Network or EngineModel
        the model

    Raises
    ------
    ValueProblem
        for an unknown name, an impossible change or a wrong argument
    CheckpointError, ParameterMismatch
        for weights that cannot be read, or are those of another network
    MissingBackend
        where the backend cannot run on this machine

    Examples
    --------
    >>> import mmref, numpy as np
    >>> model = mmref.create_model("mobilemamba_nano", pretrained=True)
    >>> model(np.zeros((2, 3, 128, 96), np.float32)).shape
    (2, 10)
    >>> model.class_names[:3]
    ('airplane', 'automobile', 'bird')
    """
    check_backend(backend)
    weights, pretrained = check_weights(weights), check_flag("pretrained", pretrained)
    dtype, seed = check_dtype("dtype", dtype), check_integer("seed", seed, 0, 2 ** 128 - 1)
    num_classes = None if num_classes is None else check_integer("num_classes", num_classes, 0, MOST_CLASSES)
    in_chans = None if in_chans is None else check_integer("in_chans", in_chans, 1, MOST_CHANNELS)
    check_kind("prefer", prefer, str, "the name of an entry, ema, raw or auto")
    threads = None if threads is None else check_integer("threads", threads, 1)
    graph = None if graph is None else check_flag("graph", graph)
    check_choice("matmul", matmul, MATMULS)
    tf32 = check_flag("tf32", tf32)
    config, dagger = resolve(name)
    if not set(changes) <= {field.name for field in fields(config)}:
        raise ValueProblem(f"changes must be fields of {type(config).__name__}, got {', '.join(changes)}")
    config = replace(config, **changes)
    if weights is not None and pretrained:
        raise ValueProblem("weights and pretrained=True: pass one of them, not both")
    if backend != "numpy" and dtype != np.float32:
        raise ValueProblem(f"dtype must be float32 for backend {backend!r}, got {dtype}")
    if pretrained:
        weights = pretrained_weights(config.name + "s" * dagger)
    if weights is None:
        config = replace(config, num_classes=config.num_classes if num_classes is None else num_classes,
                         in_chans=config.in_chans if in_chans is None else in_chans)
        model = random_parameters(config, seed, dtype)
        about = Description(source=f"untrained, seed {seed}")
    else:
        from mmref.weights import checkpoint
        found = (checkpoint.from_dict(weights, prefer=prefer, dtype=dtype) if isinstance(weights, Mapping)
                 else checkpoint.read_checkpoint(weights, prefer=prefer))
        model = load_parameters(config, found.tensors, dtype, found.named, num_classes, in_chans)
        about = describe_weights(found, model.config, pretrained)
    model.transform = about.transform or default_transform(model.config)
    model.class_names = about.class_names if class_names is None else read_class_names(class_names,
                                                                                       model.config.num_classes)
    model.source, model.notes = about.source, (*about.notes, *model.notes)
    if backend == "numpy":
        return model
    if backend == "cuda":
        from mmref.engine.cuda import DeviceModel
        return DeviceModel(model, graph, matmul, tf32)
    return _compile(model, threads)


def pretrained_weights(name: str) -> Path:
    """The file with the trained weights of a model: one that comes along, else in the user's cache.

    Raises CheckpointError that says which file to get, from where, and how to convert it."""
    from mmref.weights import pretrained_path
    from mmref.weights.store import manifest
    if included := included_weights(name):
        return included
    if name not in manifest():
        raise CheckpointError(f"{name}: mmref knows no trained weights of it to fetch; name a file (weights=..., on "
                              f"the command line --weights)")
    return pretrained_path(name)


def included_weights(name: str) -> Path | None:
    """The file with the trained weights of a model that come along with mmref, None for the others."""
    from importlib.resources import files
    path = Path(str(files("mmref.weights") / f"{name}.safetensors"))
    return path if path.is_file() else None


def _compile(model, threads):
    try:
        from mmref.engine import CompiledModel
    except ImportError as error:
        raise MissingBackend(f"backend 'numba' cannot be used here: {error}; pip install numba") from error
    return CompiledModel(model, threads=threads)
