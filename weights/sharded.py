"""Weights that come in parts: a JSON index (`*.index.json`) that says which file beside it holds which tensor.

The index is untrusted like everything else: bounded in size, no name twice, and parts only by plain names of
files in its own folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from mmref.errors import CheckpointError
from mmref.weights.json_file import read_json
from mmref.weights.pickle_tensors import short

MAX_PARTS = 4096
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.\w+")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_USUAL = ("model.safetensors.index.json", "pytorch_model.bin.index.json", "model.safetensors", "pytorch_model.bin")


def locate(path: Path) -> Path:
    """The file to read: `path` itself, or the one checkpoint of a folder.

    An index comes before a whole file, safetensors before pickles. Raises CheckpointError for a folder with none, or
    with several of which none has one of the usual names."""
    if not path.is_dir():
        return path
    files = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    found = ([name for name in _USUAL if name in files] or [name for name in files if name.endswith(".index.json")]
             or [name for name in files if name.lower().endswith(_SUFFIXES)])
    if not found:
        raise CheckpointError("must be a regular file, or a folder with a checkpoint in it (.safetensors, .pth, .pt, "
                              ".bin, or an index)")
    if len(found) > 1 and found[0] not in _USUAL:
        raise CheckpointError(f"must be a regular file, or a folder with one checkpoint: it holds "
                              f"{', '.join(map(short, found[:5]))}; name one")
    return path / found[0]


def refuse_part(path: Path) -> None:
    """CheckpointError for one part of several: half a network would only be noticed by what is missing."""
    part = _PART.search(path.name)
    if part and int(part[2]) > 1:
        raise CheckpointError(f"one of {int(part[2])} parts: name the index (.index.json) beside it, or the folder")


def read(path: Path, read_part: Callable) -> tuple:
    """(format, {name: array}, names passed over, metadata, notes) of all parts that the index at `path` names.

    read_part(path) gives ({name: array}, format, names passed over, metadata, notes). Raises CheckpointError: no
    index, parts outside its folder, missing ones, tensors that are not in the part the index says.
    """
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError("must be an index with a weight_map, {tensor: file}")
    parts: dict[str, set[str]] = {}
    for name, part in places.items():
        if not _plain(part):
            raise CheckpointError(f"the part of {short(name)} must be the name of a file beside the index, "
                                  f"got {short(part)}")
        parts.setdefault(part, set()).add(name)
    if len(parts) > MAX_PARTS:
        raise CheckpointError(f"the index names {len(parts)} parts, at most {MAX_PARTS} expected")
    missing = [part for part in parts if not (path.parent / part).is_file()]
    if missing:
        raise CheckpointError(f"{len(missing)} of {len(parts)} parts are not beside the index, first {missing[0]}")
    tensors, forms, foreign, metadata, notes = {}, set(), set(), {}, {}
    for part, names in parts.items():
        try:
            found, form, passed, text, said = read_part(path.parent / part)
        except CheckpointError as error:
            raise CheckpointError(f"part {part}: {error}") from error
        if found.keys() != names:
            name = sorted(found.keys() ^ names)[0]
            what = "holds" if name in found else "lacks"
            raise CheckpointError(f"part {part}: {what} the tensor {short(name)} against the index")
        tensors |= found
        forms.add(form)
        foreign.update(passed)
        metadata |= text
        notes |= dict.fromkeys(said)
    return "/".join(sorted(forms)), tensors, tuple(sorted(foreign)), metadata, tuple(notes)


def files_of(path: Path) -> list[Path]:
    """The files that reading `path` would read: one, or an index and its parts."""
    path = locate(path)
    if path.suffix != ".json":
        return [path]
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    parts = set(filter(_plain, places.values())) if isinstance(places, dict) else set()
    return [path, *(path.parent / part for part in sorted(parts))]


def _plain(part):
    """Whether a part is a file's bare name, on every system."""
    return (isinstance(part, str) and part.isprintable() and 0 < len(part) <= 200
            and not set(part) & set("/\\:") and part not in (".", ".."))
