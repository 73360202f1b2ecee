"""Pictures to classes, in batches, for other programs; may be sent to other processes and machines by pickle.

    predict = mmref.Predictor("mobilemamba_nano", topk=3)
    for answer in predict(["cat.jpg", "broken.jpg"]):
        print(answer.picture, answer.error or answer.labels)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmref.arguments import check_integer
from mmref.data.picture import Transform, to_array
from mmref.tasks.task import Task

__all__ = ["Prediction", "Predictor"]


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture, best class first; or, with `error`, why there is none."""

    picture: str
    classes: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None


class Predictor(Task):
    """Classifies pictures in batches; calling it gives one `Prediction` per picture, in order.

    A picture's answer does not depend on the other pictures of its batch. How many they are may change the last digits
    of a probability (about 1e-6 of the largest logit), because a matrix product of another height may sum in another
    order; with batch_size=1 answers are equal to the last bit whatever else is in the batch.

    Parameters
    ----------
    model
        a name of `mmref.list_models()`, or a ready model (callable, with `config` and `transform`), which is then
        pickled along
    weights
        .safetensors or .pth file, or a state dict (pickled along); None for the model's own, included or published
    backend
        "numpy", "numba" or "cuda"
    topk
        how many classes an answer lists (at most all)
    batch_size
        pictures per run of the network
    img_size
        side of the network's input; None for the weights' own
    workers
        threads that decode the next pictures while the network is busy; 0 decodes in the caller's thread
    exif
        turn pictures as their EXIF orientation asks
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
    >>> answer, = mmref.Predictor(topk=2)([sample_picture("cat")])
    >>> answer.labels[0]
    'cat'
    """

    task, transform_kind = "classify", Transform

    def __init__(self, model="mobilemamba_nano", weights=None, backend: str = "numpy", topk: int = 5,
                 batch_size: int = 32, img_size: int | None = None, *, workers: int = 0, exif: bool = False,
                 threads: int | None = None, transform: Transform | None = None, prefer: str = "auto",
                 class_names=None, num_classes: int | None = None, in_chans: int | None = None):
        super().__init__(model, weights, backend, batch_size, img_size, workers=workers, exif=exif, threads=threads,
                         transform=transform, prefer=prefer, class_names=class_names, num_classes=num_classes,
                         in_chans=in_chans)
        self.topk = check_integer("topk", topk, 1)

    def settings(self) -> dict:
        """As `Task.settings`, with batch size and topk."""
        return {**super().settings(), "batch size": self.batch_size, "topk": self.topk}

    def prepare(self, image, transform):
        """The network's input (3, size, size)."""
        return to_array(image, transform)

    def failure(self, name, notes, error) -> Prediction:
        """The answer for a picture that cannot be read."""
        return Prediction(name, notes=notes, error=error)

    def answers(self, loaded, prepared) -> Iterator[Prediction]:
        """One per good picture of a batch, which the network sees at once."""
        logits = np.empty((0, 1), np.float32)
        if prepared:
            with loaded.busy, np.errstate(all="ignore"):  # what is not finite is told as the answer
                logits = np.asarray(loaded.model(np.stack([x for _, x, _ in prepared])))            # (B, classes)
        for (name, _, notes), row in zip(prepared, logits, strict=True):
            yield self._answer_one(name, notes, row, loaded.labels)

    def _answer_one(self, name, notes, logits, labels):
        if not np.isfinite(logits).all():
            return Prediction(name, notes=notes, error=f"{name}: the network answered NaN or infinity")
        best = np.argsort(-logits, kind="stable")[:self.topk]  # of equal logits the first class, everywhere
        weights = np.exp(logits.astype(np.float64) - float(logits.max()))
        probabilities = weights[best] / weights.sum()
        return Prediction(name, tuple(map(int, best)), tuple(labels[i] for i in best),
                          tuple(map(float, probabilities)), notes)
