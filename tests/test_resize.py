"""OpenCV's resizing in integers: equal bits, whatever the sizes."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from golden_files import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from mmref.data.resize import resize, resized_size
from mmref.errors import PictureError, ShapeError, ValueProblem

# (size, resized size, crc32 of what OpenCV 4.10 makes of `scrambled`)
OPENCV = [
    ((37, 52), (20, 31), 235427069),
    ((6, 10), (3, 5), 3720554040),
    ((1, 1), (4, 7), 3198881166),
    ((5, 3), (53, 32), 1301150109),
    ((1, 28551), (3, 2048), 4246072127),
    ((28027, 3), (512, 3), 1411142339),
]


def scrambled(height, width):
    """A picture without pattern, from integers alone."""
    values = np.arange(height * width * 3, dtype=np.uint32) * np.uint32(2654435761) >> np.uint32(24)
    return values.astype(np.uint8).reshape(height, width, 3)


def synthetic_picture(shared_golden, seed, height, width):
    """The picture that a golden case stands for, (height, width, 3) uint8 RGB."""
    x = synthetic(shared_golden).synthetic_input(seed, (1, 3, height, width))[0]
    return np.clip(np.rint(128 + 48 * x), 0, 255).astype(np.uint8).transpose(1, 2, 0)


@pytest.mark.parametrize("size, new, checksum", OPENCV)
def test_bits_are_opencvs(size, new, checksum):
    """Catches weights of another rounding, rows that lose their second weight at the edge (pixels are one grey level
    off), and, in the last two cases, a scale that differs in its last bit."""
    assert zlib.crc32(resize(scrambled(*size), new)) == checksum


def test_published_resizing(shared_golden):
    """Catches another size or other bits than the published pipeline's on any of its twelve cases."""
    figures = np.load(shared_golden / "seg_resize.npz")
    for i, (size, new, checksum) in enumerate(zip(*(figures[k].tolist() for k in ("sizes", "resized_sizes", "crc32")),
                                                  strict=True)):
        assert resized_size(*size, long=2048, short=512) == tuple(new)
        picture = synthetic_picture(shared_golden, int(figures["seed"]) + i, *size)
        assert zlib.crc32(resize(picture, new)) == checksum, size


def test_detectors_resizing(shared_golden):
    """Catches a resize that fits the sizes of segmentation only, and detection's rule for 1333 x 800."""
    figures = np.load(shared_golden / "det_parts.npz")
    picture = figures["resize/picture"]
    cases = [key for key in figures.files if key.startswith("resize/") and key != "resize/picture"]
    assert cases and all((resize(picture, figures[key].shape[:2]) == figures[key]).all() for key in cases)
    for (width, height), new in zip(figures["rescale/in_wh"].tolist(), figures["rescale/out_wh"].tolist(), strict=True):
        assert resized_size(height, width, long=1333, short=800) == tuple(new[::-1])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 200), st.integers(1, 40), st.integers(1, 4))
@settings(max_examples=30)
def test_any_size(height, width, new_height, new_width, channels):
    """Catches blocks of rows that do not meet, channels that mix, and results beyond the neighbours' range."""
    picture = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    whole = resize(picture, (new_height, new_width))
    assert whole.shape == (new_height, new_width, channels) and whole.dtype == np.uint8
    for channel in range(channels):
        assert (resize(picture[..., channel:channel + 1], (new_height, new_width))[..., 0] == whole[..., channel]).all()
    exact = bilinear(picture, new_height, new_width)
    assert np.abs(whole - exact).max() <= 1.25  # half for the rounding, the rest for weights in 2048ths and shifts
    assert (resize(picture, (height, width)) == picture).all()


def bilinear(picture, new_height, new_width):
    """The same in exact arithmetic, by the definition."""
    result = picture.astype(float)
    for axis, new in enumerate((new_height, new_width)):
        old = picture.shape[axis]
        at = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        low = np.floor(at).astype(int)
        shape = [-1 if i == axis else 1 for i in range(3)]
        part = (at - low).reshape(shape)
        result = (1 - part) * result.take(low, axis) + part * result.take(np.minimum(low + 1, old - 1), axis)
    return result


@pytest.mark.parametrize("height, width", [(1, 5000), (4097, 1)])
def test_too_slender(height, width):
    """Catches a picture without pixels on its way to the network, and a message that does not say what is wrong."""
    with pytest.raises(PictureError, match=f"too slender: {width} x {height} pixels would be resized to"):
        resized_size(height, width, long=2048, short=512)
    assert resized_size(1, 4096, long=2048, short=512) == (1, 2048)


def test_bad_arguments():
    """Catches floats that are cut to bytes, grey pictures without a channel axis, sizes that are none."""
    picture = scrambled(3, 4)
    for bad in (picture.astype(np.float32), picture[..., 0], picture[:0], picture.tolist()):
        with pytest.raises(ShapeError, match="picture must be"):
            resize(bad, (2, 2))
    for size in ((0, 2), (2, 2.0), 3, (2, 2, 2), (2, True)):
        with pytest.raises(ValueProblem, match="size"):
            resize(picture, size)
