"""Traces in files: ours are safetensors with a manifest; others' may also be npz or a folder of npy.

Nothing is ever unpickled, and no array is made before its header has been checked against the bytes that are there.
"""

from __future__ import annotations

import json
import math
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from mmref.errors import CheckpointError, ValueProblem
from mmref.validate.trace import Trace

MAX_BYTES = 16 << 30    # of all arrays together
MAX_RECORDS = 100_000


class TraceError(CheckpointError):
    """A trace file that cannot be read safely."""


def write_trace(path, trace: Trace) -> None:
    """One safetensors file, whole or not at all. Raises ValueProblem where the disk is too small for it."""
    from mmref.weights.safetensors_file import write
    path, size = Path(path), trace_bytes(trace)
    if not path.parent.is_dir():
        raise ValueProblem(f"-o must lie in a folder that is there, got {path}")
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise ValueProblem(f"-o needs {size:,} bytes at {path.parent}, got {free:,} free (use --filter)")
    write(path, trace.records, {"mmref_trace": json.dumps(trace.manifest)})


def trace_bytes(trace: Trace) -> int:
    """What the arrays take."""
    return sum(array.nbytes for array in trace.records.values())


def read_trace(path) -> Trace:
    """Read .safetensors, .npz or a folder of .npy. float16 and integers are kept as they are.

    Raises TraceError naming the file and the record: objects, complex numbers, damaged or oversized files."""
    path = Path(path)
    try:
        if path.is_dir():
            trace = Trace(_folder(path))
        elif not path.is_file():
            raise FileNotFoundError(2, "no such trace", str(path))
        elif zipfile.is_zipfile(path):
            trace = Trace(_npz(path))
        else:
            trace = _safetensors(path)
    except CheckpointError as error:
        raise TraceError(f"{path}: {error}") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise TraceError(f"{path}: {error}") from error
    if not trace.records:
        raise TraceError(f"{path}: a trace must hold at least one array, got none")
    return trace


def _safetensors(path):
    from mmref.weights.safetensors_file import read
    if path.stat().st_size > MAX_BYTES:
        raise TraceError(f"a trace must be at most {MAX_BYTES:,} bytes, got {path.stat().st_size:,}")
    records, metadata = read(path)
    try:
        manifest = json.loads(metadata.get("mmref_trace", "{}"))
    except (ValueError, RecursionError) as error:
        raise TraceError(f"manifest is no JSON ({error})") from error
    _check_manifest(manifest)
    order = [name for name in manifest.get("order", ()) if name in records]
    return Trace({name: records[name] for name in (*order, *(n for n in records if n not in set(order)))}, manifest)


def _check_manifest(manifest):
    kinds = {"order": list, "noise": dict, "shapes": dict, "model": str, "weights": str, "weights_sha256": str,
             "dtype": str, "folded": bool}
    if not isinstance(manifest, dict):
        raise TraceError("manifest must be an object")
    for key, kind in kinds.items():
        if key in manifest and not isinstance(manifest[key], kind):
            raise TraceError(f"manifest: {key} must be of type {kind.__name__}, got {type(manifest[key]).__name__}")
    for name, value in manifest.get("noise", {}).items():
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise TraceError(f"manifest: noise of {name[:80]!r} must be a number from 0, got {str(value)[:40]}")
    if not all(isinstance(name, str) for name in manifest.get("order", ())):
        raise TraceError("manifest: order must list names")


def _npz(path):
    records, room = {}, MAX_BYTES
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_RECORDS:
            raise TraceError(f"a trace must hold at most {MAX_RECORDS} records, got {len(members)}")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in records:
                raise TraceError(f"{name[:80]!r}: a record must be an .npy of its own name")
            room -= member.file_size
            if room < 0:
                raise TraceError(f"the arrays must be at most {MAX_BYTES:,} bytes, got more")
            with archive.open(member) as file:
                records[name] = _array(file, member.file_size, name)
    return records


def _folder(path):
    files = sorted(path.glob("*.npy"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    if len(files) > MAX_RECORDS or sum(file.stat().st_size for file in files) > MAX_BYTES:
        raise TraceError(f"a trace must be at most {MAX_RECORDS} records and {MAX_BYTES:,} bytes, got more")
    records = {}
    for file in files:
        with open(file, "rb") as stream:
            records[file.stem] = _array(stream, file.stat().st_size, file.name)
    return records


def read_npy(path) -> np.ndarray:
    """One .npy file, as carefully."""
    try:
        with open(path, "rb") as stream:
            return _array(stream, Path(path).stat().st_size, "array")
    except (ValueError, EOFError) as error:
        raise TraceError(f"{path}: {error}") from error


def _array(stream, size, name):
    """The array of an open .npy of `size` bytes, its header checked first."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise TraceError(f"{name[:80]}: npy version must be 1.0 or 2.0, got {version}")
    shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
    if dtype.kind not in "fiub" or dtype.hasobject:
        raise TraceError(f"{name[:80]}: values must be real numbers, got {str(dtype)[:40]} (objects are never read)")
    expected = math.prod(shape) * dtype.itemsize
    if any(n < 0 for n in shape) or expected > size:
        raise TraceError(f"{name[:80]}: shape {str(shape)[:80]} needs {expected} bytes, the record has {size}")
    data = stream.read(expected + 1)
    if len(data) != expected:
        raise TraceError(f"{name[:80]}: shape {str(shape)[:80]} needs {expected} bytes of values, got {len(data)}")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="))
