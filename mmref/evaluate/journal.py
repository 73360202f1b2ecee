"""An append-only file of finished batches: after a kill -9 the evaluation continues where the file ends.

Each line is a checksum and one JSON object. The first says what is being evaluated; a run about anything else is
refused. Each of the others holds the answers of one batch. A line that is torn or damaged is ignored: its batch is
computed again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from mmref.errors import MmrefError

__all__ = ["Journal", "JournalError"]


class JournalError(MmrefError):
    """A journal that is damaged, in use, or about another evaluation."""


class Journal:
    """`with Journal(path, subject, replay) as journal:` hands what earlier runs wrote to `replay`; then `append`.

    subject  dict of plain values that the figures depend on
    replay   called with each record"""

    def __init__(self, path, subject: dict, replay: Callable[[dict], object]):
        self.path, self.subject, self.replay = Path(path), subject, replay

    def __enter__(self) -> Journal:
        if self.path.exists() and not self.path.is_file():
            raise JournalError(f"{self.path}: a journal must be a regular file, got something else")
        self._file, self._synced = open(self.path, "a+b"), float("-inf")
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):  # what could not be written has been reported by `append`
            self._sync()
        with contextlib.suppress(OSError):
            self._file.close()

    def append(self, record: dict) -> None:
        """Write one record: it outlives the process at once, the power supply after a second."""
        try:
            self._file.write(_line(record))
            self._file.flush()
            if time.monotonic() - self._synced > 1:  # a sync for every batch would hold up a large cluster
                self._sync()
        except OSError as error:  # a full disk does not say where
            raise OSError(error.errno, f"{error.strerror}; the evaluation goes on from here with --resume",
                          str(self.path)) from error

    def _sync(self):
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _lock(self):
        try:
            import fcntl
        except ImportError:  # Windows: two runs with one journal are the user's to avoid
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JournalError(f"{self.path}: another evaluation is writing it") from error

    def _read(self):
        self._file.seek(0)
        whole, subject = 0, None
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            record = _parse(line)
            if subject is None:
                if record is None:
                    raise JournalError(f"{self.path}: not a journal of mmref eval, or its first line is damaged")
                subject = record
                self._compare(subject)
            elif record is not None:
                self.replay(record)
        if subject is None:
            self._file.seek(0)
            if not _line(self.subject).startswith(self._file.read(1 << 20)):  # never cut somebody's file to nothing
                raise JournalError(f"{self.path}: not a journal of mmref eval")
        self._file.truncate(whole)
        if subject is None:
            self.append(self.subject)

    def _compare(self, subject):
        for key in self.subject.keys() | subject.keys():
            ours, theirs = self.subject.get(key), subject.get(key)
            if ours != theirs:
                raise JournalError(f"{self.path}: holds another evaluation: {key} must be {theirs!r}, got {ours!r}; "
                                   f"remove the file to begin anew")


def _line(record):
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x " % zlib.crc32(text) + text + b"\n"


def _parse(line):
    """The object of a whole and undamaged line, else None."""
    if not line.endswith(b"\n") or line[8:9] != b" ":
        return None
    try:
        record = json.loads(line[9:]) if int(line[:8], 16) == zlib.crc32(line[9:-1]) else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
