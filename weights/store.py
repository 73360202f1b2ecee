"""The published files: what there is, where it comes from, and the user's cache of them.

A fetched file has to be a whole checkpoint by our own reader's standards before it enters the cache. Its sha256 is
recorded then (`NAME.pth.sha256`, as `sha256sum -c` reads it) and enforced at every later use.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from mmref.errors import CheckpointError, MmrefError, ValueProblem
from mmref.files import replacing, sync_folder
from mmref.home import cache_folder
from mmref.weights.checkpoint import read_checkpoint
from mmref.weights.config_file import config_beside
from mmref.weights.conversion import convert
from mmref.weights.download import discard, download
from mmref.weights.sharded import files_of


@dataclass(frozen=True)
class Published:
    """One published file. Accuracy in percent of ImageNet's validation set, as its authors give it; `sha256` is None
    where it is not known before the first fetch."""

    name: str
    file: str
    variant: str
    top1: float
    top5: float
    page: str
    url: str
    licence: str
    sha256: str | None = None


@cache
def manifest() -> dict[str, Published]:
    """{name: Published} of weights/manifest.toml."""
    table = tomllib.loads((files("mmref.weights") / "manifest.toml").read_text("utf-8"))
    page, base, licence = table["page"], table["url"], table["licence"]
    return {name: Published(name, page=page, url=base + entry["file"], licence=licence, **entry)
            for name, entry in table["files"].items()}


def published(name: str) -> Published:
    """The entry of a name, in any case of letters. Raises ValueProblem, which lists the names."""
    entry = manifest().get(str(name).lower())
    if entry is None:
        raise ValueProblem(f"name must be one of {', '.join(manifest())}, got {name!r}")
    return entry


def cached(name: str) -> tuple[Path, Path]:
    """Where the published file of a name and its converted form lie, or would lie."""
    folder = cache_folder() / "weights"
    name = published(name).name
    return folder / f"{name}.pth", folder / f"{name}.safetensors"


def fetch(name: str, *, force: bool = False, progress: bool = True) -> Path:
    """The published file of a name in the user's cache, fetched where it is not there yet (or with `force`).

    MMREF_WEIGHTS_URL takes the place of the manifest's address (a mirror), MMREF_OFFLINE=1 forbids the network.
    Raises CheckpointError: not available (the message says what to get by hand), not a checkpoint, or not the bytes
    that were recorded first; then an older file stays as it was. OSError where the cache cannot be written.
    """
    entry, (target, _) = published(name), cached(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):  # a second process waits here, then finds the file
        if target.exists() and not force:
            enforce_sha256(target, entry.sha256)
            return target
        partial = target.with_name(f"{target.name}.part")
        try:
            if os.environ.get("MMREF_OFFLINE", "0") not in ("", "0"):
                raise CheckpointError(f"{entry.url}: not fetched, because MMREF_OFFLINE is set")
            download(_address(entry), partial, progress=progress)
        except CheckpointError as error:
            raise CheckpointError(f"{error}. {by_hand(entry.name)}") from error
        _accept(partial, target, entry)
    return target


def _address(entry):
    base = os.environ.get("MMREF_WEIGHTS_URL")
    return f"{base.rstrip('/')}/{entry.file}" if base else entry.url


def by_hand(name: str) -> str:
    """What a person does where mmref cannot reach the network."""
    entry, (_, converted) = published(name), cached(name)
    return (f"By hand: get {entry.file} from {entry.page} ({entry.url}), then run "
            f"`mmref convert {Path(entry.file).name} {converted}`")


def _accept(partial, target, entry):
    """Let a complete download take its name, if it is a checkpoint and the one that was recorded."""
    try:
        read_checkpoint(partial)
        digest, expected = sha256(partial), entry.sha256 or recorded_sha256(target)
        if expected not in (None, digest):
            raise CheckpointError(f"{entry.url}: sha256 must be {expected}, as recorded beside {target}, got {digest}")
    except CheckpointError:
        discard(partial)  # nothing to go on from
        raise
    record_sha256(target, digest)
    os.replace(partial, target)
    discard(partial)
    sync_folder(target.parent)


def pretrained_path(name: str) -> Path:
    """The converted file of a published name; fetched and converted where it is not in the cache yet.

    Raises CheckpointError that says which file to get, from where, and how to convert it; ValueProblem for a name that
    is not in the manifest.
    """
    entry, (source, converted) = published(name), cached(name)
    if not converted.exists():
        source = fetch(name)
        _record_file(converted).unlink(missing_ok=True)  # of an earlier conversion
        convert(source, converted, metadata={"source": entry.url, "source_sha256": recorded_sha256(source) or "",
                                             "licence": entry.licence})
        record_sha256(converted, sha256(converted))
    enforce_sha256(converted)
    return converted


def sha256(path) -> str:
    """Hexadecimal sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path, described: bool = True) -> str:
    """The sha256 of a weights file; of one in parts, or with a config.json beside it that is read (`described`), the
    sha256 of the list of theirs. Raises CheckpointError."""
    path = Path(path)
    try:
        files = files_of(path) + [file for file in [config_beside(path)] if described and file]
        if len(files) == 1:
            return sha256(files[0])
        lines = "".join(f"{sha256(file)}  {file.name}\n" for file in files)
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def known_sha256() -> set[str]:
    """The digests of published files that are on record: the manifest's, and those of what was fetched here."""
    known = {entry.sha256 for entry in manifest().values()}
    for name in manifest():
        with suppress(MmrefError, OSError, RuntimeError):  # no cache here: then nothing was fetched
            known.update(map(recorded_sha256, cached(name)))
    return known - {None}


def _record_file(path):
    return Path(f"{path}.sha256")


def record_sha256(path, digest: str) -> None:
    """Remember the digest of a file in a file beside it."""
    with replacing(_record_file(path)) as temporary:
        temporary.write_text(f"{digest}  {Path(path).name}\n")


def recorded_sha256(path) -> str | None:
    """The digest remembered for a file, None if there is none. Raises CheckpointError for a broken record."""
    try:
        text = _record_file(path).read_text("utf-8", "replace")
    except FileNotFoundError:
        return None
    match = re.match("[0-9a-f]{64}(?= )", text)
    if not match:
        raise CheckpointError(f"{_record_file(path)}: must begin with a sha256, got {text[:80]!r}")
    return match[0]


def enforce_sha256(path, expected: str | None = None) -> str:
    """Compare a file with `expected` or the record beside it; make the record where there is neither.

    Returns the digest. Raises CheckpointError."""
    digest = sha256(path)
    recorded = expected or recorded_sha256(path)
    if recorded is None:
        record_sha256(path, digest)
    elif recorded != digest:
        raise CheckpointError(f"{path}: sha256 must be {recorded}, as recorded when it was first used, got {digest}; "
                              f"if you meant to change it, delete {_record_file(path).name}")
    return digest


@contextmanager
def _locked(path) -> Iterator[None]:
    """One process at a time for `path`; the system releases the lock when a process dies."""
    try:
        import fcntl
    except ImportError:  # Windows: two at once may both fetch, and the part is checked before it is used
        yield
        return
    with open(f"{path}.lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
