"""From picture files to answers, anywhere: a class that travels to other processes and machines by pickle.

    predict = mmref.Predictor("mobilemamba_nano", topk=3)
    for answer in predict(["cat.jpg", "broken.jpg"]):
        print(answer.picture, answer.error or answer.labels)

Only the settings travel. The weights are read once in every process that predicts, at its first batch, and shared by
all copies of the predictor there.
"""

from __future__ import annotations

import os
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from mmref.arguments import check_flag, check_integer, check_kind, check_weights, shown
from mmref.data.labels import load_class_names
from mmref.data.picture import Transform, check_pictures, open_picture, picture_name, to_array
from mmref.errors import CheckpointError, PictureError, ValueProblem
from mmref.locks import Lock
from mmref.models.registry import resolve
from mmref.nn.functional import check_backend

__all__ = ["Prediction", "Predictor"]

_KEPT = 4                                # models kept in a process
_loaded: OrderedDict = OrderedDict()     # settings -> _Loaded, the last used at the end
_loading = Lock(blocks_fork=True)       # it imports what it needs


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture, best class first; or, with `error`, why there is none."""

    picture: str
    classes: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class _Loaded:
    model: object
    transform: Transform
    labels: tuple[str, ...]
    busy: Lock  # one batch at a time: the model's own threads already fill the cores


class Predictor:
    """Classifies pictures in batches; calling it gives one `Prediction` per picture, in order.

    model       a name of `mmref.list_models()`, or a ready model (callable, with `config` and `transform`), which is
                then pickled along
    weights     .safetensors or .pth file, or a state dict (pickled along); None for the model's published weights
    backend     "numpy", "numba" or "cuda"
    topk        how many classes an answer lists (at most all)
    batch_size  pictures per run of the network
    img_size    side of the network's input; None for the weights' own
    workers     threads that decode the next pictures while the network is busy; 0 decodes in the caller's thread
    exif        turn pictures as their EXIF orientation asks
    threads     for backend="numba"
    transform   instead of the weights' own
    prefer      which of several state dicts in `weights`, as in `mmref.create_model`
    class_names names of the outputs, as in `mmref.create_model`
    num_classes, in_chans  checked against the weights

    A picture's answer does not depend on the other pictures of its batch. How many they are may change the last digits
    of a probability (about 1e-6 of the largest logit), because a matrix product of another height may sum in another
    order; with batch_size=1 answers are equal to the last bit whatever else is in the batch.

    Raises ValueProblem for invalid settings, at once; errors of the weights come with the first batch, or `load`.
    """

    def __init__(self, model="mobilemamba_nano", weights=None, backend: str = "numpy", topk: int = 5,
                 batch_size: int = 32, img_size: int | None = None, *, workers: int = 0, exif: bool = False,
                 threads: int | None = None, transform: Transform | None = None, prefer: str = "auto",
                 class_names=None, num_classes: int | None = None, in_chans: int | None = None):
        _check_model(model)
        weights = check_weights(weights)
        own = (weights, threads, class_names, num_classes, in_chans)
        if not isinstance(model, str) and (any(o is not None for o in own) or (backend, prefer) != ("numpy", "auto")):
            raise ValueProblem("weights, backend, threads, prefer, class_names, num_classes and in_chans must be left "
                               "out with a ready model, which has its own")
        self.model, self.backend = model, check_backend(backend)
        self.weights = os.fspath(weights) if isinstance(weights, Path) else weights
        self.topk, self.batch_size = check_integer("topk", topk, 1), check_integer("batch_size", batch_size, 1)
        self.img_size = None if img_size is None else check_integer("img_size", img_size, 1, 4096)
        self.workers, self.exif = check_integer("workers", workers, 0), check_flag("exif", exif)
        self.threads = None if threads is None else check_integer("threads", threads, 1)
        self.prefer = check_kind("prefer", prefer, str, "the name of an entry, ema, raw or auto")
        self.num_classes = None if num_classes is None else check_integer("num_classes", num_classes, 0)
        self.in_chans = None if in_chans is None else check_integer("in_chans", in_chans, 1)
        self.class_names = None if class_names is None else load_class_names(class_names)  # a file may not be elsewhere
        self.transform = transform
        if transform is not None:
            check_kind("transform", transform, Transform, "a Transform or None")
        self.expected_sha256 = None
        self._token = uuid.uuid4().hex  # tells apart what cannot be compared: models and state dicts

    # -- loading ----------------------------------------------------------------------------------------

    def load(self) -> _Loaded:
        """Read the weights, unless this process has them already. Called by the first batch.

        From then on the predictor, and every copy pickled from it, insists on the same weights (`expected_sha256`)."""
        loaded = self._loaded()
        transform = self.transform or loaded.transform
        if transform is None:
            raise ValueProblem("model must have a transform, got None: give it one, or pass transform=")
        if self.img_size is not None:
            transform = replace(transform, size=self.img_size)
        channels = getattr(loaded.model.config, "in_chans", transform.channels)
        if channels != transform.channels:
            raise ValueProblem(f"pictures must have the {channels} channels that the network takes, and the transform "
                               f"gives {transform.channels}: " + ("one mean and one std make grey pictures" if channels
                               == 1 else "call the model with arrays, mmref.create_model(...)(x)"))
        return replace(loaded, transform=transform)

    def load_model(self):
        """The model, read unless this process has it already."""
        return self._loaded().model

    def _loaded(self):
        by_name = isinstance(self.model, str) and (self.weights is None or isinstance(self.weights, str))
        with _loading:  # a second thread waits instead of loading a second copy
            if self.expected_sha256 is None:
                self.expected_sha256 = self.sha256()
            key = ((self.model, self.weights, self.backend, *self._options().values(), self.expected_sha256)
                   if by_name else self._token)
            if key not in _loaded:
                _loaded[key] = self._load()
                while len(_loaded) > _KEPT:
                    _loaded.popitem(last=False)
            _loaded.move_to_end(key)
            return _loaded[key]

    def _options(self):
        """What `mmref.create_model` is called with beside name, weights and backend."""
        return {"prefer": self.prefer, "class_names": self.class_names, "num_classes": self.num_classes,
                "in_chans": self.in_chans, "threads": self.threads}

    def _load(self):
        from mmref.data.labels import class_names
        model = self.model
        if isinstance(model, str):
            from mmref.models.create import create_model
            if (found := self.sha256()) != self.expected_sha256:
                raise CheckpointError(f"{self.weights_path()}: sha256 must be {self.expected_sha256}, got {found}: "
                                      f"other weights than this predictor began with")
            model = create_model(model, self.weights, pretrained=self.weights is None, backend=self.backend,
                                 **self._options())
        if model.config.num_classes < 1:
            raise ValueProblem(f"model must have a head with classes, got {model.config.name} with "
                               f"num_classes={model.config.num_classes}")
        return _Loaded(model, model.transform, class_names(model), Lock())

    def weights_path(self) -> Path | None:
        """The file the weights come from; None for a state dict or a ready model."""
        if not isinstance(self.model, str) or not (self.weights is None or isinstance(self.weights, str)):
            return None
        if self.weights is not None:
            return Path(self.weights)
        from mmref.models.create import pretrained_weights
        config, dagger = resolve(self.model)
        return Path(pretrained_weights(config.name + "s" * dagger))

    def sha256(self) -> str | None:
        """Of the weights file, with its parts and the config.json beside it, if it has any; None for a state dict or a
        ready model."""
        from mmref.weights.store import fingerprint
        path = self.weights_path()
        return None if path is None else fingerprint(path, described=self.weights is not None)

    # -- predicting -------------------------------------------------------------------------------------

    def __call__(self, pictures: Iterable) -> list[Prediction]:
        """pictures: paths, bytes, binary files or PIL images. A bad one becomes a Prediction with its `error`.

        Raises ValueProblem for one picture in place of several, and what `load` raises."""
        return list(self.stream(pictures))

    def stream(self, pictures: Iterable) -> Iterator[Prediction]:
        """As a call, but one answer after another from pictures that may be without end."""
        pictures = iter(check_pictures(pictures))
        for batch in self.map_batches(iter(lambda: list(islice(pictures, self.batch_size)), [])):
            yield from batch

    def map_batches(self, batches: Iterable[list]) -> Iterator[list[Prediction]]:
        """One list of answers per batch; the next two batches are decoded meanwhile if there are `workers`."""
        loaded = self.load()
        prepare = partial(_prepare, transform=loaded.transform, exif=self.exif)
        if not self.workers:
            for batch in batches:
                yield self._predict(loaded, [prepare(picture) for picture in batch])
            return
        batches = iter(batches)
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="mmref-decode")
        try:
            ahead = deque()
            while True:
                for batch in islice(batches, 3 - len(ahead)):
                    ahead.append([pool.submit(prepare, picture) for picture in batch])
                if not ahead:
                    return
                yield self._predict(loaded, [future.result() for future in ahead.popleft()])
        finally:
            pool.shutdown(cancel_futures=True)

    def _predict(self, loaded, prepared):
        good = [x for _, x, _, error in prepared if error is None]
        logits = np.empty((0, 1), np.float32)
        if good:
            with loaded.busy:
                logits = np.asarray(loaded.model(np.stack(good)))                        # (B, classes)
        rows = iter(logits)
        return [Prediction(name, notes=notes, error=error) if error is not None
                else self._answer(name, notes, next(rows), loaded.labels) for name, _, notes, error in prepared]

    def _answer(self, name, notes, logits, labels):
        if not np.isfinite(logits).all():
            return Prediction(name, notes=notes, error=f"{name}: the network answered NaN or infinity")
        best = np.argsort(-logits, kind="stable")[:self.topk]  # of equal logits the first class, everywhere
        weights = np.exp(logits.astype(np.float64) - float(logits.max()))
        probabilities = weights[best] / weights.sum()
        return Prediction(name, tuple(map(int, best)), tuple(labels[i] for i in best),
                          tuple(map(float, probabilities)), notes)


def _check_model(model):
    """ValueProblem unless it is a known name or a ready model."""
    if isinstance(model, str) or isinstance(model, os.PathLike):
        name = os.fspath(model)
        if isinstance(model, os.PathLike) or Path(name).suffix or os.sep in name:
            advice = ("weights=..." if Path(name).suffix in (".pth", ".pt", ".safetensors", ".bin")
                      else "the call: Predictor()([picture])")
            raise ValueProblem(f"model must be a name that mmref.list_models() gives, or a ready model, got the path "
                               f"{name!r}, which belongs into {advice}")
        resolve(name)
    elif not (callable(model) and hasattr(model, "config") and hasattr(model, "transform")):
        raise ValueProblem(f"model must be a name that mmref.list_models() gives, or a ready model (callable, with "
                           f"config and transform), got {shown(model)}")


def _prepare(picture, transform, exif):
    name = picture_name(picture)
    try:
        image, notes = open_picture(picture, exif)
        return name, to_array(image, transform), tuple(notes), None
    except PictureError as error:
        return name, None, (), str(error)
