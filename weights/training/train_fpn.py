"""Train mobilemamba_nano_fpn on pictures composed from CIFAR-10 (PyTorch; not needed to use mmref).

    tar -xJf ../shared/data/cifar10_jpeg.tar.xz -C /tmp/cifar10
    python weights/training/train_fpn.py --data /tmp/cifar10 --minutes 26 --out /tmp/fpn

The backbone begins as the trained mobilemamba_nano and is trained on, neck and head begin from random. Every scene is new
(compose.py). The schedule follows the clock; an exponential moving average of the weights is what is shipped. `--ship`
writes the safetensors file of what has been reached and trains nothing, so that a first version can be taken while
the training goes on. Measured and chosen by nothing but the training's end: see `measure_fpn.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from compose import CLASSES, SIZE
from dense_networks import SemanticFPN, resized
from dense_training import MEAN, STD, arguments, train, write_weights

CHANNELS, INNER = 48, 32          # of neck and head; the published 256 and 128 would be 8 MB by themselves
CLASS_NAMES = ("background", *CLASSES)


def create():
    return SemanticFPN("nano", len(CLASS_NAMES), CHANNELS, INNER)


def loss(model, x, scenes):
    """Cross-entropy of every fourth pixel: the logits at half the picture's size."""
    labels = torch.stack([torch.from_numpy(s.labels[::2, ::2]) for s in scenes]).long()
    return F.cross_entropy(resized(model(x), labels.shape[1:]), labels, label_smoothing=0.05)


def main():
    args = arguments(argparse.ArgumentParser(description=__doc__.split("\n")[0]))
    if not args.ship:
        train(args, create(), "../mobilemamba_nano.safetensors", loss)
    write_weights(Path(args.out), "mobilemamba_nano_fpn", {
        "class_names": json.dumps(CLASS_NAMES), "img_size": str(SIZE), "channels": str(CHANNELS), "inner": str(INNER),
        "transform": json.dumps({"short": SIZE, "long": 4 * SIZE, "mean": MEAN, "std": STD})})


if __name__ == "__main__":
    main()
