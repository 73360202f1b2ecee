"""Read and write `.safetensors` files: the library's own, with the checks it leaves out.

The library accepts duplicate names in the header, and silently permutes arrays that are not C-contiguous when it
writes them; here the first is refused and the second cannot happen.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

import numpy as np

from mmref.errors import CheckpointError
from mmref.files import replacing
from mmref.weights.json_file import parse_json
from mmref.weights.pickle_tensors import MAX_EMPTY, short

MAX_HEADER = 16 << 20  # bytes; the format allows 100 MB, which as Python objects would fill a gigabyte
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
           "I8": "|i1", "U8": "|u1", "BOOL": "|b1"}


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """({name: array}, metadata). bfloat16 is widened to float32. Raises CheckpointError without the file's name."""
    with open(path, "rb") as file:
        entries, metadata = _header(file, os.fstat(file.fileno()).st_size)
        body = memoryview(file.read(max((end for *_, end in entries.values()), default=0)))
    tensors = {}
    for name, (dtype, shape, begin, end) in entries.items():
        if end > len(body):
            raise CheckpointError("the file became shorter while it was read")
        array = np.frombuffer(body[begin:end], np.uint8 if dtype == "BOOL" else _DTYPES[dtype])
        if dtype == "BOOL":
            array = array != 0
        elif dtype == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array.reshape(shape).astype(array.dtype.newbyteorder("="))
    return tensors, metadata


def _header(file, file_size):
    """({name: (dtype, shape, begin, end)}, metadata), every byte of the file accounted for before any is read."""
    size, room = int.from_bytes(file.read(8), "little"), file_size - 8
    if room < 0 or size > min(MAX_HEADER, room):
        limit = min(MAX_HEADER, max(room, 0))
        raise CheckpointError(f"safetensors header must be at most {limit} bytes long, got {size}")
    header = parse_json(file.read(size), "safetensors header")
    if not isinstance(header, dict):
        raise CheckpointError("safetensors header must be an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("safetensors metadata must be text")
    entries, position = {name: _entry(name, value) for name, value in header.items()}, 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position or end > room - size:
            raise CheckpointError(f"{short(name)}: bytes {begin} to {end} overlap, leave a gap or lie outside the file")
        position = end
    if position != room - size:
        raise CheckpointError(f"{room - size - position} bytes follow the last tensor")
    return entries, metadata


def _entry(name, value):
    """(dtype, shape, begin, end) of a header entry, checked in Python integers before any array exists."""
    valid = isinstance(value, dict) and set(value) == {"dtype", "shape", "data_offsets"}
    dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets")) if valid else (None,) * 3
    valid = valid and isinstance(dtype, str) and dtype in _DTYPES and _integers(shape) and _integers(offsets)
    if not valid or len(offsets) != 2:
        raise CheckpointError(f"{short(name)}: header entry must give a known dtype, shape and two offsets, "
                              f"got {short(value)}")
    elements = prod(shape)
    if not elements and prod(n or 1 for n in shape) > MAX_EMPTY:
        raise CheckpointError(f"{short(name)}: an empty tensor of shape {short(shape)}")
    if offsets[1] - offsets[0] != elements * np.dtype(_DTYPES[dtype]).itemsize:
        raise CheckpointError(f"{short(name)}: {offsets[1] - offsets[0]} bytes cannot hold shape {short(shape)} of "
                              f"{dtype}")
    return dtype, shape, *offsets


def _integers(values):
    return isinstance(values, list) and len(values) <= 64 and all(type(n) is int and 0 <= n < 1 << 63 for n in values)


def write(path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write a file all at once or not at all, and read it back bit for bit before it takes the place of an old one.

    Raises CheckpointError if what was read back differs, OSError where the folder or disk cannot take it.
    """
    from safetensors.numpy import save
    path = Path(path)
    plain = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    plain = {name: array.reshape(np.shape(tensors[name])) for name, array in plain.items()}  # 0-d stays 0-d
    if "__metadata__" in plain:
        raise CheckpointError("a safetensors file cannot hold a tensor called __metadata__")
    with replacing(path) as temporary:
        temporary.write_bytes(save(plain, metadata=metadata))
        found, found_metadata = read(temporary)
        if not _same(plain, found) or found_metadata != (metadata or {}):
            raise CheckpointError(f"{path}: what was written does not read back bit for bit")


def _same(written, found):
    return written.keys() == found.keys() and all(
        a.dtype == found[name].dtype and a.shape == found[name].shape and a.tobytes() == found[name].tobytes()
        for name, a in written.items())
