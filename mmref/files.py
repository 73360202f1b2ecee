"""Files that appear whole or not at all, whatever happens to the process or the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmref.arguments import check_path


@contextmanager
def replacing(path, mode: int | None = None) -> Iterator[Path]:
    """A name for a temporary file in the same folder; the block writes it, and at the block's end it becomes `path`.

    The block may read the file back and raise: then `path` stays what it was. What is there is on the disk before the
    name changes, and the change of name is on the disk before this returns. A process killed in between leaves a file
    `.mmref-*.tmp`, which nothing ever reads.

    A symbolic link stays, and the file it points to is replaced. A device or a pipe (/dev/stdout, /dev/null) is
    written into, never replaced. `mode` is the new file's permissions; None keeps those of the file that is replaced,
    or takes what the umask leaves. Raises OSError that names `path`, before the block runs if its folder is missing or
    cannot be written, ValueProblem if `path` is not a path.
    """
    path = check_path("path", path)
    named, target = str(path), Path(os.path.realpath(path))
    name = f".mmref-{os.getpid()}-{os.urandom(6).hex()}.tmp"  # short, so that a long name of the user's stays possible
    temporary = target.with_name(name)
    try:
        old = target.stat() if target.exists() else None
        if old is not None and stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        special = old is not None and not stat.S_ISREG(old.st_mode)
        if special:
            temporary = Path(tempfile.gettempdir(), name)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode))
        yield temporary
        if special:
            with open(temporary, "rb") as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink)
            return
        if mode is None and old is not None:
            os.chmod(temporary, stat.S_IMODE(old.st_mode))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:  # a full disk does not say where, and nobody knows the temporary name
        ours = {None, named, str(target), str(target.parent), str(temporary)}
        if error.errno is None or error.filename not in ours:
            raise
        raise type(error)(error.errno, error.strerror, named) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_folder(folder) -> None:
    """Make names in a folder survive a power cut, where the system has a way to."""
    if os.name != "posix":
        return
    with contextlib.suppress(PermissionError):  # a folder that can be written and not read
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
