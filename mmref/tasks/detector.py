"""Pictures to boxes and masks, for other programs; may be sent to other processes and machines by pickle.

    detect = mmref.Detector("mobilemamba_b1_mask_rcnn", "mask_rcnn.pth", class_names="coco")
    for answer in detect(["street.jpg", "broken.jpg"]):
        print(answer.picture, answer.error or list(zip(answer.labels, answer.objects.boxes)))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from mmref.arguments import check_flag, check_number
from mmref.data.frame import Frame, filled_up, to_frame
from mmref.detection.result import Detections
from mmref.errors import MmrefError
from mmref.tasks.task import Task

__all__ = ["Detected", "Detector", "detect"]

DEFAULT_MODEL = "mobilemamba_nano_ssdlite"


@dataclass(frozen=True, eq=False)
class Detected:
    """The answer for one picture: `objects`, best first; or, with `error`, why there is none.

    class_names  of all the network's classes, by number
    image        the picture as it was before scaling, with `Detector(..., keep_images=True)`; else None
    """

    picture: str
    objects: Detections | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None
    image: Image.Image | None = field(default=None, repr=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """The name of each object's class."""
        return () if self.objects is None else tuple(self.class_names[label] for label in self.objects.labels)


class Detector(Task):
    """Finds objects in pictures; calling it gives one `Detected` per picture, in order.

    A picture's answer does not depend on the other pictures of its batch, except in the last digits.

    Parameters
    ----------
    model
        a detector's name of `mmref.list_models()`, or a ready model (with `detect`, `config` and `transform`), which is
        then pickled along
    weights
        .safetensors or .pth file, or a state dict (pickled along); None for the model's own, included or published
    backend
        "numpy", "numba" or "cuda"
    score
        objects below it are left out, 0 to 1; the network has a threshold of its own (0.02 or 0.05)
    batch_size
        pictures per run of the network, at most: those that are equally large once they are scaled
    img_size
        the shorter side of the network's input; None for the weights' own
    workers
        threads that decode the next pictures while the network is busy; 0 decodes in the caller's thread
    exif
        turn pictures as their EXIF orientation asks, as the published pipeline does; boxes belong to the picture as it
        is turned
    keep_images
        let answers have the picture itself as `image`
    threads
        for backend="numba"
    transform
        instead of the weights' own
    prefer
        which of several state dicts in `weights`, as in `mmref.create_model`
    num_classes, in_chans
        checked against the weights

    Raises
    ------
    ValueProblem
        for invalid settings, at once
    CheckpointError and others of the weights
        with the first batch, or `load`

    Examples
    --------
    >>> import mmref
    >>> from mmref.data.samples import sample_picture
    >>> answer, = mmref.Detector(score=0.5)([sample_picture("scene1")])  # the included weights
    >>> answer.objects.boxes.shape                                       # x1, y1, x2, y2 in the picture's pixels
    (2, 4)
    """

    task, transform_kind = "detect", Frame

    def __init__(self, model=DEFAULT_MODEL, weights=None, backend: str = "numpy", score: float = 0.0,
                 batch_size: int = 1, img_size: int | None = None, *, workers: int = 0, exif: bool = True,
                 keep_images: bool = False, threads: int | None = None, transform: Frame | None = None,
                 prefer: str = "auto", class_names=None, num_classes: int | None = None, in_chans: int | None = None):
        super().__init__(model, weights, backend, batch_size, img_size, workers=workers, exif=exif, threads=threads,
                         transform=transform, prefer=prefer, class_names=class_names, num_classes=num_classes,
                         in_chans=in_chans)
        self.score = check_number("score", score, 0, 1)
        self.keep_images = check_flag("keep_images", keep_images)

    def settings(self) -> dict:
        """As `Task.settings`, with the least score."""
        return {**super().settings(), "score": self.score}

    def prepare(self, image, transform):
        """((channels, h, w), (h, w), the picture's (height, width), the picture or None)."""
        return *to_frame(image, transform), (image.height, image.width), image if self.keep_images else None

    def failure(self, name, notes, error) -> Detected:
        """The answer for a picture that cannot be read."""
        return Detected(name, notes=notes, error=error)

    def answers(self, loaded, prepared) -> Iterator[Detected]:
        """One per good picture. Pictures of one padded size are run at once: padding changes what is beside it."""
        groups, found = {}, {}
        for i, (_, (x, *_), _) in enumerate(prepared):
            groups.setdefault(filled_up([x], loaded.transform.multiple).shape, []).append(i)
        for members in groups.values():
            arrays, sizes, originals = zip(*(prepared[i][1][:3] for i in members), strict=True)
            x = filled_up(arrays, loaded.transform.multiple).astype(loaded.model.dtype, copy=False)
            with loaded.busy, np.errstate(all="ignore"):  # what is not finite is told as the answer
                try:
                    results = loaded.model.detect(x, sizes, originals)
                except MmrefError as error:          # raw maps that are not finite
                    results = [error] * len(members)
            found.update(zip(members, results, strict=True))
        for i, (name, (*_, image), notes) in enumerate(prepared):
            if isinstance(found[i], MmrefError):
                yield Detected(name, notes=notes, error=f"{name}: {found[i]}")
            else:
                yield Detected(name, found[i].above(self.score), loaded.labels, notes, image=image)


def detect(picture, model=DEFAULT_MODEL, weights=None, **settings) -> Detected:
    """The objects of one picture.

    Parameters
    ----------
    picture
        a path, bytes, a binary file or a PIL image
    model, weights, settings
        as for `Detector`, which is for several pictures

    Returns
    -------
    Detected
        boxes, labels, scores and perhaps masks, in the picture's own pixels

    Raises
    ------
    PictureError
        for a picture that cannot be read
    MmrefError
        of other kinds, as `Detector` and its `load`

    Examples
    --------
    >>> import mmref
    >>> from mmref.data.samples import sample_picture
    >>> mmref.detect(sample_picture("scene1"), score=0.5).labels
    ('ship', 'airplane')
    """
    return Detector(model, weights, **settings).one(picture)
