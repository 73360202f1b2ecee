"""`list_models` and `create_model`: names, weights and backends, in timm's habits."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from mmref.arguments import check_choice, check_dtype, check_flag, check_integer, check_kind, check_weights
from mmref.errors import MissingBackend, ParameterMismatch, ValueProblem
from mmref.models.mobilemamba import MobileMamba
from mmref.models.parameters import head_classes, load_parameters, random_parameters
from mmref.models.variants import MOST_CLASSES, VARIANTS, resolve
from mmref.nn.functional import check_backend

__all__ = ["create_model", "list_models"]


def list_models(filter: str = "*") -> list[str]:
    """Names of the models, those that match a shell-style pattern."""
    from fnmatch import fnmatch
    check_kind("filter", filter, str, "a pattern such as '*_b*'")
    return [name for name in VARIANTS if fnmatch(name, filter)]


def create_model(name: str = "mobilemamba_nano", weights=None, *, pretrained: bool = False,
                 num_classes: int | None = None, backend: str = "numpy", dtype=np.float32, seed: int = 0,
                 threads: int | None = None, graph: bool | None = None, matmul: str = "cublas", tf32: bool = False,
                 **changes):
    """Build a network.

    name         a name of `list_models()`, upstream's spelling (`MobileMamba_T2`), or with an s at the end for the
                 dagger weights (`mobilemamba_t2s`)
    weights      a .safetensors or .pth file, or a state dict {name: array}; None for untrained parameters drawn
                 from `seed`
    pretrained   use the weights in the box (mobilemamba_nano) or the published file in the user's cache
    num_classes  checked against the weights; None takes theirs, or the variant's own; 0 leaves the head out
                 (the result is then the pooled features)
    backend      "numpy" (the reference), "numba" (compiled, any CPU) or "cuda" (an NVIDIA GPU)
    dtype        float32, or float64 (numpy backend only)
    threads      for backend="numba": how many, None for all cores
    graph, matmul, tf32  for backend="cuda": see `mmref.engine.cuda.DeviceModel`
    changes      fields of `mmref.models.variants.Variant` to replace, e.g. scan_order="cross", for untrained networks

    Returns the model: callable, (B, 3, H, W) -> (B, num_classes). Raises ValueProblem (unknown name, impossible
    change), CheckpointError and ParameterMismatch (weights), MissingBackend.
    """
    check_backend(backend)
    weights, pretrained = check_weights(weights), check_flag("pretrained", pretrained)
    dtype, seed = check_dtype("dtype", dtype), check_integer("seed", seed, 0)
    num_classes = None if num_classes is None else check_integer("num_classes", num_classes, 0, MOST_CLASSES)
    threads = None if threads is None else check_integer("threads", threads, 1)
    graph = None if graph is None else check_flag("graph", graph)
    check_choice("matmul", matmul, ("cublas", "own"))
    tf32 = check_flag("tf32", tf32)
    config, dagger = resolve(name)
    if not set(changes) <= {field.name for field in fields(config)}:
        raise ValueProblem(f"changes must be fields of Variant, got {', '.join(changes)}")
    config = replace(config, **changes)
    if weights is not None and pretrained:
        raise ValueProblem("weights and pretrained=True exclude each other: got both")
    if pretrained:
        weights = pretrained_weights(config.name + "s" * dagger)
    if weights is None:
        if num_classes is not None:
            config = replace(config, num_classes=num_classes)
        model = random_parameters(config, seed, dtype)
        metadata = {}
    else:
        model, metadata = _load(config, weights, num_classes, dtype)
    _describe(model, metadata)
    if backend == "numpy":
        return model
    if dtype != np.float32:
        raise ValueProblem(f"dtype must be float32 for backend {backend!r}, got {dtype}")
    if backend == "cuda":
        from mmref.engine.cuda import DeviceModel
        return DeviceModel(model, graph, matmul, tf32)
    return _compile(model, threads)


def _load(config, weights, num_classes, dtype):
    source, metadata = "weights", {}
    if isinstance(weights, (str, Path)):
        from mmref.weights import read_checkpoint
        checkpoint = read_checkpoint(weights)
        source, metadata, weights = str(checkpoint.path), checkpoint.metadata, checkpoint.tensors
    offered = head_classes(weights)
    if num_classes is None or offered is None:
        num_classes = offered or 0
    if num_classes == 0:
        weights = {name: array for name, array in weights.items() if not name.startswith("head.")}
    elif num_classes != offered:
        raise ParameterMismatch(f"{source}: num_classes must be {offered}, which its head answers, or 0 for no head, "
                                f"got {num_classes}")
    return load_parameters(replace(config, num_classes=num_classes), weights, dtype, source), metadata


def pretrained_weights(name: str) -> Path:
    """The file with the trained weights of a model: in the box for mobilemamba_nano, else in the user's cache.

    Raises CheckpointError that says which file to get, from where, and how to convert it."""
    if name == "mobilemamba_nano":
        from importlib.resources import files
        return Path(str(files("mmref.weights") / "mobilemamba_nano.safetensors"))
    from mmref.weights import pretrained_path
    return pretrained_path(name)


def _describe(model: MobileMamba, metadata) -> None:
    """Give the model its picture transform and class names: the weights' own, else ImageNet's habits."""
    import json

    from mmref.data.picture import Transform
    model.transform = (Transform.from_dict(json.loads(metadata["transform"])) if "transform" in metadata
                       else Transform(size=model.config.img_size))
    if "class_names" in metadata:
        model.class_names = tuple(json.loads(metadata["class_names"]))
    elif model.config.num_classes == 1000:
        from mmref.data.labels import class_names
        model.class_names = tuple(class_names(1000))


def _compile(model, threads):
    try:
        from mmref.engine import CompiledModel
    except ImportError as error:
        raise MissingBackend(f"backend 'numba' cannot be used here: {error}; pip install numba") from error
    return CompiledModel(model, threads=threads)
