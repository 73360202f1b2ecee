"""Where compiled kernels are kept between processes, and what happens when they cannot be.

Numba writes machine code to files that it loads with pickle: whoever can write them can run code as us. So the folder
is our own, below the user's cache folder, readable and writable by the user alone; a shared temporary folder will not
do. Its name holds a hash of the kernels' sources, of versions and of the processor, because Numba looks at the one file
a function stands in and not at those it calls. A list of checksums stands beside the files: one that does not agree (a
full disk, a crash) is removed before Numba sees it.

Any failure (no folder can be written, a file cannot be loaded or saved) ends in compiling without a cache: 10 seconds
more, the same results.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
import tempfile
from pathlib import Path

CHECKSUMS = "checksums.json"


def sources_hash() -> str:
    """Of all kernel files, the versions of what compiles them, and the processor they are compiled for."""
    import llvmlite.binding
    import numba
    import numpy
    from numba.core import config
    from numba.core.codegen import get_host_cpu_features
    processor = (llvmlite.binding.get_host_cpu_name(), get_host_cpu_features(), config.CPU_NAME, config.CPU_FEATURES)
    parts = (sys.version, numba.__version__, llvmlite.__version__, numpy.__version__, processor, config.OPT)
    digest = hashlib.sha256(repr(parts).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def candidates() -> list[Path]:
    """Cache folders to try, best first; MMREF_CACHE_DIR or else MMREF_HOME, if set, is the only one."""
    own = os.environ.get("MMREF_CACHE_DIR") or os.environ.get("MMREF_HOME")
    if own:
        return [Path(own).expanduser()]
    if sys.platform == "win32":
        places = [os.environ.get("LOCALAPPDATA")]
    elif sys.platform == "darwin":
        places = ["~/Library/Caches"]
    else:
        places = [os.environ.get("XDG_CACHE_HOME"), "~/.cache"]
    return [Path(place).expanduser() / "mmref" for place in places if place]


def _private(folder: Path) -> bool:
    """Whether nobody else can write into the folder."""
    if not hasattr(os, "getuid"):
        return True
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def folder() -> Path | None:
    """A folder for these kernels that exists, is ours alone and can be written; None if there is none."""
    for base in candidates():
        with contextlib.suppress(OSError, RuntimeError):
            place = base / f"kernels-{sources_hash()}"
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _private(place):
                continue
            with tempfile.TemporaryFile(dir=place) as probe:
                probe.write(b"x")
            return place
    return None


def _checksums(place: Path) -> dict[str, str]:
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(place.rglob("*")) if path.is_file() and path.suffix in (".nbi", ".nbc")}


def is_filled(place: Path) -> bool:
    """Whether the folder holds kernels of an earlier process; removes files that are not as they were written."""
    try:
        expected = json.loads((place / CHECKSUMS).read_text())
        found = _checksums(place)
    except (OSError, ValueError):
        expected, found = {}, {}
        with contextlib.suppress(OSError):
            found = _checksums(place)
    if not isinstance(expected, dict):
        expected = {}
    sound = bool(expected)
    for name in set(found) | set(expected):
        if found.get(name) != expected.get(name):
            sound = False
            with contextlib.suppress(OSError):
                (place / name).unlink()
    return sound


def seal(place: Path) -> None:
    """Write down what the files are now; a failure leaves them to be compiled again."""
    with contextlib.suppress(OSError):
        text = json.dumps(_checksums(place), indent=0)
        with tempfile.NamedTemporaryFile("w", dir=place, delete=False) as file:
            file.write(text)
        os.replace(file.name, place / CHECKSUMS)
