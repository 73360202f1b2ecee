"""Pictures to label maps, for other programs; may be sent to other processes and machines by pickle.

    answer = mmref.segment("photo.jpg")                       # one picture, in one line
    for share in answer.classes():
        print(share.name, f"{share.share:.1%}")
    answer.save("labels.png")

    segment = mmref.Segmenter("mobilemamba_b4_fpn", "fpn.pth", class_names="ade20k", backend="numba")
    for answer in segment.stream(paths):                      # any number, one after another
        print(answer.picture, answer.error or answer.labels.shape)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from mmref.arguments import check_flag, check_integer
from mmref.data.colours import class_colours
from mmref.data.keep_ratio import KeepRatio, normalised, pixels, to_map
from mmref.data.label_map import write_label_map
from mmref.errors import PictureError, ValueProblem
from mmref.tasks.labelling import label_dtype, labels_at, spans
from mmref.tasks.task import Task

__all__ = ["ClassShare", "LabelMap", "Segmenter", "segment"]

DEFAULT_MODEL = "mobilemamba_nano_fpn"


@dataclass(frozen=True)
class ClassShare:
    """A class that occurs in a picture: its number and name, how many pixels it has, and their share of all."""

    number: int
    name: str
    pixels: int
    share: float


@dataclass(frozen=True, eq=False)
class LabelMap:
    """The answer for one picture; or, with `error`, why there is none.

    labels       (H, W) uint8 (uint16 beyond 256 classes), every pixel's class; the picture's own size, after turning
    class_names  of all the network's classes, by number
    image        the picture as the network saw it before scaling, with `Segmenter(..., keep_images=True)`; else None
    """

    picture: str
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None
    image: Image.Image | None = field(default=None, repr=False)

    @property
    def colours(self) -> np.ndarray:
        """(classes, 3) uint8, what each class is shown in."""
        return class_colours(self.class_names)

    def classes(self) -> list[ClassShare]:
        """The classes that occur, largest first."""
        if self.labels is None:
            return []
        counts = np.bincount(self.labels.ravel(), minlength=len(self.class_names))
        order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
        return [ClassShare(i, self.class_names[i], int(counts[i]), int(counts[i]) / self.labels.size) for i in order]

    def save(self, path) -> None:
        """Write the label map as an indexed PNG whose indices are the classes. The file appears whole or not at all.

        Raises PictureError where there is no answer, ValueProblem beyond 256 classes, OSError."""
        if self.labels is None:
            raise PictureError(self.error)
        write_label_map(path, self.labels, self.colours)


class Segmenter(Task):
    """Gives every pixel of pictures a class; calling it gives one `LabelMap` per picture, in order.

    The network sees one picture at a time, since each has a size of its own.

    Parameters
    ----------
    model
        a name of `mmref.list_models()`, or a ready model (callable, (1, 3, h, w) -> logits (1, classes, h, w), with
        `config` and `transform`), which is then pickled along
    weights
        .safetensors or .pth file, or a state dict (pickled along); None for the model's own, included or published
    backend
        "numpy", "numba" or "cuda"
    img_size
        shorter side that pictures are scaled to; None for the weights' own (512 for the published ones)
    tile
        instead of scaling a picture, run the network on overlapping windows of this side, in the picture's own pixels.
        Memory is then that of a window, and of a byte per pixel. Details of large pictures are seen, but objects larger
        than a window are seen in parts only
    overlap
        what neighbouring windows share at least, pixels; None for a quarter of `tile`. A pixel's class comes from the
        window in which it lies farther from the edge
    workers
        threads that decode the next pictures while the network is busy; 0 decodes in the caller's thread
    exif
        turn pictures as their EXIF orientation asks, as the published evaluation does
    keep_images
        let answers have the picture itself as `image`

    Raises
    ------
    ValueProblem
        for invalid settings, at once
    CheckpointError and others of the weights
        with the first picture, or `load`

    Examples
    --------
    >>> import mmref
    >>> from mmref.data.samples import sample_picture
    >>> answer, = mmref.Segmenter()([sample_picture("scene1")])          # the included weights
    >>> answer.labels.dtype, answer.labels.shape                         # a class for every pixel of the picture
    (dtype('uint8'), (160, 160))
    """

    task, transform_kind = "segment", KeepRatio

    def __init__(self, model=DEFAULT_MODEL, weights=None, backend: str = "numpy", *, img_size: int | None = None,
                 tile: int | None = None, overlap: int | None = None, workers: int = 0, exif: bool = True,
                 keep_images: bool = False, threads: int | None = None, transform: KeepRatio | None = None,
                 prefer: str = "auto", class_names=None, num_classes: int | None = None, in_chans: int | None = None):
        super().__init__(model, weights, backend, 1, img_size, workers=workers, exif=exif, threads=threads,
                         transform=transform, prefer=prefer, class_names=class_names, num_classes=num_classes,
                         in_chans=in_chans)
        self.keep_images = check_flag("keep_images", keep_images)
        self.tile = None if tile is None else check_integer("tile", tile, 16, 4096)
        if tile is None and overlap is not None:
            raise ValueProblem("overlap must be left out without tile: there are no windows")
        if tile is not None and img_size is not None:
            raise ValueProblem("img_size and tile: pass one of them, not both; windows are not scaled")
        self.overlap = None if tile is None else (
            self.tile // 4 if overlap is None else check_integer("overlap", overlap, 0, self.tile // 2))

    def settings(self) -> dict:
        """As `Task.settings`, with the windows."""
        return {**super().settings(), "tile": self.tile, "overlap": self.overlap}

    def prepare(self, image, transform):
        """(the network's input, or the picture's pixels for windows; the picture)."""
        if self.tile is not None:
            return pixels(image, transform), image
        return to_map(image, transform), image

    def failure(self, name, notes, error) -> LabelMap:
        """The answer for a picture that cannot be read."""
        return LabelMap(name, notes=notes, error=error)

    def answers(self, loaded, prepared) -> Iterator[LabelMap]:
        """One per good picture, each with a run of the network, or several with windows."""
        for name, (x, image), notes in prepared:
            answer = LabelMap(name, None, loaded.labels, notes, image=image if self.keep_images else None)
            try:
                if self.tile is not None:
                    labels = self._labels_of_windows(loaded, x)
                else:
                    labels = labels_at(_logits(loaded, x), image.height, image.width)
                yield replace(answer, labels=labels)
            except _NotFinite:
                yield replace(answer, error=f"{name}: the network answered NaN or infinity")

    def _labels_of_windows(self, loaded, array):
        labels = np.empty(array.shape[:2], label_dtype(len(loaded.labels)))
        for top, bottom, first_row, last_row in spans(array.shape[0], self.tile, self.overlap):
            for left, right, first, last in spans(array.shape[1], self.tile, self.overlap):
                logits = _logits(loaded, normalised(array[top:bottom, left:right], loaded.transform))
                kept = logits[:, first_row - top:last_row - top, first - left:last - left]
                labels[first_row:last_row, first:last] = kept.argmax(0)
        return labels


class _NotFinite(ArithmeticError):
    """Logits that have no largest."""


def _logits(loaded, x):
    """x (channels, h, w) -> (classes, h, w), in the model's dtype."""
    with loaded.busy, np.errstate(all="ignore"):  # what is not finite is told as the answer
        logits = np.asarray(loaded.model(x[None].astype(getattr(loaded.model, "dtype", x.dtype), copy=False)))[0]
    if not np.isfinite(logits).all():
        raise _NotFinite
    return logits


def segment(picture, model=DEFAULT_MODEL, weights=None, **settings) -> LabelMap:
    """The label map of one picture.

    Parameters
    ----------
    picture
        a path, bytes, a binary file or a PIL image
    model, weights, settings
        as for `Segmenter`, which is for several pictures

    Returns
    -------
    LabelMap
        a class for every pixel of the picture

    Raises
    ------
    PictureError
        for a picture that cannot be read
    MmrefError
        of other kinds, as `Segmenter` and its `load`

    Examples
    --------
    >>> import mmref
    >>> from mmref.data.samples import sample_picture
    >>> [found.name for found in mmref.segment(sample_picture("scene1")).classes()]
    ['background', 'airplane', 'ship']
    """
    return Segmenter(model, weights, **settings).one(picture)
