"""Published weights on this machine: what there is, where it comes from, and how it gets here.

A file is fetched once, over HTTPS, into the user's cache folder (`MMREF_HOME`, else the platform's), converted to
safetensors beside it, and used from there. A download that was cut off goes on where it stopped; a file takes its name
only when it is complete. Its SHA-256 is written down the first time and must be the same ever after.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
import urllib.error
import urllib.request
from importlib.resources import files
from pathlib import Path

from mmref.errors import CheckpointError, ValueProblem
from mmref.weights.conversion import convert

CHUNK, TIMEOUT, ATTEMPTS = 1 << 20, 30, 5  # bytes, seconds, tries in a row without a single new byte


def manifest() -> dict[str, dict]:
    """{name: {variant, file, top1, top5, url, source, licence}} of the twelve published files."""
    table = tomllib.loads((files("mmref.weights") / "manifest.toml").read_text("utf-8"))
    common = {"source": table["source"], "licence": table["licence"]}
    return {name: {**entry, **common, "url": table["files"] + entry["file"]}
            for name, entry in table.items() if isinstance(entry, dict)}


def entry_of(name: str) -> dict:
    """The manifest's entry of a name in any spelling; ValueProblem for one without published weights."""
    entries = manifest()
    if (key := str(name).lower()) not in entries:
        raise ValueProblem(f"NAME must be one of {', '.join(entries)}, got {name!r}")
    return {"name": key, **entries[key]}


def cache_folder() -> Path:
    """Where weights are kept: `MMREF_HOME`, else the platform's folder for caches."""
    if home := os.environ.get("MMREF_HOME"):
        return Path(home)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "mmref"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mmref"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mmref"


def weights_path(name: str) -> Path:
    """Where the converted weights of a published name lie, or would lie."""
    return cache_folder() / f"{entry_of(name)['name']}.safetensors"


def pretrained_path(name: str) -> Path:
    """The converted weights of a published name, fetched if need be.

    Raises CheckpointError that says which file to get, from where, and what to do with it."""
    path = weights_path(name)
    return path if path.exists() else fetch(name)


def fetch(name: str, url: str | None = None, progress: bool | None = None) -> Path:
    """Download a published file, verify it, convert it; returns the safetensors file.

    url       another place to get the same file from (a mirror)
    progress  show a bar on stderr; None where stderr is a terminal
    """
    entry, target = entry_of(name), weights_path(name)
    url, original = url or entry["url"], target.with_suffix(".pth")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not original.exists():
            partial = original.with_suffix(".pth.part")
            _download(url, partial, sys.stderr.isatty() if progress is None else progress)
            try:
                _hold_to_hash(partial, original.with_suffix(".pth.sha256"))
            except CheckpointError:
                partial.unlink()  # or every later try would go on from the wrong bytes
                raise
            os.replace(partial, original)
        convert(original, target)
    except (OSError, CheckpointError) as error:
        raise CheckpointError(
            f"{entry['name']}: its weights could not be had ({getattr(error, 'reason', None) or error}). Get "
            f"{entry['file']} from {entry['source']} by other means, then: mmref convert {Path(entry['file']).name} "
            f"{target}") from error
    return target


def _download(url: str, partial: Path, progress: bool) -> None:
    """Fetch `url` into `partial`, going on from what is there. Raises OSError or CheckpointError."""
    from tqdm import tqdm
    failures = 0
    with tqdm(unit="B", unit_scale=True, desc=partial.stem, disable=not progress) as bar:
        while True:
            before = partial.stat().st_size if partial.exists() else 0
            try:
                if _receive(url, partial, before, bar):
                    return
                problem: OSError = ConnectionError("the connection was cut off")
            except urllib.error.HTTPError as error:
                if error.code != 416:  # 416: nothing beyond what we have, which then is not the file
                    raise CheckpointError(f"{url} answers {error.code} {error.reason}") from error
                partial.unlink(missing_ok=True)
                problem = error
            except OSError as error:
                problem = error
            failures = 0 if partial.exists() and partial.stat().st_size > before else failures + 1
            if failures == ATTEMPTS:
                raise problem


def _receive(url, partial, have, bar) -> bool:
    """One request; True when the file is complete, False when the connection ended early."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if resumed else 0
        length = answer.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        bar.total, bar.n = total, start
        with open(partial, "r+b" if resumed else "wb") as file:
            file.seek(start)
            while data := answer.read(CHUNK):
                file.write(data)
                bar.update(len(data))
            file.flush()
            os.fsync(file.fileno())
            received = file.tell()
    return total is None or received >= total


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hold_to_hash(path: Path, record: Path) -> None:
    """Compare with the hash on record, or put it on record."""
    found = sha256_of(path)
    if not record.exists():
        temporary = record.with_name(f".{record.name}.{os.getpid()}.tmp")
        temporary.write_text(found + "\n")
        os.replace(temporary, record)
    elif (expected := record.read_text().strip()) != found:
        raise CheckpointError(f"its SHA-256 must be {expected}, on record in {record}, got {found}: the file has "
                              f"changed at its source, or somebody stands between")
