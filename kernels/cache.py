"""Where compiled kernels are kept between processes, and what happens when they cannot be.

Whoever can write the file of machine code can run code as us. So it must belong to the user (or to root, who may have
filled the folder for all), nobody else may be able to write it or its folder, and a shared temporary folder will not
do. Its name holds a hash of the kernels' sources, of the compiler's version and of the processor. It begins with a
checksum: a file that does not agree with its own (a full disk, a crash) is not loaded. It appears whole, whoever else
writes the same.

Any failure (no folder can be written, the file cannot be read) ends in compiling: some seconds more, the same results.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from mmref.errors import ValueProblem
from mmref.files import replacing
from mmref.home import cache_folder
from mmref.kernels.target import CPU_FEATURES, CPU_NAME, TRIPLE

CHECKSUM_BYTES = hashlib.sha256().digest_size


def sources_hash() -> str:
    """Of all kernel files, of what compiles them, and of the processor they are compiled for."""
    import llvmlite  # its version stands for Numba's, too: each Numba goes with one llvmlite
    digest = hashlib.sha256(repr((llvmlite.__version__, os.environ.get("NUMBA_OPT"), TRIPLE, CPU_NAME,
                                  CPU_FEATURES)).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def folders() -> list[Path]:
    """The cache folder: MMREF_CACHE_DIR, else that of `mmref.home`; none where there is no home folder."""
    try:
        return [cache_folder("MMREF_CACHE_DIR")]
    except ValueProblem:
        return []


def _private(path: Path) -> bool:
    """Whether nobody but the user and root can write there."""
    if not hasattr(os, "getuid"):
        return True
    status = path.stat()
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def load() -> bytes | None:
    """The object file of these sources for this processor, None where none is kept or it cannot be trusted."""
    return read(f"kernels-{sources_hash()}")


def save(code: bytes) -> bool:
    """Keep the object file for later processes; False where no private folder can be written."""
    return keep(f"kernels-{sources_hash()}", code)


def read(name: str) -> bytes | None:
    """What was kept under a name, None where nothing was or it cannot be trusted."""
    for base in folders():
        with contextlib.suppress(OSError):
            place = base / name
            if not (_private(place.parent) and _private(place)):
                continue
            data = place.read_bytes()
            if hashlib.sha256(data[CHECKSUM_BYTES:]).digest() == data[:CHECKSUM_BYTES]:
                return data[CHECKSUM_BYTES:]
    return None


def keep(name: str, code: bytes) -> bool:
    """Keep bytes under a name for later processes; False where no private folder can be written."""
    for base in folders():
        with contextlib.suppress(OSError):
            base.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _private(base):
                continue
            with replacing(base / name, mode=0o600) as temporary:
                temporary.write_bytes(hashlib.sha256(code).digest() + code)
            return True
    return False
