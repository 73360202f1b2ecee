"""What all tasks share: the model behind a task, its weights read once in a process, pictures decoded ahead.

A task is a class built on `Task`, with three attributes and three methods of its own (the classifier's: predictor.py).
Its objects may be sent to other processes and machines by pickle: only the settings travel. The weights are read once
in every process that runs them, at its first picture, and shared by all copies there.
"""

from __future__ import annotations

import os
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from mmref.arguments import check_flag, check_integer, check_kind, check_weights, shown
from mmref.data.labels import load_class_names
from mmref.data.picture import check_pictures, open_picture, picture_name
from mmref.errors import CheckpointError, PictureError, ValueProblem
from mmref.locks import Lock
from mmref.models.registry import models, resolve, task_of
from mmref.nn.functional import check_backend

__all__ = ["Loaded", "Task"]

_KEPT = 4                                # models kept in a process
_loaded: OrderedDict = OrderedDict()     # settings -> Loaded, the last used at the end
_loading = Lock(blocks_fork=True)       # it imports what it needs
# task of a network: (what it does to pictures, its class, its command)
TASKS = {"classify": ("classifies whole pictures", "Predictor", "classify"),
         "segment": ("gives every pixel a class", "Segmenter", "segment"),
         "detect": ("finds objects", "Detector", "detect")}


@dataclass(frozen=True)
class Loaded:
    """A model with what belongs to it: how pictures are prepared, what its classes are called."""

    model: object
    transform: object
    labels: tuple[str, ...]
    busy: Lock  # one batch at a time: the model's own threads already fill the cores


class Task:
    """Base of the tasks: settings, checked at once; `load`; pictures in, answers out, in order.

    A task has `task`, which networks it is for (`mmref.models.registry.task_of`); `transform_kind`, the class of its
    transforms; and the methods `prepare` (one picture's input), `answers` (of a batch) and `failure`.
    """

    task: str
    transform_kind: type

    def __init__(self, model, weights, backend, batch_size, img_size, *, workers, exif, threads, transform, prefer,
                 class_names, num_classes, in_chans):
        _check_model(model, self.task)
        weights = check_weights(weights)
        own = (weights, threads, class_names, num_classes, in_chans)
        if not isinstance(model, str) and (any(o is not None for o in own) or (backend, prefer) != ("numpy", "auto")):
            raise ValueProblem("weights, backend, threads, prefer, class_names, num_classes and in_chans must be left "
                               "out with a ready model, which has its own")
        self.model, self.backend = model, check_backend(backend)
        self.weights = os.fspath(weights) if isinstance(weights, Path) else weights
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.img_size = None if img_size is None else check_integer("img_size", img_size, 1, 4096)
        self.workers, self.exif = check_integer("workers", workers, 0), check_flag("exif", exif)
        self.threads = None if threads is None else check_integer("threads", threads, 1)
        self.prefer = check_kind("prefer", prefer, str, "the name of an entry, ema, raw or auto")
        self.num_classes = None if num_classes is None else check_integer("num_classes", num_classes, 0)
        self.in_chans = None if in_chans is None else check_integer("in_chans", in_chans, 1)
        self.class_names = None if class_names is None else load_class_names(class_names)  # a file may not be elsewhere
        self.transform = transform
        if transform is not None:
            check_kind("transform", transform, self.transform_kind, f"a {self.transform_kind.__name__} or None")
        self.expected_sha256 = None
        self._token = uuid.uuid4().hex  # tells apart what cannot be compared: models and state dicts

    def settings(self) -> dict:
        """What beside model, weights and transform the answers depend on, as plain values."""
        return {"exif": self.exif}

    def prepare(self, image, transform):
        """What `answers` needs of an RGB image: the network's input, for instance. Runs in the threads that decode."""
        raise NotImplementedError

    def answers(self, loaded: Loaded, prepared: list[tuple]) -> Iterator:
        """One answer per good picture of a batch, in order; `prepared` has (name, what `prepare` gave, notes)."""
        raise NotImplementedError

    def failure(self, name: str, notes: tuple, error: str):
        """The answer for a picture that has none."""
        raise NotImplementedError

    # -- loading ----------------------------------------------------------------------------------------

    def load(self) -> Loaded:
        """Read the weights, unless this process has them already. Called by the first batch.

        From then on the task, and every copy pickled from it, insists on the same weights (`expected_sha256`)."""
        loaded = self._loaded()
        transform = self.transform or loaded.transform
        if transform is None:
            raise ValueProblem("model must have a transform, got None: give it one, or pass transform=")
        check_kind("model.transform", transform, self.transform_kind, f"a {self.transform_kind.__name__}")
        if self.img_size is not None:
            transform = transform.with_size(self.img_size)
        channels = getattr(loaded.model.config, "in_chans", transform.channels)
        if channels != transform.channels:
            raise ValueProblem(f"pictures must have the {channels} channels that the network takes, and the transform "
                               f"gives {transform.channels}: " + ("one mean and one std make grey pictures" if channels
                               == 1 else "call the model with arrays, mmref.create_model(...)(x)"))
        return Loaded(loaded.model, transform, loaded.labels, loaded.busy)

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
                                      f"other weights than this {type(self).__name__} began with")
            model = create_model(model, self.weights, pretrained=self.weights is None, backend=self.backend,
                                 **self._options())
        if model.config.num_classes < 1:
            raise ValueProblem(f"model must have a head with classes, got {model.config.name} with "
                               f"num_classes={model.config.num_classes}")
        return Loaded(model, model.transform, class_names(model), Lock())

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

    # -- running ----------------------------------------------------------------------------------------

    def __call__(self, pictures: Iterable) -> list:
        """pictures: paths, bytes, binary files or PIL images. A bad one becomes an answer with its `error`.

        Raises ValueProblem for one picture in place of several, and what `load` raises."""
        return list(self.stream(pictures))

    def one(self, picture):
        """The answer for one picture: a path, bytes, a binary file or a PIL image.

        Raises PictureError for one that cannot be read or answered, and what `load` raises."""
        answer, = self([picture])
        if answer.error is not None:
            raise PictureError(answer.error)
        return answer

    def stream(self, pictures: Iterable) -> Iterator:
        """As a call, but one answer after another from pictures that may be without end."""
        pictures = iter(check_pictures(pictures))
        for batch in self.map_batches(iter(lambda: list(islice(pictures, self.batch_size)), [])):
            yield from batch

    def map_batches(self, batches: Iterable[list]) -> Iterator[list]:
        """One list of answers per batch; the next two batches are decoded meanwhile if there are `workers`."""
        loaded = self.load()
        prepare = partial(self._prepare, transform=loaded.transform)
        if not self.workers:
            for batch in batches:
                yield self._answer(loaded, [prepare(picture) for picture in batch])
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
                yield self._answer(loaded, [future.result() for future in ahead.popleft()])
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self, picture, transform):
        name = picture_name(picture)
        try:
            image, notes = open_picture(picture, self.exif)
        except PictureError as error:
            return name, None, (), str(error)
        try:
            return name, self.prepare(image, transform), tuple(notes), None
        except PictureError as error:  # of the image, which does not know its file
            return name, None, (), f"{name}: {error}"

    def _answer(self, loaded, prepared):
        good = self.answers(loaded, [(name, x, notes) for name, x, notes, error in prepared if error is None])
        return [next(good) if error is None else self.failure(name, notes, error) for name, _, notes, error in prepared]


def _check_model(model, task):
    """ValueProblem unless it is a known name or a ready model, for this task."""
    made_by = TASKS[task][1]
    if isinstance(model, str) or isinstance(model, os.PathLike):
        name = os.fspath(model)
        if isinstance(model, os.PathLike) or Path(name).suffix or os.sep in name:
            advice = ("weights=..." if Path(name).suffix in (".pth", ".pt", ".safetensors", ".bin")
                      else f"the call: {made_by}()([picture])")
            raise ValueProblem(f"model must be a name that mmref.list_models() gives, or a ready model, got the path "
                               f"{name!r}, which belongs into {advice}")
        _check_task(resolve(name)[0], task)
        return
    if not (callable(model) and hasattr(model, "config") and hasattr(model, "transform")):
        raise ValueProblem(f"model must be a name that mmref.list_models() gives, or a ready model (callable, with "
                           f"config and transform), got {shown(model)}")
    _check_task(model.config, task)


def _check_task(config, task):
    if (found := task_of(config)) != task:
        does, made_by, command = TASKS[found]
        fitting = [name for name, other in models().items() if task_of(other) == task]
        nearest = [name for name in fitting if name.startswith(config.name) or config.name.startswith(name)] or fitting
        raise ValueProblem(f"model must be one that {TASKS[task][0]}, for instance {', '.join(nearest[:3])}, got "
                           f"{config.name}, which {does} (mmref {command}, mmref.{made_by})")
