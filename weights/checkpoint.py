"""Read the tensors of a weights file from any source, without executing anything in it.

`.pth` files in the zip form of `torch.save` go through an interpreter of pickle that calls nothing
(pickle_tensors.py); `.safetensors` files through a strict check of their header (safetensors_file.py); files that come
in parts through their index (sharded.py). Names are those of the file, without the prefixes of wrappers
(state_dicts.py); floating point becomes float32, exactly or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np

from mmref.arguments import check_flag, check_path
from mmref.errors import CheckpointError
from mmref.weights import pickle_tensors, safetensors_file, sharded
from mmref.weights.state_dicts import Choice, check_name, choose
from mmref.weights.zip_records import Records


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weights file, or of a dict.

    path      the file, or the index of several; None for a dict
    format    "zip", "safetensors" or "dict"
    tensors   {name: array}; float32, or integers as they were (`num_batches_tracked`)
    source    what was taken: "flat" for a file that is one state dict, else the entry's path, such as "net_E"
    others    other entries that hold tensors and could have been taken
    foreign   names the file asked for that are not tensors, sorted; none of them was executed
    metadata  text that a safetensors file carries
    prefix    what was cut from the beginning of every name, such as "module."
    notes     what else was decided in reading, in words
    """

    path: Path | None
    format: str
    tensors: dict[str, np.ndarray]
    source: str = "flat"
    others: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    notes: tuple[str, ...] = ()

    @property
    def named(self) -> str:
        """What messages call it: the file, or what it is."""
        return "weights (a dict)" if self.path is None else str(self.path)

    @property
    def account(self) -> str:
        """What was taken and what was left, on one line; empty for a plain state dict without anything to say."""
        taken = f"took {self.source}" * (self.source != "flat" or bool(self.others))
        others = f"also there: {', '.join(self.others[:10])} (prefer, --prefer)" if self.others else ""
        return "; ".join(filter(None, (taken, others, *self.notes)))


def read_checkpoint(path, *, prefer: str = "auto", strict: bool = False, allow_nonfinite: bool = False) -> Checkpoint:
    """Read a `.pth` (zip form) or `.safetensors` file, the index of one in parts, or a folder that holds one of these.

    What the file is is determined by its first bytes. Nothing in it is executed.

    Parameters
    ----------
    prefer
        which entry of a trainer's file to take: a name such as "net" or "state.model", "ema" for a moving average,
        "raw" for the weights it was made of; "auto" takes the moving average where it is there
    strict
        refuse a file that names anything but tensors, instead of passing over it
    allow_nonfinite
        accept NaN and infinity, and negative variances

    Returns
    -------
    Checkpoint
        the tensors by name, metadata, and notes on what was taken

    Raises
    ------
    CheckpointError
        which names the file and the record, for everything that is not a whole, plain, finite checkpoint
    ValueProblem
        if `path` is not a path

    Examples
    --------
    >>> import mmref
    >>> from mmref.models.create import pretrained_weights
    >>> found = mmref.read_checkpoint(pretrained_weights("mobilemamba_nano"))
    >>> found.format, found.tensors["head.l.weight"].shape
    ('safetensors', (10, 160))
    """
    path = check_path("path", path)
    strict, allow_nonfinite = check_flag("strict", strict), check_flag("allow_nonfinite", allow_nonfinite)
    try:
        path = sharded.locate(path)
        kind = _kind(path)
        if kind == "index":
            form, top, foreign, metadata, notes = sharded.read(path, lambda shard: _read_shard(shard, strict))
            choice = choose(top, prefer)
        elif kind == "safetensors":
            sharded.refuse_part(path)
            form, (top, metadata), foreign, notes = kind, safetensors_file.read(path), (), ()
            choice = choose(top, prefer)
        else:
            sharded.refuse_part(path)
            form, metadata = kind, {}
            choice, foreign, notes = _read_zip(path, strict, lambda top: choose(top, prefer))
        tensors = checked(choice.tensors, allow_nonfinite)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: not enough memory to read it") from error
    return Checkpoint(path, form, tensors, choice.source, choice.others, foreign, metadata, choice.prefix,
                      (*choice.notes, *notes))


def from_dict(state: Mapping, *, prefer: str = "auto", allow_nonfinite: bool = False, dtype=np.float32) -> Checkpoint:
    """A state dict in memory, {name: array} or a trainer's dict of them, with the checks of a file.

    Floating point becomes `dtype`. Raises CheckpointError that names the tensor, for arrays of other libraries too.
    """
    try:
        choice = choose(state, prefer, exact=True)
        return Checkpoint(None, "dict", checked({name: _array(name, value) for name, value in choice.tensors.items()},
                                                allow_nonfinite, dtype), choice.source, choice.others,
                          prefix=choice.prefix, notes=choice.notes)
    except CheckpointError as error:
        raise CheckpointError(f"weights (a dict): {error}") from error


def _array(name, value):
    if isinstance(value, (np.ndarray, np.generic)) and not isinstance(value, np.ma.MaskedArray):
        array = np.asarray(value)
        if array.dtype.kind in "fiub":
            return array
        raise CheckpointError(f"{name}: must be an array of real numbers, got {array.dtype}")
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    hint = "; pass tensor.detach().cpu().float().numpy()" if kind.startswith("torch.") else ""
    raise CheckpointError(f"{name}: must be a NumPy array, got {kind}{hint}")


def _kind(path: Path) -> str:
    """"zip", "safetensors" or "index", or an error that says what the file looks like instead."""
    if path.exists() and not path.is_file():
        raise CheckpointError("must be a regular file, or a folder with one checkpoint in it")
    with open(path, "rb") as file:
        head = file.read(512)
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return "safetensors"
    looks = "no weights file mmref knows (zip-form .pth or .safetensors)"
    text = head.lstrip().lower()
    if text.startswith(b"{"):
        return "index"
    if not head:
        looks = "an empty file"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        looks = "an HTML page, perhaps an error page saved by a download"
    elif head.startswith(b"version https://git-lfs"):
        looks = "a git-LFS pointer, not the file it points to: run `git lfs pull`"
    elif head.startswith(b"\x93NUMPY"):
        looks = "a NumPy array file"
    elif head.startswith(b"\x89HDF"):
        looks = "an HDF5 file, as Keras writes"
    elif head[:1] == b"\x80":
        looks = ("a PyTorch file of the old, pre-1.6 form or a plain pickle: load it with PyTorch and save its "
                 "state_dict() again, with torch.save as it is by default")
    elif head[257:262] == b"ustar":
        looks = "a tar archive, perhaps a PyTorch file from before 0.1.10"
    elif path.suffix == ".safetensors":
        looks = "a broken safetensors file (its header does not begin as one)"
    raise CheckpointError(f"is {looks}" if looks.startswith(("a", "no")) else looks)


def _read_zip(path, strict, choosing) -> tuple[Choice, tuple[str, ...], tuple[str, ...]]:
    """(the state dict taken, with arrays; names passed over; notes). choosing(top object) gives the Choice."""
    with Records(path) as records:
        pickle = pickle_tensors.load(records.read("data.pkl"), strict)
        choice = choosing(pickle.value)
        _check_storages(pickle.storages, records)
        arrays, used = _build(choice.tensors, records, path.stat().st_size)
        records.verify(records.infos.keys() - used - {"data.pkl"})
        notes = []
        subclasses = sorted({tensor.subclass for tensor in choice.tensors.values() if tensor.subclass})
        if subclasses:
            notes.append(f"the numbers of tensors of the class {', '.join(subclasses[:3])} taken as they are")
        if records.unchecked:
            notes.append("written without checksums (torch.serialization.set_crc32_options(False)): damage cannot be "
                         "noticed")
        return replace(choice, tensors=arrays), tuple(sorted(pickle.foreign)), tuple(notes)


def _read_shard(path, strict):
    """({name: array}, format, names passed over, metadata, notes) of a part: one flat state dict."""
    kind = _kind(path)
    if kind == "safetensors":
        tensors, metadata = safetensors_file.read(path)
        return tensors, kind, (), metadata, ()
    if kind != "zip":
        raise CheckpointError("a part must be a weights file, not an index")
    choice, foreign, notes = _read_zip(path, strict, _as_it_is)
    return choice.tensors, kind, foreign, {}, notes


def _as_it_is(top):
    """The Choice of a part: its tensors under the names that the index knows."""
    if not isinstance(top, dict) or not all(isinstance(tensor, pickle_tensors.Tensor) for tensor in top.values()):
        raise CheckpointError("must hold a dict of tensors and nothing else, as a part")
    for name in top:
        check_name(name)
    return Choice("flat", top)


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
    for tensor in chosen.values():
        storages[f"data/{tensor.storage.key}"] = tensor.storage
        wanted += prod(tensor.shape)
    if wanted > max(2 * file_size, pickle_tensors.MAX_EXPANDED):  # views may share a storage, but not without end
        raise CheckpointError(f"its tensors ask for {wanted} elements, more than a file of {file_size} bytes can mean")
    loaded = {record: _decode(records.read(record), storage.dtype, order) for record, storage in storages.items()}
    arrays = {}
    for name, tensor in chosen.items():
        flat = loaded[f"data/{tensor.storage.key}"]
        view = np.lib.stride_tricks.as_strided(flat[tensor.offset:], tensor.shape,
                                               [s * flat.itemsize for s in tensor.stride], writeable=False)
        arrays[name] = np.array(-view if tensor.negative else view, order="C")
    return arrays, storages.keys()


def _decode(data, dtype, order):
    """The elements of a record; bfloat16 is the upper half of a float32."""
    if dtype == "bf16":
        return (np.frombuffer(data, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "|b1":
        return np.frombuffer(data, np.uint8) != 0
    stored = np.dtype(dtype).newbyteorder(order)
    return np.frombuffer(data, stored).astype(stored.newbyteorder("="), copy=False)


def checked(tensors: Mapping[str, np.ndarray], allow_nonfinite: bool = False, dtype=np.float32) -> dict:
    """Floating point as `dtype`; NaN, infinity and negative variances refused."""
    result = {}
    for name, array in tensors.items():
        if array.dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                narrowed = array.astype(dtype, copy=False)
            if array.dtype.itemsize > narrowed.dtype.itemsize and not np.array_equal(np.isfinite(array),
                                                                                     np.isfinite(narrowed)):
                raise CheckpointError(f"{name}: has values beyond {narrowed.dtype}")
            if not allow_nonfinite:
                if not np.isfinite(narrowed).all():
                    raise CheckpointError(f"{name}: has NaN or infinity (allow_nonfinite accepts it)")
                if name.endswith("running_var") and (narrowed < 0).any():
                    raise CheckpointError(f"{name}: a variance must not be negative (allow_nonfinite accepts it)")
            array = narrowed
        result[name] = array
    return result
