"""What a picture file holds, seen before anything is decoded: its size, what the decoder needs, how much work it is.

Decoders believe a file. One of a few hundred bytes may ask for minutes and gigabytes: with a huge size, a thousand
passes over the picture, comments that unpack without end, a hundred thousand empty parts. So `inspect` reads the
containers of the four formats itself, by a few fields, and keeps three promises:

sides      at most MAX_SIDE pixels, MAX_PIXELS in all
work       an estimate of seconds and bytes, from the size and what the format makes of it, within MAX_SECONDS and
           MAX_MEMORY. One rule for all formats; the table COST says what is expensive
parts      only those that make pixels go to the decoder: colour profiles, comments, thumbnails and later frames stay
           behind. EXIF is searched for one number, the orientation

The estimates come from measurements of the worst files that could be made, times two for slower machines (four where
Pillow decodes in Python). They are for the limit, not for planning: ordinary files take a tenth.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from mmref.errors import PictureError

__all__ = ["Contents", "inspect"]

MAX_SIDE = 65_535                # the format JPEG cannot say more; the others can, up to 2**31
MAX_PIXELS = 89_478_485          # Pillow's own limit, of which Pillow only warns up to twice as many
MAX_SECONDS = 2.0
MAX_MEMORY = 900 << 20           # bytes, while decoding
MAX_PARTS = 100_000              # chunks of a PNG, segments of a JPEG file: each costs Python's time
MAX_JPEG_HEADER = 1 << 18        # bytes before the first scan, of those that are kept: tables are read in Python

PARTS = {"JPEG": b"\xff\xd8", "PNG": b"\x89PNG\r\n\x1a\n", "WEBP": b"RIFF", "BMP": b"BM"}  # how files begin


@dataclass(frozen=True)
class Cost:
    """Of decoding to 8-bit RGB: nanoseconds per pixel, per byte of the file, per pixel in every scan; bytes per pixel,
    and of copies of the file."""

    pixel: float
    byte: float = 0.0
    scan: float = 0.0
    memory: int = 8
    copies: int = 2


COST = {
    "JPEG": Cost(pixel=20, byte=15, memory=8),
    "JPEG, several scans": Cost(pixel=26, byte=30, scan=1.5, memory=14),
    "PNG": Cost(pixel=14, memory=8, copies=3),                          # and PNG_BYTE for every byte it unpacks to
    "WEBP": Cost(pixel=28, byte=110, memory=20, copies=3),
    "WEBP, lossless": Cost(pixel=28, byte=20, memory=20, copies=3),
    "BMP": Cost(pixel=18, memory=8),
    "BMP, run-length coded": Cost(pixel=350, byte=400, memory=10),      # Pillow's decoder is in Python
}
PNG_BYTE = 14


@dataclass(frozen=True)
class Contents:
    """A file that may be decoded.

    format         "JPEG", "PNG", "WEBP" or "BMP"
    width, height  pixels
    data           the file without the parts that make no pixels
    orientation    EXIF's, 1 to 8; None where there is none, 0 where EXIF is broken
    frames         pictures in it; the first is meant
    """

    format: str
    width: int
    height: int
    data: bytes
    orientation: int | None = None
    frames: int = 1


def inspect(data: bytes) -> Contents:
    """Look at a file's container. Raises PictureError if it is none of the four formats, is cut off before its
    picture, or asks for more than the limits."""
    for kind, read in _READERS.items():
        if data.startswith(PARTS[kind]) and (kind != "WEBP" or data[8:12] == b"WEBP"):
            try:
                return read(data)
            except (struct.error, IndexError) as error:
                raise PictureError(f"a broken {kind}: ends within its header") from error
    raise PictureError(f"expected JPEG, PNG, WEBP or BMP, got {_looks_like(data)}")


def check_size(width: int, height: int) -> None:
    """Raise PictureError unless a picture may have these sides."""
    if width < 1 or height < 1:
        raise PictureError(f"no pixels: {width} x {height}")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise PictureError(f"too many pixels: {width} x {height}, at most {MAX_SIDE:,} per side and {MAX_PIXELS:,} in "
                           f"all")


def _check_work(cost, width, height, file, coded=None, scans=1, more=0.0, why=""):
    """`coded`: bytes of the file that are decoded; `more`: nanoseconds beside those of the table."""
    check_size(width, height)
    pixels = width * height
    work = 1e-9 * (pixels * (cost.pixel + cost.scan * scans) + cost.byte * (file if coded is None else coded) + more)
    memory = pixels * cost.memory + file * cost.copies
    if work > MAX_SECONDS or memory > MAX_MEMORY:
        raise PictureError(f"too much work: {width} x {height} pixels{why} in {file:,} bytes may take {work:.1f} s and "
                           f"{memory >> 20:,} MiB to decode, at most {MAX_SECONDS:g} s and {MAX_MEMORY >> 20} MiB; "
                           f"save it smaller or in another format")


# -- JPEG ----------------------------------------------------------------------------------------------------

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)    # not a stuffed byte, not a restart marker
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}               # SOF0 to SOF15
_TABLES = {0xC4, 0xCC, 0xDB, 0xDD}                                # Huffman, arithmetic, quantisation, restart interval
_SCAN, _END, _EXIF, _BARE = 0xDA, 0xD9, 0xE1, {0x01, 0xD8}


def _jpeg(data):
    sizes, kept, orientation, scans, parts, body = [], [b"\xff\xd8"], None, 0, 0, None
    at = 2
    while found := _MARKER.search(data, at):
        start, at = found.span()
        marker = data[at - 1]
        parts += 1
        if parts > MAX_PARTS:
            raise PictureError(f"more than {MAX_PARTS:,} segments")
        if marker in _BARE:
            continue
        if marker == _END:
            if scans:
                break
            continue
        length, = struct.unpack_from(">H", data, at)
        segment = data[at + 2:at + length]
        if marker == _SCAN:
            scans += 1
            body = start if body is None else body
        elif marker in _FRAMES:
            sizes.append(struct.unpack_from(">HH", segment, 1)[::-1])
        elif marker == _EXIF and segment.startswith(b"Exif\0\0") and orientation is None:
            orientation = _exif_orientation(segment[6:])
        wanted = marker in _FRAMES or marker in _TABLES or (marker == 0xE0 and segment.startswith(b"JFIF\0")) or (
            marker == 0xEE and segment.startswith(b"Adobe"))
        if body is None and wanted:  # JFIF and Adobe say what the channels mean
            kept.append(data[start:at + length])
        at += max(length, 2)
    if body is None or not sizes:
        raise PictureError("a broken JPEG: no scan" if sizes else "a broken JPEG: no frame header")
    if sum(map(len, kept)) > MAX_JPEG_HEADER:
        raise PictureError(f"more than {MAX_JPEG_HEADER >> 10} KiB of tables")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    several = scans > 1
    _check_work(COST["JPEG, several scans" if several else "JPEG"], width, height, len(data), scans=scans,
                why=f" in {scans} scans" if several else "")
    return Contents("JPEG", width, height, b"".join((*kept, memoryview(data)[body:])), orientation)


# -- PNG -----------------------------------------------------------------------------------------------------

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


def _png(data):
    view, at, parts = memoryview(data), len(PARTS["PNG"]), 0
    head, pixels, orientation, frames, own_frame = [], [], None, 1, False
    while at < len(data):
        parts += 1
        if parts > MAX_PARTS:
            raise PictureError(f"more than {MAX_PARTS:,} chunks")
        length, = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4:at + 8], at + 12 + length
        if pixels and kind != b"IDAT":
            break
        if parts == 1 and kind != b"IHDR":
            raise PictureError("a broken PNG: does not begin with its header")
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
            if end > len(data):
                raise PictureError(f"truncated: chunk {kind.decode()} is cut off")
            if zlib.crc32(view[at + 4:end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
                raise PictureError(f"broken: the checksum of chunk {kind.decode()} is wrong")
            if kind == b"IDAT":
                pixels.append(view[at + 8:end - 4])
            else:
                head.append(view[at:end])
        elif kind == b"eXIf":
            orientation = _exif_orientation(data[at + 8:min(end - 4, at + 8 + (1 << 16))])
        elif kind == b"acTL":
            frames = max(1, struct.unpack_from(">I", data, at + 8)[0])
        elif kind == b"fcTL":
            own_frame = True
        at = end
    if not pixels or len(head) > 16:
        raise PictureError("a broken PNG: no pixels" if not pixels else "a broken PNG: palettes without end")
    width, height, bits, colour = struct.unpack_from(">IIBB", head[0], 8)
    unpacked = width * height * _CHANNELS.get(colour, 4) * bits / 8
    _check_work(COST["PNG"], width, height, len(data), more=PNG_BYTE * unpacked)
    pixels.insert(0, b"IDAT")
    body = b"".join(pixels)
    whole = b"".join((PARTS["PNG"], *head, struct.pack(">I", len(body) - 4), body, struct.pack(">I", zlib.crc32(body)),
                      b"\0\0\0\0IEND\xaeB`\x82"))
    return Contents("PNG", width, height, whole, orientation,
                    frames if frames == 1 or own_frame else frames + 1)  # one beside the animation


# -- WEBP ----------------------------------------------------------------------------------------------------

def _webp(data):
    """libwebp reads containers itself, and fast: the file stays as it is."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[i:i + 3], "little") for i in (24, 27))
    elif kind == b"VP8L":
        word, = struct.unpack_from("<I", data, 21)
        width, height = 1 + (word & 0x3FFF), 1 + (word >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise PictureError("a broken WEBP: no picture in it")
    coded, lossless, orientation, frames = 0, True, None, 0
    for name, start, length in _riff(data, 12):
        if name == b"ANMF":
            frames += 1
            if frames == 1:
                coded += length
                lossless = all(inner in (b"VP8L", b"ALPH") for inner, *_ in _riff(data, start + 16, start + length))
        elif name in (b"VP8 ", b"VP8L", b"ALPH"):
            coded, lossless = coded + length, lossless and name == b"VP8L"
        elif name == b"EXIF":
            exif = data[start:start + min(length, 1 << 16)]
            orientation = _exif_orientation(exif.removeprefix(b"Exif\0\0"))
    _check_work(COST["WEBP, lossless" if lossless else "WEBP"], width, height, len(data), coded)
    return Contents("WEBP", width, height, data, orientation, max(frames, 1))


def _riff(data, at, end=None):
    """(name, start, length) of the chunks of a RIFF file; a length beyond the end is cut."""
    end = len(data) if end is None else min(end, len(data))
    for _ in range(MAX_PARTS):
        if at + 8 > end:
            return
        length, = struct.unpack_from("<I", data, at + 4)
        yield data[at:at + 4], at + 8, min(length, end - at - 8)
        at += 8 + length + length % 2
    raise PictureError(f"more than {MAX_PARTS:,} chunks")


# -- BMP -----------------------------------------------------------------------------------------------------

def _bmp(data):
    header, = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        packed = 0
    else:
        width, height, _, _, packed = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)  # negative: from the top down
    runs = packed in (1, 2)
    _check_work(COST["BMP, run-length coded" if runs else "BMP"], width, height, len(data),
                why=", run-length coded," if runs else "")
    return Contents("BMP", width, height, data)


_READERS = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "BMP": _bmp}


# -- EXIF, and what else a file may be -----------------------------------------------------------------------

def _exif_orientation(exif):
    """Tag 0x0112 of the first directory of a TIFF structure: 1 to 8, None if it is not there, 0 if it is broken."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 0
    try:
        at, = struct.unpack_from(order + "I", exif, 4)
        count, = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == 0x0112:
                return value if kind == 3 and 1 <= value <= 8 else 0
    except struct.error:
        return 0
    return None


def _looks_like(data: bytes) -> str:
    start = data[:64].lstrip()
    for kind, magics in {"TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "GIF": (b"GIF8",),
                         "PDF": (b"%PDF",), "PostScript": (b"%!PS",), "a git-LFS pointer": (b"version https://git-lfs",),
                         "HTML or XML": (b"<",), "a zip file": (b"PK\3\4",), "an icon": (b"\0\0\1\0",),
                         "JPEG 2000": (b"\0\0\0\x0cjP",), "a NumPy array": (b"\x93NUMPY",),
                         "a broken PNG": (b"\x89PNG",), "a broken WEBP": (b"RIFF",)}.items():
        if data.startswith(magics) or start.startswith(magics):
            return kind
    if data[4:8] == b"ftyp":
        return "HEIC, AVIF or a video"
    return "something else"
