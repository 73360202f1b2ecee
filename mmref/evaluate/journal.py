"""An append-only file of finished batches: after a kill -9 the evaluation goes on where the file ends.

Each line is a checksum and one JSON object. The first says what is being evaluated; a run about anything else is
refused. Each of the others holds the answers of one batch. A last line that a kill has torn is dropped, since its
batch will be computed again; any other damage is an error.
"""

from __future__ import annotations

import json
import os
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
        self._file = open(self.path, "a+b")
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_):
        self._file.close()

    def append(self, record: dict) -> None:
        """Write one record so that it outlives the process and the power supply."""
        self._file.write(_line(record))
        self._file.flush()
        os.fsync(self._file.fileno())

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
        for number, line in enumerate(self._file, 1):
            record = _parse(line)
            if record is None:
                if self._file.read(1):  # something follows, so this was no torn end
                    raise JournalError(f"{self.path}: line {number} is damaged, or this is no journal of mmref eval")
                break
            whole += len(line)
            if subject is None:
                subject = record
                self._compare(subject)
            else:
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
                raise JournalError(f"{self.path}: holds another evaluation: {key} must be {theirs!r}, got {ours!r}")


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
