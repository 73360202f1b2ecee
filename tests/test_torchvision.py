"""The evaluation transform against torchvision's own, by checksums of its pixels."""

from __future__ import annotations

import io
import json
from collections import Counter

import numpy as np
import PIL
import pytest
from make_torchvision_checksums import cases, checksum, picture, to_rgb
from PIL import Image

from mmref.data.picture import Transform, open_picture, to_array

PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


@pytest.fixture(scope="module")
def golden(own_golden):
    return json.loads((own_golden / "torchvision_transforms.json").read_text())


def as_file(image):
    """The picture on its way through a file that keeps every pixel."""
    buffer = io.BytesIO()
    if image.mode == "CMYK":  # no lossless format of ours has it
        return image
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(x):
    """The picture that an array of 0..1 stands for, 8 bits."""
    return Image.fromarray(np.rint(x * 255).astype(np.uint8).transpose(1, 2, 0))


def test_pixels_are_torchvisions(golden):
    """Catches: the long side rounded instead of cut, a crop off by one, another filter, grey or palette pictures
    converted in another order, a slender picture computed otherwise too early; each for some of 300 pictures of eight
    modes, sides from 1 to 640 and ten crop sizes (tried: round() in place of int() fails 75)."""
    wrong = []
    for number, mode, width, height, size, ratio, expected in golden["cases"]:
        image = picture(number, mode, width, height)
        got, _ = open_picture(as_file(image))
        x = to_array(got, Transform(size=size, crop_ratio=ratio, **PLAIN))
        if checksum(pixels(x)) != expected:
            wrong.append((number, mode, width, height, size, ratio))
    if wrong and len(wrong) == len(golden["cases"]):
        pytest.fail(f"all differ: is Pillow {PIL.__version__} another than {golden['pillow']} in its resampling?")
    assert not wrong, f"{len(wrong)} of {len(golden['cases'])}, first {wrong[:3]}"


def test_checksums_are_of_these_cases(golden):
    """Catches: golden figures of other pictures than the script makes now, a mode or size that is left out, pictures
    that are all alike."""
    assert [tuple(case[:-1]) for case in golden["cases"]] == [tuple(case) for case in cases()]
    assert min(Counter(case[1] for case in golden["cases"]).values()) >= 30
    assert len({case[-1] for case in golden["cases"]}) > 290
    for mode in ("RGB", "P", "1", "I;16"):
        assert picture(3, mode, 9, 5).mode == mode and to_rgb(picture(3, mode, 9, 5)).getextrema()[0][1] > 100
