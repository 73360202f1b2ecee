"""Pictures: torchvision's rounding, and one test for each kind of bad or unusual file."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmref.data import picture as picture_module
from mmref.data.picture import NANO_TRANSFORM, Transform, load_batch, open_picture, to_array
from mmref.errors import PictureError, ShapeError, ValueProblem


def noise(width, height, seed=0, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return path


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def torchvision_eval(image, size, crop_ratio=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    """torchvision's Resize, CenterCrop, ToTensor, Normalize for a PIL image, restated from its documentation."""
    short = int(size / crop_ratio)
    width, height = image.size
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    if (width, height) != (new_width, new_height):
        image = image.resize((new_width, new_height), Image.BICUBIC)
    top = int(round((new_height - size) / 2.0))
    left = int(round((new_width - size) / 2.0))
    x = np.asarray(image)[top:top + size, left:left + size].astype(np.float32) / np.float32(255)
    return ((x - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)


# -- the transform ----------------------------------------------------------------------------------------

@settings(max_examples=60)
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 50),
       ratio=st.sampled_from([0.875, 1.0, 0.9, 0.5]), seed=st.integers(0, 99))
def test_transform_is_torchvisions_to_the_bit(width, height, size, ratio, seed):
    """Catches: long side rounded instead of cut, crop offset floor or off by one (tried: caught in the first
    example with an odd margin), mean or std of the wrong channel, float64 arithmetic."""
    image = Image.fromarray(noise(width, height, seed))
    if max(width, height) > 64 * min(width, height):
        return
    x = to_array(image, Transform(size=size, crop_ratio=ratio))
    assert x.dtype == np.float32 and x.shape == (3, size, size) and x.flags.c_contiguous
    np.testing.assert_array_equal(x, torchvision_eval(image, size, ratio))


@pytest.mark.parametrize("size, resized", [(192, 219), (224, 256), (256, 292), (384, 438), (512, 585)])
def test_published_sizes(size, resized):
    """Catches: the short side rounded to the nearest (585.14 and 438.86 tell it from truncation)."""
    transform = Transform(size=size)
    assert (transform.resize_to, transform.crop_size) == (resized, size)
    image = Image.fromarray(noise(601, 407))
    np.testing.assert_array_equal(to_array(image, transform), torchvision_eval(image, size))


@pytest.mark.parametrize("margin, offset", [(1, 0), (3, 2), (5, 2), (7, 4), (2, 1), (27, 14)])
def test_crop_offset_rounds_half_to_even(margin, offset):
    """Catches the crop offset off by one: Python rounds x.5 to the even neighbour, (dim - crop) // 2 does not."""
    side = 100
    ramp = np.zeros((side + margin, side + margin, 3), np.uint8)
    ramp[..., 0] = np.arange(side + margin)
    ramp[..., 1] = np.arange(side + margin)[:, None]
    transform = Transform(size=side, crop_ratio=side / (side + margin + 0.5), mean=(0, 0, 0), std=(1, 1, 1))
    assert transform.resize_to == side + margin  # so nothing is resized
    x = np.rint(to_array(Image.fromarray(ramp), transform) * 255)
    assert (x[0, 0, 0], x[1, 0, 0]) == (offset, offset)


@pytest.mark.parametrize("width, height, size", [(1, 5000, 192), (5000, 1, 192), (1, 300_000, 192), (7, 2000, 192),
                                                 (3, 150, 4096), (60, 1, 1024)])
def test_slender_picture_does_not_blow_up(width, height, size, monkeypatch):
    """Catches: resizing the whole of a 1 x 5000 picture (219 x 1,095,000 pixels) for a square in its middle, or of a
    less slender one to gigabytes where the square is large."""
    asked = []
    resize = Image.Image.resize

    def spy(self, size, *args, **kwargs):
        asked.append(size)
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", spy)
    x = to_array(Image.fromarray(noise(width, height)), Transform(size=size))
    assert x.shape == (3, size, size) and np.isfinite(x).all()
    assert max(w * h for w, h in asked) <= 1 << 25


@pytest.mark.parametrize("width, height", [(3, 300), (300, 3), (5, 330), (12, 800)])
def test_slender_picture_is_the_middle_of_the_whole(width, height):
    """Catches: the box of a slender picture taken from a wrong place, or without the filter's reach at its rim."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([127 + 120 * np.sin(x / 3 + y / 5), (x * 7 + y * 3) % 256, 255 * (y > height / 2)], -1)
    image = Image.fromarray(pixels.astype(np.uint8))
    got = to_array(image, Transform(size=64, mean=(0, 0, 0), std=(1, 1, 1))) * 255
    expected = torchvision_eval(image, 64, mean=(0, 0, 0), std=(1, 1, 1)) * 255
    assert np.abs(got - expected).max() <= 2.01  # single-precision box, two roundings to grey levels
    assert np.abs(got - expected).mean() < 0.05


def test_shrink_leaves_training_size_alone():
    """Catches: a 32 x 32 picture resampled or cropped before it is enlarged as the training did."""
    pixels = noise(32, 32)
    expected = np.asarray(Image.fromarray(pixels).resize((128, 128), Image.BICUBIC), np.float32) / np.float32(255)
    expected = (expected - np.float32(NANO_TRANSFORM.mean)) / np.float32(NANO_TRANSFORM.std)
    np.testing.assert_array_equal(to_array(Image.fromarray(pixels), NANO_TRANSFORM), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("width, height", [(640, 480), (31, 32), (48, 100), (1, 1), (1, 9000)])
def test_shrink_of_a_photograph(width, height):
    """Catches: a photograph that reaches the network at full detail, or shrink_to followed by the crop ratio."""
    image = Image.fromarray(noise(width, height))
    x = to_array(image, NANO_TRANSFORM)
    assert x.shape == (3, 128, 128)
    if max(width, height) <= 64 * min(width, height):
        short = torchvision_eval(image, 32, 1.0, (0, 0, 0), (1, 1, 1)).transpose(1, 2, 0)
        small = Image.fromarray(np.rint(short * 255).astype(np.uint8))
        np.testing.assert_array_equal(x, to_array(small, NANO_TRANSFORM))


def test_transform_survives_metadata_and_pickle():
    """Catches: a transform that changes on its way through a weights file's JSON (tuples against lists)."""
    import json
    for transform in (NANO_TRANSFORM, Transform(size=192), Transform(7, 1.0, (0, 0.5, 1), (1, 2, 3))):
        assert Transform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform
        assert pickle.loads(pickle.dumps(transform)) == transform
        assert hash(transform) == hash(replace(transform))


@pytest.mark.parametrize("values", [
    {}, [], {"size": 0}, {"size": 10**9}, {"size": "192"}, {"size": 192.0}, {"size": True}, {"size": 192, "rotate": 90},
    {"size": 192, "std": [1, 0, 1]}, {"size": 192, "std": [1, 1e-45, 1]},
    {"size": 192, "mean": [1, 1, -1e38]}, {"size": 192, "mean": [1, 2]}, {"size": 192, "mean": [1, 2, float("nan")]},
    {"size": 192, "crop_ratio": 0}, {"size": 192, "crop_ratio": 1.5}, {"size": 192, "shrink_to": -3},
    {"size": 192, "mean": ["a", "b", "c"]}])
def test_transform_from_hostile_metadata(values):
    """Catches: a size of 10^9 (memory), std 0 (division), or a step we do not know being left out silently."""
    with pytest.raises(ValueProblem, match="transform"):
        Transform.from_dict(values)


def test_load_batch(tmp_path):
    """Catches: pictures mixed up in the batch, an empty batch refused, a bad picture without its name."""
    paths = [save(tmp_path / f"{i}.png", Image.fromarray(noise(40, 30 + i, i))) for i in range(3)]
    transform = Transform(size=24)
    batch = load_batch(paths, transform)
    assert batch.dtype == np.float32
    for x, path in zip(batch, paths, strict=True):
        np.testing.assert_array_equal(x, to_array(open_picture(path)[0], transform))
    assert load_batch([], transform).shape == (0, 3, 24, 24)
    with pytest.raises(PictureError, match="none.png: No such file"):
        load_batch([paths[0], tmp_path / "none.png"], transform)


def test_to_array_wants_rgb():
    """Catches: a grey picture broadcast into something that looks right."""
    with pytest.raises(ShapeError, match="RGB.*got mode L"):
        to_array(Image.new("L", (4, 4)), Transform(size=4))


# -- what is accepted, with its note -----------------------------------------------------------------------

@pytest.mark.parametrize("format, options", [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_keep_every_pixel(tmp_path, format, options):
    """Catches: channels swapped or a format forgotten; paths, str, bytes, files and PIL images all open."""
    pixels = noise(19, 11)
    path = save(tmp_path / "p", Image.fromarray(pixels), format=format, **options)
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), io.BytesIO(data), open(path, "rb"), Image.open(path)):
        image, notes = open_picture(source)
        assert image.mode == "RGB" and notes == []
        np.testing.assert_array_equal(np.asarray(image), pixels)
        if hasattr(source, "close"):
            source.close()


def test_grey_palette_bilevel_cmyk():
    """Catches: a mode that is refused, or CMYK read as inverted."""
    grey = noise(16, 16, channels=1)
    image, notes = open_picture(encode(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(np.asarray(image), np.repeat(grey[..., None], 3, -1))
    assert notes == []
    pixels = noise(16, 16) // 64 * 64
    palette = Image.fromarray(pixels).quantize(256)
    np.testing.assert_array_equal(np.asarray(open_picture(encode(palette, "PNG"))[0]),
                                  np.asarray(palette.convert("RGB")))
    bilevel = Image.fromarray(grey).convert("1")
    assert set(np.unique(np.asarray(open_picture(encode(bilevel, "PNG"))[0]))) == {0, 255}
    red = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    image, notes = open_picture(encode(red, "JPEG", quality=95))
    assert image.mode == "RGB" and notes == []
    assert np.abs(np.asarray(image).mean((0, 1)) - (250, 10, 10)).max() < 12


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_said(mode):
    """Catches: alpha blended with something, or dropped without a word."""
    pixels = noise(9, 9)
    image = Image.fromarray(pixels).convert(mode)
    image.putalpha(Image.fromarray(noise(9, 9, 1, 1)))
    got, notes = open_picture(encode(image, "PNG"))
    assert notes == ["alpha dropped"] and got.mode == "RGB"
    expected = pixels if mode == "RGBA" else np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))
    np.testing.assert_array_equal(np.asarray(got), expected)


def test_transparent_palette_is_said(recwarn):
    """Catches: Pillow's warning about palettes with transparency reaching the user, or no note."""
    image = Image.fromarray(noise(9, 9)).quantize(16)
    got, notes = open_picture(encode(image, "PNG", transparency=bytes([0, 128] + [255] * 14)))
    assert notes == ["alpha dropped"] and not recwarn.list
    np.testing.assert_array_equal(np.asarray(got), np.asarray(image.convert("RGB")))


def test_16_bit_grey_is_scaled():
    """Catches: convert("RGB") of 16-bit grey, which clips at 255 and turns the picture white (tried)."""
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image, notes = open_picture(encode(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(np.asarray(image)[..., 0].ravel(), np.arange(256))
    assert notes == ["16-bit grey scaled to 8 bits"]


def test_animation_gives_first_frame_and_says_so():
    """Catches: the last frame, or silence. WEBP and animated PNG."""
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "lime", "blue")]
    for format, options in (("WEBP", {"lossless": True}), ("PNG", {})):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
        image, notes = open_picture(data)
        assert notes == ["animated: first of 3 frames taken"]
        assert image.getpixel((4, 4)) == (255, 0, 0)


def test_exif_orientation_has_a_switch():
    """Catches: rotation applied by default (the published evaluation does not), or the switch without effect."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(pixels), "JPEG", exif=exif, quality=95)
    image, notes = open_picture(data)
    assert image.size == (16, 8) and notes == ["EXIF orientation 6 not applied"]
    image, notes = open_picture(data, exif=True)
    assert image.size == (8, 16) and notes == ["EXIF orientation 6 applied"]
    assert image.getpixel((4, 1))[0] > 200 and image.getpixel((4, 14))[0] < 50


def test_broken_exif_does_not_matter():
    """Catches: a picture refused, or a traceback, because of metadata nobody asked for."""
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40
    image, notes = open_picture(encode(Image.fromarray(noise(8, 8)), "JPEG", exif=exif), exif=True)
    assert image.size == (8, 8) and len(notes) <= 1


# -- what is refused ---------------------------------------------------------------------------------------

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def refused(tmp_path, data, match):
    """The file and the bytes are both refused, the file by its name."""
    path = tmp_path / "bad picture.jpg"
    path.write_bytes(data)
    with pytest.raises(PictureError, match=f"bad picture.jpg: .*{match}") as caught:
        open_picture(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(PictureError, match=match or None):
        open_picture(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("kept", [0.98, 0.6, 0.3])
def test_truncated(tmp_path, format, kept):
    """Catches: a picture whose lower part is grey because the file ended (a truncated JPEG passes verify)."""
    data = encode(Image.fromarray(noise(64, 64)), format)
    refused(tmp_path, data[:int(len(data) * kept)], "")


def test_flipped_bit_in_png(tmp_path):
    """Catches: a PNG whose checksum is not looked at."""
    data = bytearray(encode(Image.fromarray(noise(64, 64)), "PNG"))
    data[len(data) // 2] ^= 1
    refused(tmp_path, bytes(data), "")


@pytest.mark.parametrize("width, height", [(9_500, 9_500), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bomb(tmp_path, width, height, recwarn):
    """Catches: the bomb below twice Pillow's limit, of which Pillow only warns (tried: it decodes)."""
    pixels = zlib.compress(b"\0" * 1000)
    refused(tmp_path, png_header(width, height) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""), "too many pixels")
    assert not recwarn.list


def test_bomb_limit_does_not_hang_on_pillows(monkeypatch):
    """Catches: a bomb let through where the application has switched Pillow's limit off."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(PictureError, match="too many pixels"):
        open_picture(png_header(30_000, 30_000) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


@pytest.mark.parametrize("data, kind", [
    (b"", "empty file"), (b"II*\0" + b"\0" * 50, "TIFF"), (b"GIF89a" + b"\0" * 50, "GIF"),
    (b"<!DOCTYPE html><html>", "HTML"), (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS"),
    (b"\xff\xd8\xff", "JPEG"), (b"\0" * 100, "something else"), (b"\0\0\0\x1cftypheic", "HEIC"),
    (b"PK\3\4" + b"\0" * 30, "zip")])
def test_not_a_picture(tmp_path, data, kind):
    """Catches: a format opened that nobody asked for, and a message that does not say what the file is."""
    refused(tmp_path, data, kind)


def test_other_formats_stay_closed():
    """Catches: `formats` forgotten: Pillow would open GIF, TIFF (floats too), EPS (Ghostscript!), PSD, ..."""
    image = Image.fromarray(noise(8, 8))
    for format in ("GIF", "TIFF", "PPM", "TGA", "ICO", "PCX"):
        with pytest.raises(PictureError, match="expected JPEG, PNG, WEBP or BMP"):
            open_picture(encode(image, format))
    floats = Image.fromarray(np.ones((4, 4), np.float32))
    with pytest.raises(PictureError, match="got TIFF"):
        open_picture(encode(floats, "TIFF"))
    with pytest.raises(PictureError, match="floating-point"):
        open_picture(floats)


def test_not_a_file(tmp_path):
    """Catches: a folder, a missing file, a named pipe (which would wait for ever) or a text file object."""
    with pytest.raises(PictureError, match="a folder"):
        open_picture(tmp_path)
    with pytest.raises(PictureError, match="none.jpg: No such file"):
        open_picture(tmp_path / "none.jpg")
    with pytest.raises(PictureError, match="binary mode"):
        open_picture(io.StringIO("text"))
    with pytest.raises(PictureError, match="a path, bytes"):
        open_picture(3)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(PictureError, match="not a regular file"):
            open_picture(tmp_path / "pipe")


def test_file_too_long(tmp_path, monkeypatch):
    """Catches: a file of any length read into memory."""
    monkeypatch.setattr(picture_module, "MAX_FILE", 100)
    refused(tmp_path, encode(Image.fromarray(noise(20, 20)), "BMP"), "more than 100 bytes")
    with pytest.raises(PictureError, match="more than 100 bytes"):
        open_picture(io.BytesIO(bytes(101)))


def test_memory_goes_by_the_file(tmp_path):
    """Catches: memory for the largest file asked for before reading a small one: under a limit on memory no picture
    could be read at all. Reads from a file that notes what it is asked for."""
    data = encode(Image.fromarray(noise(20, 20)), "PNG")
    asked = []

    class File(io.BytesIO):
        def read(self, size=-1):
            asked.append(size)
            return super().read(size)

    assert open_picture(File(data))[0].size == (20, 20)
    assert 0 < max(asked) <= 1 << 20 and min(asked) > 0


@settings(max_examples=150)
@given(kind=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]), seed=st.integers(0, 2**32 - 1))
def test_mutated_files_end_well(kind, seed):
    """Catches: any exception but PictureError from a damaged file, whatever Pillow's decoder stumbles over."""
    rng = np.random.default_rng(seed)
    data = bytearray(encode(Image.fromarray(noise(24, 17)), kind))
    for _ in range(rng.integers(1, 8)):
        data[rng.integers(len(data))] = rng.integers(256)
    if rng.random() < 0.3:
        del data[rng.integers(len(data)):]
    try:
        image, _ = open_picture(bytes(data))
    except PictureError:
        return
    assert image.mode == "RGB" and to_array(image, Transform(size=8)).shape == (3, 8, 8)
