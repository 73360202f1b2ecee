"""Train mobilemamba_nano_ssdlite on pictures composed from CIFAR-10 (PyTorch; not needed to use mmref).

    python weights/training/train_ssdlite.py --data /tmp/cifar10 --start /tmp/fpn/mobilemamba_nano_fpn.safetensors \\
        --minutes 50 --out /tmp/ssdlite

The backbone begins as that of a trained mobilemamba_nano_fpn, which has seen such scenes, and is trained on; neck and
head begin from random. The anchors are those of mmref's own variant. Schedule, average and `--ship`: as train_fpn.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from compose import SIZE
from dense_networks import SSDLite
from dense_training import MEAN, STD, arguments, train, write_weights

import mmref
from mmref.data.labels import CIFAR10
from mmref.models.ssdlite import VARIANTS

CONFIG = VARIANTS["mobilemamba_nano_ssdlite"]
MATCH = 0.5                       # overlap from which an anchor stands for an object
NEGATIVES = 3                     # anchors of background that count, the worst ones, for each that stands for an object


def create():
    return SSDLite("nano", len(CIFAR10), CONFIG.extra)


def anchors_of(config, size=SIZE):
    """(A, 4) float32, of all levels one after the other: the model's own, for its maps of a scene."""
    model = mmref.create_model(config.name)
    raw = model(np.zeros((1, 3, size, size), np.float32))["cls"]
    return torch.from_numpy(np.concatenate([anchors.grid(*x.shape[2:])
                                            for anchors, x in zip(model.anchors, raw, strict=True)])).float()


def overlaps(anchors, boxes):
    """(A, n) intersection over union."""
    low = torch.maximum(anchors[:, None, :2], boxes[:, :2])
    high = torch.minimum(anchors[:, None, 2:], boxes[:, 2:])
    common = (high - low).clamp(min=0).prod(2)
    area_a, area_b = ((b[:, 2:] - b[:, :2]).prod(1) for b in (anchors, boxes))
    return common / (area_a[:, None] + area_b - common)


def targets(anchors, boxes, classes, spread):
    """(classes (A,), the last for background; offsets (A, 4)): what each anchor should say. An anchor stands for the
    object that it overlaps most, from MATCH on; every object has at least the one anchor that overlaps it most."""
    iou = overlaps(anchors, boxes)
    best, index = iou.max(1)
    own = iou.argmax(0)
    best[own], index[own] = 1.0, torch.arange(len(boxes))
    label = torch.where(best >= MATCH, classes[index], len(CIFAR10))
    matched = boxes[index]
    side, wanted = anchors[:, 2:] - anchors[:, :2], matched[:, 2:] - matched[:, :2]
    shift = (matched[:, :2] + matched[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2 / side
    return label, torch.cat([shift, torch.log(wanted / side)], 1) / spread


def by_anchor(maps, values):
    """Raw maps (B, anchors * values, h, w) of all levels -> (B, all anchors, values): by level, row, column, anchor."""
    return torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, values) for m in maps], 1)


class Loss:
    """Cross-entropy over the anchors that stand for objects and the worst of the others, and the smooth distance of
    the former's offsets (Liu et al. 2016, section 2.2)."""

    def __init__(self):
        self.anchors, self.spread = anchors_of(CONFIG), torch.tensor(mmref.create_model(CONFIG.name).spread)

    def __call__(self, model, x, scenes):
        cls, reg = model(x)
        cls, reg = by_anchor(cls, len(CIFAR10) + 1), by_anchor(reg, 4)
        wanted = [targets(self.anchors, torch.from_numpy(s.boxes), torch.from_numpy(s.classes), self.spread)
                  for s in scenes]
        label, offsets = (torch.stack(parts) for parts in zip(*wanted, strict=True))
        positive = label < len(CIFAR10)
        count = int(positive.sum())
        entropy = F.cross_entropy(cls.flatten(0, 1), label.flatten(), reduction="none")
        others = entropy[~positive.flatten()]
        worst = others.topk(min(NEGATIVES * count, len(others))).values
        boxes = F.smooth_l1_loss(reg[positive], offsets[positive], reduction="sum")
        return (entropy[positive.flatten()].sum() + worst.sum() + boxes) / count


def main():
    args = arguments(argparse.ArgumentParser(description=__doc__.split("\n")[0]))
    if not args.ship:
        train(args, create(), Loss())
    write_weights(Path(args.out), CONFIG.name, {
        "class_names": json.dumps(CIFAR10),
        "transform": json.dumps(CONFIG.frame().with_mean_and_std(MEAN, STD).to_dict())})


if __name__ == "__main__":
    main()
