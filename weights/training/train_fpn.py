"""Train mobilemamba_nano_fpn on pictures composed from CIFAR-10 (PyTorch; not needed to use mmref).

    tar -xJf ../shared/data/cifar10_jpeg.tar.xz -C /tmp/cifar10
    python weights/training/train_fpn.py --data /tmp/cifar10 --minutes 26 --out /tmp/fpn

The backbone begins as the trained mobilemamba_nano and is trained on, neck and head begin from random. Every scene is
new (compose.py). The schedule follows the clock; an exponential moving average of the weights is what is shipped.
`--ship` writes the safetensors file of what has been reached and trains nothing. Nothing but the training's end chooses
what is shipped; `mmref eval --task segment` measures it, on scenes of test pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from dense_networks import SemanticFPN, resized
from dense_training import MEAN, STD, arguments, train, write_weights

from mmref.data.keep_ratio import KeepRatio
from mmref.data.labels import CIFAR10
from mmref.models.fpn import VARIANTS

CONFIG = VARIANTS["mobilemamba_nano_fpn"]
CLASS_NAMES = ("background", *CIFAR10)


def create():
    return SemanticFPN("nano", CONFIG.num_classes, CONFIG.neck_width, CONFIG.head_width)


def loss(model, x, scenes):
    """Cross-entropy of every fourth pixel, another one of the four each time: the logits at half the picture's size."""
    row, column = torch.randint(0, 2, (2,)).tolist()
    labels = torch.stack([torch.from_numpy(s.labels[row::2, column::2]) for s in scenes]).long()
    return F.cross_entropy(resized(model(x), labels.shape[1:]), labels, label_smoothing=0.05)


def main():
    args = arguments(argparse.ArgumentParser(description=__doc__.split("\n")[0]))
    if not args.ship:
        train(args, create(), loss)
    write_weights(Path(args.out), CONFIG.name, {
        "class_names": json.dumps(CLASS_NAMES),
        "transform": json.dumps(KeepRatio(CONFIG.img_size, 4 * CONFIG.img_size, MEAN, STD).to_dict())})


if __name__ == "__main__":
    main()
