"""Pictures composed from CIFAR-10, with the masks and boxes of what was put into them.

    composer = Composer(*load_split("/tmp/cifar10", "train"), seed=0)
    scene = composer()          # a Scene: pixels (160, 160, 3), labels (160, 160), boxes, classes

A scene is another CIFAR-10 picture, enlarged and blurred, with one to four pictures of objects pasted on it at sizes
from 40 to 200 pixels. CIFAR-10 has no masks. What is pasted is therefore not the object's outline but the picture cut
to an ellipse or a square with round corners, its edge softened over some pixels; **the mask is that patch's shape**,
where more than half of a pixel is the patch's. A network trained on it learns where the patch lies.

As a program it writes scenes as a data set that `mmref eval` takes:

    python weights/training/compose.py --data /tmp/cifar10 --split test --count 1000 --seed 1 --out /tmp/composed

`pictures/*.png`, `labels/*.png` (0 background, 1 to 10 the classes) and `instances.json` (COCO's format).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmref.data.labels import CIFAR10

SIZE = 160                            # side of a scene, pixels
SMALLEST, LARGEST = 40, 144           # sides of patches that lie inside the scene
GIANT, SHARE_OF_GIANTS = (144, 208), 0.15  # now and then a single one that is larger than the scene, or nearly
MOST_OBJECTS, MOST_COVERED = 4, 0.3   # a patch is not pasted where it would hide more than this share of another


@dataclass(frozen=True)
class Scene:
    """pixels  (SIZE, SIZE, 3) uint8
    labels  (SIZE, SIZE) uint8, 0 for the background, 1 + class for what is seen of the patches
    boxes   (n, 4) float32, x1 y1 x2 y2 around what is seen of each patch, in the order they were pasted
    classes (n,) int64, 0 to 9
    masks   n arrays (SIZE, SIZE) of bool, what is seen of each
    """

    pixels: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    masks: list[np.ndarray]


def load_split(root, split):
    """(pictures (n, 32, 32, 3) uint8, classes (n,) int64) of CIFAR-10's folder `split`, one folder a class."""
    paths = [(p, i) for i, name in enumerate(CIFAR10) for p in sorted((Path(root) / split / name).glob("*.jpg"))]
    pixels = np.stack([np.asarray(Image.open(p).convert("RGB")) for p, _ in paths])
    return pixels, np.array([i for _, i in paths])


def enlarged(pixels, height, width):
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.BICUBIC))


class Composer:
    """Scene after scene from the given pictures (n, 32, 32, 3) of the given classes (n,). The same seed gives the same
    scenes."""

    def __init__(self, pictures, classes, seed):
        self.pictures, self.classes = pictures, classes
        self.random = np.random.default_rng(seed)

    def __call__(self):
        canvas, owner, chosen = self.background(), np.zeros((SIZE, SIZE), np.uint8), []
        giant = self.random.random() < SHARE_OF_GIANTS
        for _ in range(1 if giant else self.random.integers(1, MOST_OBJECTS + 1)):
            self.paste(canvas, owner, chosen, giant)
        masks = [owner == i + 1 for i in range(len(chosen))]
        labels = np.append(0, np.array(chosen, np.int64) + 1).astype(np.uint8)[owner]
        pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
        return Scene(pixels, labels, np.array([box_of(m) for m in masks], np.float32).reshape(-1, 4),
                     np.array(chosen, np.int64), masks)

    def background(self):
        """Any picture, shrunk to a few pixels and enlarged: too blurred to show what it was."""
        pixels = Image.fromarray(self.pictures[self.random.integers(len(self.pictures))])
        coarse = int(self.random.integers(3, 9))
        return enlarged(np.asarray(pixels.resize((coarse, coarse), Image.BOX)), SIZE, SIZE).astype(np.float32)

    def paste(self, canvas, owner, chosen, giant):
        """One patch more, unless twenty places were tried and each would hide too much of an earlier one."""
        index = self.random.integers(len(self.pictures))
        low, high = GIANT if giant else (SMALLEST, LARGEST)
        side = low * (high / low) ** self.random.random()
        aspect = 1.25 ** self.random.uniform(-1, 1)
        height, width = (int(np.clip(round(side * f), low, high)) for f in (aspect, 1 / aspect))
        alpha = patch_shape(height, width, self.random.uniform(2, 6), self.random.uniform(0.5, 2.5))
        inside = alpha > 0.5
        for _ in range(20):
            top, left = (self.place(length, giant) for length in (height, width))
            rows, cols = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
            cut = (slice(rows.start - top, SIZE - top), slice(cols.start - left, SIZE - left))
            under = np.bincount(owner[rows, cols][inside[cut]], minlength=len(chosen) + 1)[1:]
            before = np.bincount(owner.ravel(), minlength=len(chosen) + 1)[1:]
            if (under <= MOST_COVERED * before).all():
                break
        else:
            return
        pixels = self.pictures[index][:, ::-1] if self.random.random() < 0.5 else self.pictures[index]
        pixels = enlarged(np.ascontiguousarray(pixels), height, width)[cut].astype(np.float32)
        gain, offset = 1 + 0.12 * self.random.standard_normal(), 10 * self.random.standard_normal()
        pixels = (pixels - 127.5) * gain + 127.5 + offset
        canvas[rows, cols] += alpha[cut][:, :, None] * (pixels - canvas[rows, cols])
        chosen.append(int(self.classes[index]))
        owner[rows, cols][inside[cut]] = len(chosen)

    def place(self, length, giant):
        """Where a patch begins on one axis: inside the scene, or, for a giant, so that at most a quarter is cut off."""
        margin = length // 4 if giant else 0
        low, high = sorted((-margin, SIZE - length + margin))
        return int(self.random.integers(low, high + 1))


def patch_shape(height, width, exponent, softness):
    """(height, width) float32 in 0..1: 1 inside |x|^e + |y|^e = 1 (e = 2 an ellipse, 6 a square with round corners),
    falling to 0 over some `softness` pixels."""
    y, x = ((np.abs((np.arange(n, dtype=np.float32) + 0.5) * (2 / n) - 1)) ** exponent for n in (height, width))
    radius = (y[:, None] + x) ** (1 / exponent)                 # 1 on the edge
    distance = (1 - radius) * (min(height, width) / 2)          # pixels inwards, roughly
    return np.clip(distance / softness, 0, 1)


def box_of(mask):
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return cols[0], rows[0], cols[-1] + 1, rows[-1] + 1


def write_data_set(composer, count, out):
    """`count` scenes as pictures, label maps and COCO annotations with masks as run lengths."""
    out = Path(out)
    for folder in ("pictures", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        scene, name = composer(), f"{number:05d}.png"
        Image.fromarray(scene.pixels).save(out / "pictures" / name)
        Image.fromarray(scene.labels).save(out / "labels" / name)
        images.append({"id": number, "file_name": name, "height": SIZE, "width": SIZE})
        for box, label, mask in zip(scene.boxes, scene.classes, scene.masks, strict=True):
            x1, y1, x2, y2 = (float(v) for v in box)
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": int(label) + 1,
                                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": int(mask.sum()), "iscrowd": 0,
                                "segmentation": {"size": [SIZE, SIZE], "counts": run_lengths(mask)}})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CIFAR10)]
    (out / "instances.json").write_text(json.dumps(
        {"images": images, "annotations": annotations, "categories": categories}), encoding="utf-8")


def run_lengths(mask):
    """COCO's uncompressed RLE: lengths of the runs down the columns, of False first."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(n) for n in np.diff(ends, prepend=0)]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder with train/ and test/, one folder per class")
    parser.add_argument("--split", default="test", choices=("train", "test"))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True)
    args = parser.parse_args(arguments)
    write_data_set(Composer(*load_split(args.data, args.split), args.seed), args.count, args.out)


if __name__ == "__main__":
    main()
