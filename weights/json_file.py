"""JSON from untrusted files: bounded in size, and no key of an object twice."""

from __future__ import annotations

import json
from pathlib import Path

from mmref.errors import CheckpointError
from mmref.weights.pickle_tensors import short

MAX_JSON = 4 << 20  # bytes; an index of 40,000 tensors, or the names of 20,000 classes


def read_json(path: Path):
    """The value of a JSON file. Raises CheckpointError, without the file's name (its caller's)."""
    with open(path, "rb") as file:
        data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise CheckpointError(f"JSON of more than {MAX_JSON} bytes")
    return parse_json(data, "the file")


def parse_json(data: bytes, what: str):
    """The value of UTF-8 text. Raises CheckpointError that begins with `what`."""
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not JSON ({short(str(error))})") from error
    except CheckpointError as error:
        raise CheckpointError(f"{what} {error}") from error


def _unique(pairs):
    names = dict(pairs)
    if len(names) != len(pairs):
        raise CheckpointError("has a name twice")
    return names
