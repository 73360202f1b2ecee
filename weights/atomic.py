"""Files that appear whole or not at all, whatever happens to the process or the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path) -> Iterator[Path]:
    """A name for a temporary file in the same folder; the block writes it, and at the block's end it becomes `path`.

    The block may read the file back and raise: then `path` stays what it was. What is there is on the disk before the
    name changes, and the change of name is on the disk before this returns. A process killed in between leaves a file
    `.mmref-*.tmp`, which nothing ever reads."""
    path = Path(path)
    temporary = path.with_name(f".mmref-{os.getpid()}-{os.urandom(6).hex()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a full disk does not say where, and nobody knows the temporary name
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder) -> None:
    """Make names in a folder survive a power cut, where the system has a way to."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
