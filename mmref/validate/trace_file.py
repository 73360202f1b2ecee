"""Traces in files: ours are safetensors with a manifest; others' may also be npz or a folder of npy.

Nothing is ever unpickled, and no array is made before its header has been checked against the bytes that are there.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from mmref.arguments import check_kind, check_path
from mmref.errors import CheckpointError, ValueProblem
from mmref.validate.trace import Trace

MAX_BYTES = 16 << 30    # of all arrays together
MAX_RECORDS = 100_000
MAX_HEADER = 10_000     # bytes of an .npy's header
# An archive that unpacks to more than the first of these and to more than the second times its size is a bomb.
MAX_UNPACKED, MAX_RATIO = 256 << 20, 100


class TraceError(CheckpointError):
    """A trace file that cannot be read safely."""


def write_trace(path, trace: Trace) -> None:
    """One safetensors file, whole or not at all. Raises ValueProblem where the disk is too small for it and where
    `trace` is not a Trace."""
    check_kind("trace", trace, Trace, "a Trace")
    from mmref.weights.safetensors_file import write
    check_room(path, trace_bytes(trace))
    write(Path(path), trace.records, {"mmref_trace": json.dumps(trace.manifest)})


def check_room(path, size) -> None:
    """Raise ValueProblem unless `path` is a path in a folder that is there, with room for `size` bytes."""
    path = check_path("path", path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueProblem(f"-o must be a file in a folder that is there, got {path}")
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise ValueProblem(f"-o needs {size:,} bytes at {path.parent}, got {free:,} free (use --filter)")


def trace_bytes(trace: Trace) -> int:
    """What the arrays take."""
    return sum(array.nbytes for array in trace.records.values())


def read_trace(path) -> Trace:
    """Read .safetensors, .npz or a folder of .npy. float16 and integers are kept as they are.

    Raises TraceError naming the file and the record: objects, complex numbers, damaged or oversized files."""
    path = check_path("path", path)
    try:
        if path.is_dir():
            trace = Trace(_folder(path))
        elif not path.is_file():
            raise FileNotFoundError(2, "no such trace", str(path))
        elif (other := _other_kind(path)):
            raise TraceError(f"a trace must be a .safetensors, an .npz or a folder of .npy, got {other}")
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


def _other_kind(path) -> str:
    """What a file is that is no trace, and what to do with it; "" for one that may be."""
    with open(path, "rb") as stream:
        head = stream.read(9)
    if not head:
        return "an empty file"
    if head.startswith(b"\x93NUMPY"):
        return "one .npy array: put it into a folder, named after its record, or save several with np.savez"
    if head.startswith(b"\x80") and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") or head.startswith(b"(dp"):
        return "a pickle, which could run anything when it is read: save arrays with np.savez"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file: save arrays with np.savez"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("data.pkl") for name in archive.namelist()):
                return "what torch.save wrote, which is a pickle: save {name: tensor.numpy()} with np.savez"
        return ""
    if len(head) == 9 and not head.endswith(b"{"):  # a safetensors has the length of its header, eight bytes, and JSON
        return f"another kind of file, which begins with {head}: save arrays with np.savez"
    if len(head) < 9 or int.from_bytes(head[:8], "little") > path.stat().st_size - 8:
        return "a .safetensors that is cut off, or another kind of file: make it again"
    return ""


def _safetensors(path):
    from mmref.weights.safetensors_file import read
    if path.stat().st_size > MAX_BYTES:
        raise TraceError(f"a trace must be at most {MAX_BYTES:,} bytes, got {path.stat().st_size:,}")
    records, metadata = read(path)
    try:
        manifest = json.loads(metadata.get("mmref_trace", "{}"))
    except (ValueError, RecursionError) as error:
        raise TraceError(f"manifest is not JSON ({error})") from error
    _check_manifest(manifest)
    order = [name for name in manifest.get("order", ()) if name in records]
    return Trace({name: records[name] for name in (*order, *(n for n in records if n not in set(order)))}, manifest)


def _check_manifest(manifest):
    kinds = {"order": list, "noise": dict, "noise_float16": dict, "shapes": dict, "model": str, "weights": str,
             "weights_sha256": str, "dtype": str, "folded": bool, "num_classes": int, "aliases": dict, "exercise": dict}
    if not isinstance(manifest, dict):
        raise TraceError("manifest must be an object")
    for key, kind in kinds.items():
        if key in manifest and not isinstance(manifest[key], kind):
            raise TraceError(f"manifest: {key} must be of type {kind.__name__}, got {type(manifest[key]).__name__}")
    noises = (*manifest.get("noise", {}).items(), *manifest.get("noise_float16", {}).items())
    for name, value in noises:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e300:
            raise TraceError(f"manifest: noise of {name[:80]!r} must be a number from 0, got {str(value)[:40]}")
    if not all(isinstance(name, str) for name in manifest.get("order", ())):
        raise TraceError("manifest: order must list names")


def _npz(path):
    packed = path.stat().st_size
    limit = room = min(MAX_BYTES, max(MAX_UNPACKED, MAX_RATIO * packed))
    records = {}
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
                raise TraceError(f"the arrays must be at most {limit:,} bytes for an archive of {packed:,}, got more")
            with archive.open(member) as file:
                records[name] = _array(file, member.file_size, name)
    return records


def _folder(path):
    files = list(path.glob("*.npy"))
    for file in files:
        _plain(file, file.name)
    files.sort(key=lambda file: (file.stat().st_mtime_ns, file.name))
    if len(files) > MAX_RECORDS or sum(file.stat().st_size for file in files) > MAX_BYTES:
        raise TraceError(f"a trace must be at most {MAX_RECORDS} records and {MAX_BYTES:,} bytes, got more")
    records = {}
    for file in files:
        with open(file, "rb") as stream:
            records[file.stem] = _array(stream, file.stat().st_size, file.name)
    return records


def _plain(file, name):
    """Refuse links, which may lead out of a folder, and what blocks or never ends when it is read."""
    if file.is_symlink() or not file.is_file():
        raise TraceError(f"{name[:80]!r}: a record must be a plain file, no link, folder or device")


def read_npy(path) -> np.ndarray:
    """One .npy file, as carefully."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise TraceError(f"{path}: must be a file")
    try:
        with open(path, "rb") as stream:
            return _array(stream, path.stat().st_size, "array")
    except (TraceError, ValueError, EOFError) as error:
        raise TraceError(f"{path}: {error}") from error


def _array(stream, size, name):
    """The array of an open .npy of `size` bytes, its header checked first."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise TraceError(f"{name[:80]}: npy version must be 1.0 or 2.0, got {version}")
    prefix = stream.read(2 * version[0])
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:  # NumPy would read all of it before it looks
        raise TraceError(f"{name[:80]}: npy header must be at most {MAX_HEADER} bytes, got {length}")
    header = io.BytesIO(prefix + stream.read(length))
    try:
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(header)
    except Exception as error:  # its parser lets tokenizer and parser errors of several kinds through
        raise TraceError(f"{name[:80]}: npy header cannot be read ({str(error)[:80]})") from error
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
