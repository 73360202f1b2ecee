"""What the detectors share: a backbone, and `detect`, which takes raw maps to boxes.

The network's dense parts (`DENSE`) are methods that turn arrays into arrays; they run in NumPy here, or wherever a
graph of them runs. What happens between and behind them is `mmref.detection`, on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from mmref.arguments import check_integer, check_integers, check_kind
from mmref.data.frame import Frame
from mmref.data.labels import coco_names
from mmref.data.preparation import IMAGENET_GREY, IMAGENET_MEAN, IMAGENET_STD
from mmref.detection.anchors import Anchors
from mmref.detection.candidates import by_anchor, one_stage, sigmoid_scores, softmax_scores
from mmref.detection.result import Detections, detections
from mmref.errors import ValueProblem
from mmref.models.network import Network
from mmref.models.variants import MOST_CHANNELS, MOST_CLASSES, Variant


@dataclass(frozen=True)
class DetectionVariant:
    """A backbone with a detector behind it; the published ones have COCO's 80 classes. Raises ValueProblem."""

    name: str
    backbone: Variant
    img_size: int
    num_classes: int = 80
    in_chans: int = 3

    task: ClassVar[str] = "detect"
    head: ClassVar[str] = "bbox_head."
    headless: ClassVar[bool] = False
    masks: ClassVar[bool] = False  # whether it answers with masks, too

    def __post_init__(self):
        check_kind("backbone", self.backbone, Variant, "a Variant")
        for field, low, high in (("img_size", 1, 4096), ("num_classes", 1, MOST_CLASSES),
                                 ("in_chans", 1, MOST_CHANNELS)):
            object.__setattr__(self, field, check_integer(field, getattr(self, field), low, high))

    def default_transform(self) -> Frame:
        """The published evaluation's, at the variant's size; in grey for one input channel."""
        mean, std = IMAGENET_GREY if self.in_chans == 1 else (IMAGENET_MEAN, IMAGENET_STD)
        return self.frame().with_mean_and_std(mean, std)

    def frame(self) -> Frame:
        """How pictures are scaled: at most 1333 x 800, ratio kept, filled up to a multiple of 32."""
        return Frame(800, 1333).with_size(self.img_size)

    def published_names(self) -> tuple[str, ...] | None:
        """What the outputs of the published weights are called: COCO's classes."""
        return coco_names() if self.num_classes == 80 else None


class DetectionNetwork(Network):
    """Base of the detectors, which have `forward`, from pictures to raw maps, and `find`, from those to boxes."""

    strides = (16, 16, 32, 64)

    def __init__(self, config: DetectionVariant):
        super().__init__(config)
        self.backbone = replace(config.backbone, num_classes=0, in_chans=config.in_chans).build()

    def maps(self, x, wanted) -> list:
        """The backbone's maps of these stages, 1 to 3 (strides 16, 32, 64), of pictures, which are checked."""
        self.check_input(x)
        return self.backbone.forward_intermediates(x, list(wanted), intermediates_only=True)

    def forward_features(self, x):
        """The backbone's three maps, [(B, C, H/stride, W/stride) for strides 16, 32, 64]."""
        return self.maps(x, (1, 2, 3))

    def forward_intermediates(self, x, indices: int | list[int] | None = None, intermediates_only: bool = False):
        """As the classifier's (`mmref.models.mobilemamba.MobileMamba`): the stem's map and the three stages'."""
        return self.backbone.forward_intermediates(x, indices, intermediates_only)

    def detect(self, x, image_sizes=None, original_sizes=None, *, dense: Callable | None = None,
               backend: str = "numpy") -> list[Detections]:
        """What is to be seen in pictures x (B, in_chans, H, W): one `mmref.detection.result.Detections` for each.

        image_sizes     [(height, width), ...] of each picture in x, without padding right and below it; None for (H, W)
        original_sizes  of each picture before it was resized, which boxes and masks are given for; None for image_sizes
        dense           how the network's dense parts run: called with a method's name and arrays; None for this
                        network's own methods
        backend         of suppression and RoIAlign, "numpy" or "numba"

        Padding and batch mates of other sizes change maps near the border, and so results, slightly. Raises
        ShapeError and ValueProblem.
        """
        image_sizes, original_sizes = self._sizes(x, image_sizes, original_sizes)
        dense = dense or self._dense
        raw = dense("forward", x)
        return [self.find(raw, i, image, original, dense, backend)
                for i, (image, original) in enumerate(zip(image_sizes, original_sizes, strict=True))]

    def _dense(self, method, *arrays):
        return self(*arrays) if method == "forward" else getattr(self, method)(*arrays)

    def _sizes(self, x, image_sizes, original_sizes):
        self.check_input(x)
        batch, _, height, width = x.shape

        def checked(name, sizes, most):
            if not isinstance(sizes, (list, tuple, np.ndarray)) or len(sizes) != batch:
                raise ValueProblem(f"{name} must be a list of (height, width), one for each of {batch} pictures")
            sizes = [check_integers(f"{name}[{i}]", tuple(size) if isinstance(size, np.ndarray) else size, 2, 1)
                     for i, size in enumerate(sizes)]
            for i, size in enumerate(sizes):
                if most and (size[0] > height or size[1] > width):
                    raise ValueProblem(f"{name}[{i}] must lie within the input's {height} x {width}, got {size}")
            return sizes
        image_sizes = checked("image_sizes", [(height, width)] * batch if image_sizes is None else image_sizes, True)
        return image_sizes, image_sizes if original_sizes is None else checked("original_sizes", original_sizes, False)

    def find(self, raw, i: int, image_size, original_size, dense: Callable, backend: str) -> Detections:
        """The objects of picture i of a batch, from the raw maps that `forward` gives."""
        raise NotImplementedError


class OneStage(DetectionNetwork):
    """Base of those whose raw maps say it all: {"cls": [maps (B, anchors * classes, h, w)], "reg": [maps (B, anchors *
    4, h, w)]}, by level; channels are anchor * classes + class and anchor * 4 + coordinate.

    anchors     of each level
    background  whether the classes end with one for nothing and exclude each other (softmax); else each is a question
                of its own (sigmoid)
    spread      of the offsets, see `mmref.detection.boxes.decode`
    score, candidates  of each level, the pairs of anchor and class above this score, so many of them at most
    overlap, kept      what non-maximum suppression takes for one object, and how many are kept of a picture
    """

    anchors: list[Anchors]
    background: bool
    spread: tuple[float, float, float, float]
    score: float
    overlap: float
    candidates = 1000
    kept: int

    @property
    def outputs(self) -> int:
        """Classes that a channel stands for, background included."""
        return self.config.num_classes + self.background

    def find(self, raw, i, image_size, original_size, dense, backend):
        choose = softmax_scores if self.background else sigmoid_scores

        def level(anchors, cls, reg):
            logits, offsets = by_anchor(cls[i], self.outputs), by_anchor(reg[i], 4)
            return anchors.grid(*cls.shape[2:]), offsets, choose(logits, self.score, self.candidates)
        levels = [level(*parts) for parts in zip(self.anchors, raw["cls"], raw["reg"], strict=True)]
        found = one_stage(levels, image_size, original_size, spread=self.spread, threshold=self.overlap,
                          most=self.kept, backend=backend)
        return detections(*found, original_size, self.dtype)
