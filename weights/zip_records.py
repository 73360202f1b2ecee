"""The zip container of a `.pth` file, opened with suspicion.

`torch.save` stores records one after another, uncompressed, under one folder name: data.pkl, data/0, data/1, ...,
version, byteorder. Anything else (compressed or encrypted records, two records of one name, a local header that
contradicts the directory) is refused, and every record's checksum is verified when it is read. Files that PyTorch
wrote without checksums (`torch.serialization.set_crc32_options(False)`) give zero for every one of them: `unchecked`.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from pathlib import Path

from mmref.errors import CheckpointError
from mmref.weights.pickle_tensors import short

MAX_PICKLE = 64 << 20  # bytes; a checkpoint of a thousand tensors has about 100 KB
_KNOWN = re.compile(r"data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id"
                    r"|data/[0-9]{1,9}")


MAX_DIRECTORY = 8 << 20  # bytes; room for some 60,000 records, 600 of which make a published file
_BROKEN = (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError, struct.error, OverflowError,
           LookupError)


class _File(io.FileIO):
    """A file that reads no huge pieces: `zipfile` takes the whole directory at once, whatever its size."""

    limit: int | None = MAX_DIRECTORY

    def read(self, size=-1):
        if self.limit is not None and size is not None and size > self.limit:
            raise CheckpointError(f"a zip directory of {size} bytes, at most {self.limit} expected")
        return super().read(size)


class Records:
    """The records of one file; a context manager. Raises CheckpointError, without the file's name (its caller's)."""

    def __init__(self, path: Path):
        self.file = _File(path)
        try:
            self.zip = zipfile.ZipFile(self.file)
            self.file.limit = None
            self.infos = self._check(path.stat().st_size)
            self.unchecked = self._without_checksums()
        except CheckpointError:
            self.file.close()
            raise
        except _BROKEN as error:
            self.file.close()
            raise CheckpointError(f"a broken or truncated zip file ({short(str(error))})") from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.zip.close()
        self.file.close()

    def _check(self, file_size):
        infos = {}
        prefixes = {info.filename.partition("/")[0] for info in self.zip.infolist()}
        if len(prefixes) != 1:
            raise CheckpointError(f"a zip file with {len(prefixes)} top folders, not one: not a PyTorch checkpoint")
        for info in self.zip.infolist():
            name = info.filename.partition("/")[2]
            if name.startswith(("code/", "constants.pkl")):
                raise CheckpointError("a TorchScript archive (it holds code), not a checkpoint: save its state_dict()")
            if not _KNOWN.fullmatch(name):
                raise CheckpointError(f"record {short(info.filename)} is not one that torch.save writes")
            if name in infos:
                raise CheckpointError(f"record {name!r} is there twice")
            if info.flag_bits & 0x1:
                raise CheckpointError(f"record {name!r} is encrypted")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise CheckpointError(f"record {name!r} is compressed, which torch.save never does")
            infos[name] = info
        if "data.pkl" not in infos:
            raise CheckpointError("a zip file without data.pkl: not a PyTorch checkpoint")
        if sum(info.file_size for info in infos.values()) > file_size:
            raise CheckpointError("records overlap: together they are larger than the file")
        if infos["data.pkl"].file_size > MAX_PICKLE:
            raise CheckpointError(f"data.pkl has {infos['data.pkl'].file_size} bytes, at most {MAX_PICKLE} expected")
        return infos

    def _without_checksums(self) -> bool:
        """Whether the file was written without any; a single zero among others is damage like any other."""
        unchecked = not any(info.CRC for info in self.infos.values())
        if unchecked:
            for info in self.infos.values():
                info.CRC = None  # zipfile compares nothing then
        return unchecked

    def size(self, name: str) -> int:
        """Bytes of a record; CheckpointError where it is missing."""
        if name not in self.infos:
            raise CheckpointError(f"record {name!r} is missing")
        return self.infos[name].file_size

    def read(self, name: str) -> bytes:
        """A record, its checksum verified."""
        self.size(name)
        try:
            return self.zip.read(self.infos[name])
        except _BROKEN as error:
            raise CheckpointError(f"record {name!r} is damaged ({short(str(error))})") from error

    def verify(self, names) -> None:
        """Check that records are whole without keeping them: a file damaged anywhere is refused."""
        for name in names:
            try:
                with self.zip.open(self.infos[name]) as record:
                    while record.read(1 << 20):
                        pass
            except _BROKEN as error:
                raise CheckpointError(f"record {name!r} is damaged ({short(str(error))})") from error

    def byte_order(self) -> str:
        """"<" or ">" of the stored numbers; files without the record are little-endian."""
        if "byteorder" not in self.infos:
            return "<"
        order = self.read("byteorder") if self.size("byteorder") < 16 else b""
        if order not in (b"little", b"big"):
            raise CheckpointError(f"byteorder must be little or big, got {order!r}")
        return "<" if order == b"little" else ">"
