"""Write golden/torchvision_transforms.json: checksums of what torchvision makes of 300 made-up pictures.

    python -m venv tv && tv/bin/pip install torch==2.14.1 torchvision==0.29.1 numpy pillow
    tv/bin/python tests/make_torchvision_checksums.py

torchvision's Resize (bicubic, with antialiasing) and CenterCrop work on PIL images, so the pixels are Pillow's; sizes,
rounding and the place of the crop are torchvision's. test_torchvision.py compares mmref's with these, so that nobody
needs torchvision to run the tests. This script needs neither mmref nor a network. What is made:

picture   `picture(number, mode, width, height)`: noise over waves, from integers alone, so that every machine makes
          the same. Modes L, RGB, RGBA, LA, P, 1, CMYK, I;16
to RGB    as Pillow converts, after which alpha is gone. 16-bit grey is scaled to 8 bits first, as mmref does it:
          Pillow's own conversion would turn it white, and torchvision has no opinion
sizes     none is so small that a slender picture shrinks to a few pixels: there Pillow 11 and 13 round differently
result    sha256 of the cropped picture's bytes (crop x crop x 3), first 16 digits
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

TARGET = Path(__file__).with_name("golden") / "torchvision_transforms.json"
MODES = ("RGB", "L", "RGBA", "P", "CMYK", "LA", "1", "I;16")
SHAPES = ((1, 1), (1, 2), (2, 1), (3, 5), (7, 7), (31, 32), (32, 32), (33, 31), (64, 48), (100, 75), (97, 131),
          (131, 97), (5, 300), (300, 5), (2, 100), (451, 300), (224, 224), (256, 256), (257, 255), (500, 375),
          (375, 500), (640, 427), (13, 640), (499, 333))
SIZES = ((224, 0.875), (192, 0.875), (32, 1.0), (128, 0.9), (97, 0.95), (17, 0.5), (256, 1.0), (31, 0.875), (384, 1.0),
         (113, 0.3))


def picture(number: int, mode: str, width: int, height: int) -> Image.Image:
    """A picture of that mode: integers from a linear congruential generator, over a pattern of triangles."""
    channels = {"RGB": 3, "L": 1, "RGBA": 4, "P": 3, "CMYK": 4, "LA": 2, "1": 1, "I;16": 1}[mode]
    count = width * height * channels
    state = (np.arange(count, dtype=np.uint64) + np.uint64(1 + 7919 * number)) * np.uint64(6364136223846793005)
    state ^= state >> np.uint64(29)
    noise = (state * np.uint64(1442695040888963407) >> np.uint64(48)).astype(np.int64).reshape(height, width, channels)
    y, x, c = np.ogrid[:height, :width, :channels]
    waves = np.abs((x * 5 + y * 3 + c * 50 + number) % 256 - 128) * 2 * 257
    values = np.clip((noise + 3 * waves) // 4, 0, 65535)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16))
    pixels = (values >> 8).astype(np.uint8)
    if mode == "P":  # a palette of 6 x 6 x 6 colours
        steps = pixels.astype(np.int64) * 6 // 256
        image = Image.fromarray((steps[..., 0] * 36 + steps[..., 1] * 6 + steps[..., 2]).astype(np.uint8)).convert("L")
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([51 * level for i in range(216) for level in (i // 36, i // 6 % 6, i % 6)])
        return image
    if mode == "1":
        return Image.fromarray(np.where(pixels[..., 0] > 127, 255, 0).astype(np.uint8)).convert("1")
    bands = [Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in range(channels)]
    return bands[0] if mode == "L" else Image.merge(mode, bands)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, 16-bit grey rounded to the nearest of 256 levels."""
    if image.mode == "I;16":
        image = Image.fromarray(((np.asarray(image).astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")


def cases():
    """(number, mode, width, height, size, crop ratio) of 300 pictures, every mode, shape and size in many company."""
    for number in range(300):
        size, ratio = SIZES[number % len(SIZES)]
        width, height = SHAPES[(number * 7 + number // 24) % len(SHAPES)]
        yield number, MODES[(number + number // 8) % len(MODES)], width, height, size, ratio


def checksum(image: Image.Image) -> str:
    """Of an RGB picture's pixels."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


def main():
    import torchvision
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
    found = []
    for number, mode, width, height, size, ratio in cases():
        transform = Compose([Resize(int(size / ratio), InterpolationMode.BICUBIC, antialias=True), CenterCrop(size)])
        result = transform(to_rgb(picture(number, mode, width, height)))
        assert result.size == (size, size) and result.mode == "RGB"
        found.append([number, mode, width, height, size, ratio, checksum(result)])
    import PIL
    lines = ",\n".join(f"  {json.dumps(case)}" for case in found)
    TARGET.write_text(f'{{"torchvision": {json.dumps(torchvision.__version__.partition("+")[0])}, '
                      f'"pillow": {json.dumps(PIL.__version__)},\n "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
