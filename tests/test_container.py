"""What a picture file asks for, seen before it is decoded: limits on pixels and work, parts that make no pixels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from mmref.data.container import inspect
from mmref.data.picture import open_picture
from mmref.errors import PictureError

PNG = b"\x89PNG\r\n\x1a\n"


def noise(width, height, mode="RGB", seed=0):
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width), np.uint16))
    bands = len(Image.new(mode, (1, 1)).getbands()) if mode not in ("P", "1") else 3
    pixels = rng.integers(0, 256, (height, width, bands), np.uint8)
    if mode in ("P", "1"):
        return Image.fromarray(pixels).convert(mode)
    return Image.merge(mode, [Image.fromarray(pixels[..., i]) for i in range(bands)])


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, bits=8, colour=2, pixels=b""):
    """A PNG file with `chunks` between its header and its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return PNG + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def bmp(width, height, body, packed=1, bits=8):
    """A BMP file with a palette of greys, run-length coded."""
    palette = b"".join(bytes([i, i, i, 0]) for i in range(1 << bits))
    start = 54 + len(palette)
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", start + len(body), 0, 0, start, 40, width, height, 1, bits, packed,
                               len(body), 1, 1, 1 << bits, 0) + palette + body


def webp(width, height):
    """A WEBP file of some bytes that says it has a canvas of any size."""
    data = encode(noise(2, 2), "WEBP", lossless=True)
    extended = b"VP8X" + struct.pack("<IB3x", 10, 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(
        3, "little")
    return data[:4] + struct.pack("<I", len(data) - 8 + len(extended)) + b"WEBP" + extended + data[12:]


def scans(count, size=1200):
    """A progressive JPEG of one grey, whose last scan is there `count` times."""
    data = encode(Image.new("L", (size, size), 7), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * (count - 1) + data[end:]


# -- the limits ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, data, match", [
    ("BMP, slender", bmp(8_000_000, 11, b"\1\5\0\0" * 11 + b"\0\1"), "too many pixels: 8000000 x 11"),
    ("BMP, runs", bmp(9_000, 9_000, b"\1\5\0\0" * 9_000 + b"\0\1"), "too much work.*run-length"),
    ("BMP, runs of 4 bits", bmp(9_000, 9_000, b"\1\5\0\0" * 9_000 + b"\0\1", 2, 4), "too much work.*run-length"),
    ("BMP, runs of one pixel", bmp(2_000, 2_000, b"\1\5" * 4_000_000 + b"\0\1"), "too much work.*run-length"),
    ("BMP, rows without end", bmp(1, 2**31 - 1, b""), "too many pixels"),
    ("BMP, upside down", bmp(9_000, -9_000, b"\0\1"), "too much work"),
    ("PNG, slender", png(1, 80_000_000), "too many pixels"),
    ("PNG, wide", png(2**31 - 1, 1, bits=1, colour=0), "too many pixels"),
    ("PNG, deep pixels", png(9_000, 9_000, bits=16, colour=6), "too much work"),
    ("PNG, many parts", png(1, 1, chunk(b"teXt", b"") * 100_000), "more than 100,000 chunks"),
    ("PNG, palettes", png(1, 1, chunk(b"PLTE", b"\0" * 768) * 20), "palettes without end"),
    ("WEBP, canvas", webp(9_400, 9_400), "too much work"),
    ("WEBP, large canvas", webp(1 << 24, 1 << 24), "too many pixels"),
    ("WEBP, many parts", webp(9, 9) + b"ABCD\0\0\0\0" * 100_001, "more than 100,000 chunks"),
    ("JPEG, scans", scans(2_000), "too much work.*in 20.. scans"),
    ("JPEG, many parts", b"\xff\xd8" + b"\xff\xfe\0\2" * 100_001, "more than 100,000 segments"),
    ("JPEG, tables", b"\xff\xd8" + (b"\xff\xdb\0\x43" + bytes(65)) * 4_000 + scans(1)[2:], "KiB of tables"),
])
def test_work_is_limited(name, data, match):
    """Catches: a small file that keeps the decoder busy for seconds or asks for gigabytes. At first the BMP of 1,124
    bytes took 29 s, and other rows as long; PNGs of many parts and JPEGs of many scans likewise."""
    with pytest.raises(PictureError, match=match):
        open_picture(data)


@pytest.mark.parametrize("format, options, width, height", [
    ("JPEG", {}, 9_500, 6_300), ("JPEG", {"progressive": True}, 8_000, 6_000), ("PNG", {}, 7_000, 5_000),
    ("WEBP", {"lossless": True, "method": 0}, 6_000, 5_000), ("BMP", {}, 7_000, 5_000)])
def test_large_photographs_are_within_the_limits(format, options, width, height):
    """Catches: limits so tight that pictures as cameras make them are refused."""
    contents = inspect(encode(Image.new("RGB", (width, height), "orange"), format, **options))
    assert (contents.format, contents.width, contents.height) == (format, width, height)


def test_the_work_of_ordinary_noise_is_within_the_limits():
    """Catches: a cost a byte so high that a small photograph full of detail is refused."""
    for format, options in (("JPEG", {"quality": 98, "subsampling": 0}), ("PNG", {}), ("WEBP", {"quality": 95}),
                            ("WEBP", {"lossless": True, "method": 0})):
        assert inspect(encode(noise(1_500, 1_000), format, **options)).width == 1_500


# -- what reaches the decoder ------------------------------------------------------------------------------------

def jpeg_segment(marker, data):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
BOMB = zlib.compress(b"\0" * (1 << 20))


@pytest.mark.parametrize("name, parts", [
    ("profile", chunk(b"iCCP", b"p\0\0" + BOMB) * 50), ("compressed text", chunk(b"zTXt", b"k\0\0" + BOMB) * 100),
    ("text", chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB) * 100), ("no text", chunk(b"zTXt", b"k\0\0" + b"damage")),
    ("unknown", chunk(b"prVt", b"x" * 1000) * 1000), ("broken checksum", chunk(b"tEXt", b"a\0b")[:-1] + b"?")])
def test_parts_of_a_png_without_pixels_are_left_behind(name, parts):
    """Catches: comments and profiles unpacked (a megabyte from a kilobyte each, without end), or a picture refused for
    a fault in one of them."""
    image = noise(9, 7)
    data = encode(image, "PNG")
    data = data[:33] + parts + data[33:]
    assert len(inspect(data).data) < 600
    got, notes = open_picture(data)
    assert notes == [] and got.tobytes() == image.tobytes()


def test_parts_of_a_jpeg_without_pixels_are_left_behind():
    """Catches: Photoshop's records, profiles, comments and runs of filling read one by one in Python; thumbnails taken
    for scans."""
    image = noise(33, 20)
    plain = encode(image, "JPEG")
    thumbnail = jpeg_segment(0xE1, b"Exif\0\0" + b"MM\0*" + b"\0" * 20 + scans(3, 64))
    for extra in (jpeg_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5_000) * 50, thumbnail * 50,
                  jpeg_segment(0xE2, b"ICC_PROFILE\0\1\1" + PROFILE), jpeg_segment(0xE2, b"MPF\0" + b"\0" * 80),
                  jpeg_segment(0xFE, b"x" * 60_000) * 99, b"\xff" * 1_000_000, jpeg_segment(0xE1, b"Exif\0\0" + b"?")):
        data = plain[:2] + extra + plain[2:]
        assert len(inspect(data).data) == len(plain)
        got, notes = open_picture(data)
        assert notes == [] and got.tobytes() == Image.open(io.BytesIO(plain)).tobytes()
    assert len(inspect(plain + scans(500)).data) == len(plain) + len(scans(500))  # a second picture is never reached


def test_what_channels_mean_is_kept():
    """Catches: JFIF's or Adobe's segment dropped: RGB stored as such read as YCbCr, CMYK inverted."""
    rgb = encode(noise(16, 16), "JPEG", keep_rgb=True, quality=95)
    cmyk = encode(noise(16, 16, "CMYK"), "JPEG", quality=95)
    for data in (rgb, cmyk, encode(noise(16, 16, "L"), "JPEG")):
        assert open_picture(data)[0].tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@settings(max_examples=60)
@given(format=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]), mode=st.sampled_from(["L", "RGB", "RGBA", "P", "CMYK",
       "1", "LA"]), width=st.integers(1, 70), height=st.integers(1, 70), extras=st.sets(st.sampled_from(
           ["exif", "icc_profile", "comment", "dpi", "progressive", "optimize", "lossless"])), seed=st.integers(0, 99))
def test_same_pixels_as_pillow_alone(format, mode, width, height, extras, seed):
    """Catches: a table, palette, transparency or scan lost between the file and the decoder."""
    if (mode in ("RGBA", "P", "LA") and format == "JPEG") or (mode in ("CMYK", "LA", "RGBA") and format == "BMP") or (
            mode in ("CMYK", "1", "P") and format == "WEBP") or (mode == "CMYK" and format == "PNG"):
        return
    exif = Image.Exif()
    exif[0x0112] = 3
    known = {"exif": exif, "icc_profile": PROFILE, "comment": b"hello", "dpi": (72, 72)}
    options = {name: known.get(name, True) for name in sorted(extras)}
    data = encode(noise(width, height, mode, seed), format, **options)
    expected = Image.open(io.BytesIO(data))
    if "transparency" not in expected.info:
        expected = expected.convert("RGB")
        got, notes = open_picture(data)
        assert got.size == (width, height) and got.tobytes() == expected.tobytes()
        carried = "exif" in extras and format != "BMP"
        assert ("EXIF orientation 3 not applied" in notes) == carried


@pytest.mark.parametrize("format, options", [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_orientation_as_pillow_applies_it(format, options, orientation):
    """Catches: two of the eight turns exchanged, either byte order, or EXIF found in one format only."""
    from PIL import ImageOps
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", orientation
    data = encode(noise(9, 5), format, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert open_picture(data, exif=True)[0].tobytes() == expected.tobytes()
    assert inspect(data).orientation == (orientation if orientation < 9 else 0)
    if format == "PNG":  # the other byte order
        tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
        data = data[:33] + chunk(b"eXIf", tiff) + data[33:]
        assert inspect(data).orientation is not None


def test_hostile_exif():
    """Catches: directories that point at themselves or beyond the end, values of a kind that is none."""
    for tiff in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\7" * 30,
                 b"II*\0\4\0\0\0" * 9, b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x63\0\0"):
        data = png(1, 1, chunk(b"eXIf", tiff), pixels=b"\0abc")
        image, notes = open_picture(data, exif=True)
        assert image.size == (1, 1) and len(notes) <= 1


def test_frames_are_counted():
    """Catches: thousands of frames decoded, or an animation not mentioned; a still beside an animation counts."""
    frames = [Image.new("RGB", (8, 8), (i % 256, i // 256, 9)) for i in range(1_500)]
    for format in ("WEBP", "PNG"):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        assert inspect(data).frames == Image.open(io.BytesIO(data)).n_frames == 1_500
        image, notes = open_picture(data)
        assert notes == ["animated: first of 1500 frames taken"] and image.size == (8, 8)
    data = encode(frames[9], "PNG", save_all=True, append_images=frames[:3], default_image=True)
    assert inspect(data).frames == 4 and open_picture(data)[0].getpixel((0, 0)) == (9, 0, 9)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_every_cut_ends_in_an_error(format):
    """Catches: an error other than PictureError where a header ends early (every length is tried)."""
    data = encode(noise(5, 4), format)
    for length in range(len(data)):
        try:
            open_picture(data[:length])
        except PictureError:
            continue
        assert len(data) - length <= 16  # what follows the pixels may be missing


def test_pixels_with_a_wrong_checksum():
    """Catches: a PNG whose pixels were damaged and still unpack (Pillow does not look at this checksum)."""
    data = bytearray(png(1, 1, pixels=b"\0abc"))
    data[-13] ^= 1  # of IDAT's checksum
    with pytest.raises(PictureError, match="checksum of chunk IDAT"):
        open_picture(bytes(data))


def test_two_sizes():
    """Catches: limits that look at one size while the decoder takes another (a second frame header)."""
    data = scans(1, 16)
    at = data.index(b"\xff\xc2")
    header = bytearray(data[at:at + 13])
    header[5:9] = struct.pack(">HH", 65_000, 65_000)
    for both in (data[:at] + bytes(header) + data[at:], data[:at + 13] + bytes(header) + data[at + 13:]):
        with pytest.raises(PictureError, match="too many pixels"):
            open_picture(both)
