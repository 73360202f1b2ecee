"""Read the tensors of a weights file, whoever made it, without running anything of it.

`.pth` files in the zip form of `torch.save` go through an interpreter of pickle that calls nothing
(pickle_tensors.py); `.safetensors` files through a strict check of their header (safetensors_file.py). Names are those
of the file, without a `module.` prefix; floating point becomes float32, exactly or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

from mmref.errors import CheckpointError
from mmref.weights import pickle_tensors, safetensors_file
from mmref.weights.zip_records import Records

# Where trainers keep the weights, best first: the moving average before the raw weights.
HOLDERS = ("net_E", "model_ema", "state_dict_ema", "net", "state_dict", "model")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weights file.

    path      the file
    format    "zip" or "safetensors"
    tensors   {name: array}; float32, or integers as they were (`num_batches_tracked`)
    source    what was taken: "flat" for a file that is one state dict, else the entry's name, such as "net_E"
    others    other entries that hold tensors and could have been taken
    foreign   names the file asked for that are no tensors, sorted; none of them was run
    metadata  text that a safetensors file brings along
    """

    path: Path
    format: str
    tensors: dict[str, np.ndarray]
    source: str = "flat"
    others: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path, *, prefer: str = "auto", strict: bool = False, allow_nonfinite: bool = False) -> Checkpoint:
    """Read a `.pth` (zip form) or `.safetensors` file; what it is is told by its first bytes.

    prefer           which entry of a trainer's file to take, such as "net" or "net_E"; "auto" takes the moving
                     average where it is there
    strict           refuse a file that names anything but tensors, instead of passing over it
    allow_nonfinite  accept NaN and infinity, and negative variances

    Raises CheckpointError, which names the file and the record, for everything that is not a whole, plain, finite
    checkpoint.
    """
    path = Path(path)
    try:
        kind = _kind(path)
        if kind == "safetensors":
            if prefer not in ("auto", "flat"):
                raise CheckpointError(f"prefer={prefer!r}: the file is one state dict and has no such entry")
            tensors, metadata = safetensors_file.read(path)
            found = Checkpoint(path, kind, tensors, metadata=metadata)
        else:
            found = _read_zip(path, prefer, strict)
        tensors = _checked(_without_prefix(found.tensors), allow_nonfinite)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: not enough memory to read it") from error
    return Checkpoint(found.path, found.format, tensors, found.source, found.others, found.foreign, found.metadata)


def _kind(path: Path) -> str:
    """"zip" or "safetensors", or an error that says what the file looks like instead."""
    if path.exists() and not path.is_file():
        raise CheckpointError("must be a regular file")
    with open(path, "rb") as file:
        head = file.read(512)
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return "safetensors"
    looks = "no weights file mmref knows (zip-form .pth or .safetensors)"
    text = head.lstrip().lower()
    if not head:
        looks = "an empty file"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        looks = "an HTML page, perhaps an error page saved by a download"
    elif head.startswith(b"version https://git-lfs"):
        looks = "a git-LFS pointer, not the file it points to: run `git lfs pull`"
    elif head.startswith(b"\x93NUMPY"):
        looks = "a NumPy array file"
    elif head[:1] == b"\x80":
        looks = "a PyTorch file of the old, pre-1.6 form or a plain pickle: save it again with a newer torch.save"
    elif head[257:262] == b"ustar":
        looks = "a tar archive, perhaps a PyTorch file from before 0.1.10"
    elif path.suffix == ".safetensors":
        looks = "a broken safetensors file (its header does not begin as one)"
    raise CheckpointError(f"is {looks}" if looks.startswith(("a", "no")) else looks)


def _read_zip(path, prefer, strict):
    with Records(path) as records:
        pickle = pickle_tensors.load(records.read("data.pkl"), strict)
        source, chosen, others = _choose(pickle.value, prefer)
        _check_storages(pickle.storages, records)
        tensors, used = _build(chosen, records, path.stat().st_size)
        records.verify(records.infos.keys() - used - {"data.pkl"})
        return Checkpoint(path, "zip", tensors, source, others, tuple(sorted(pickle.foreign)))


def _choose(top, prefer):
    """(name, state dict, other names) of the entry to take."""
    if not isinstance(top, dict):
        raise CheckpointError(f"must hold a dict of tensors, got a {type(top).__name__}")
    names = dict.fromkeys((*HOLDERS, *top))
    offered = [name for name in names if _is_name(name) and _holds_tensors(top.get(name))]
    if _holds_tensors(top) and not set(offered) & set(HOLDERS):  # beside a holder, a tensor is a loss or a counter
        if prefer not in ("auto", "flat"):
            raise CheckpointError(f"prefer={prefer!r}: the file is one state dict and has no such entry")
        return "flat", top, ()
    if not offered:
        raise CheckpointError(f"holds no state dict, only {', '.join(map(pickle_tensors.short, list(top)[:10]))}")
    if prefer == "auto":
        prefer = offered[0]
    if prefer not in offered:
        raise CheckpointError(f"prefer must be one of {', '.join(offered)}, got {prefer!r}")
    return prefer, top[prefer], tuple(name for name in offered if name != prefer)


def _holds_tensors(value):
    return isinstance(value, dict) and any(isinstance(v, pickle_tensors.Tensor) for v in value.values())


def _check_storages(storages, records):
    """Every storage the pickle names is a record of just its size, wanted or not."""
    for key, storage in storages.items():
        size, expected = records.size(f"data/{key}"), storage.numel * pickle_tensors.ITEM_SIZE[storage.dtype]
        if size != expected:
            raise CheckpointError(f"record 'data/{key}' has {size} bytes, expected {storage.numel} elements of "
                                  f"{storage.dtype}")


def _build(chosen, records, file_size):
    """({name: array}, records used) of a dict of Tensor views; every storage read once, every tensor copied out."""
    order, storages, wanted = records.byte_order(), {}, 0
    for name, tensor in chosen.items():
        _check_name(name)
        if not isinstance(tensor, pickle_tensors.Tensor):
            foreign = isinstance(tensor, pickle_tensors.Foreign)
            kind = f"something of {tensor.name}" if foreign else type(tensor).__name__
            raise CheckpointError(f"{name}: must be a tensor, got {kind}")
        storages[f"data/{tensor.storage.key}"] = tensor.storage
        wanted += prod(tensor.shape)
    if wanted > max(2 * file_size, 1 << 20):  # views may share a storage, but not without end
        raise CheckpointError(f"its tensors ask for {wanted} elements, more than a file of {file_size} bytes can mean")
    loaded = {record: _decode(records.read(record), storage.dtype, order) for record, storage in storages.items()}
    arrays = {}
    for name, tensor in chosen.items():
        flat = loaded[f"data/{tensor.storage.key}"]
        view = np.lib.stride_tricks.as_strided(flat[tensor.offset:], tensor.shape,
                                               [s * flat.itemsize for s in tensor.stride], writeable=False)
        arrays[name] = np.array(view, order="C")
    return arrays, storages.keys()


def _decode(data, dtype, order):
    """The elements of a record; bfloat16 is the upper half of a float32."""
    if dtype == "bf16":
        return (np.frombuffer(data, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "|b1":
        return np.frombuffer(data, np.uint8) != 0
    stored = np.dtype(dtype).newbyteorder(order)
    return np.frombuffer(data, stored).astype(stored.newbyteorder("="), copy=False)


def _is_name(name):
    """Names are printed, and terminals obey control characters; lone surrogates cannot be written."""
    return isinstance(name, str) and name.isprintable() and len(name) <= 200


def _check_name(name):
    if not _is_name(name):
        raise CheckpointError("a tensor's name must be printable text of at most 200 characters, "
                              f"got {pickle_tensors.short(name)}")


def _without_prefix(tensors: Mapping) -> dict:
    """Names without the `module.` that PyTorch's data-parallel wrappers put before them."""
    for name in tensors:
        _check_name(name)
    plain = {name.removeprefix("module."): array for name, array in tensors.items()}
    if len(plain) != len(tensors):
        raise CheckpointError("some names are there with and without the prefix module.")
    return plain


def _checked(tensors, allow_nonfinite):
    """Floating point as float32; NaN, infinity and negative variances refused."""
    result = {}
    for name, array in tensors.items():
        if array.dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                narrowed = array.astype(np.float32, copy=False)
            if array.dtype == np.float64 and not np.array_equal(np.isfinite(array), np.isfinite(narrowed)):
                raise CheckpointError(f"{name}: has values beyond float32")
            if not allow_nonfinite:
                if not np.isfinite(narrowed).all():
                    raise CheckpointError(f"{name}: has NaN or infinity (allow_nonfinite accepts it)")
                if name.endswith("running_var") and (narrowed < 0).any():
                    raise CheckpointError(f"{name}: a variance must not be negative (allow_nonfinite accepts it)")
            array = narrowed
        result[name] = array
    return result
