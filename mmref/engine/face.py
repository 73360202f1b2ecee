"""What every engine answers to: the methods of the NumPy model, over one `_run`."""

from __future__ import annotations

from inspect import isfunction

import numpy as np

from mmref.arguments import check_flag, check_integers, check_kind
from mmref.engine.weights import check_haar
from mmref.errors import MmrefError, ShapeError, ValueProblem
from mmref.models.mobilemamba import MobileMamba, check_features, take_indices
from mmref.nn import functional as F
from mmref.nn.layer import is_recording


class EngineModel:
    """Base of `CompiledModel` and `DeviceModel`, which have

    backend           its name
    _start()          makes a lock, `_parameters`, and what else does not travel with a pickle
    _run(x, outputs)  list of results, one for each of `outputs`: of "0" to "3" (stem and stages), "pooled", "logits"
    """

    strides = MobileMamba.strides
    dtype = np.dtype(np.float32)
    _TRAVEL = ("config", "transform", "class_names", "source", "notes", "_model")  # what a pickle holds

    def _adopt(self, model: MobileMamba):
        """Take over a model that the kernels can run, or ValueProblem."""
        check_kind("model", model, MobileMamba, "a MobileMamba, what mmref.create_model gives with backend='numpy'")
        if model.dtype != np.float32:
            raise ValueProblem(f"model must be float32 for backend {self.backend!r}, got {model.dtype}")
        check_supported(model.config, self.backend)
        check_unchanged(model, self.backend)
        state = model.state_dict()
        for name, array in state.items():
            if array.dtype != np.float32:
                raise ValueProblem(f"model must be float32 for backend {self.backend!r}, got {array.dtype} for {name}")
            if name.endswith(".wt_filter"):
                check_haar(state, name.removesuffix(".wt_filter"), self.backend)
        self.config, self.transform, self.class_names = model.config, model.transform, model.class_names
        self.source, self.notes = getattr(model, "source", ""), getattr(model, "notes", ())
        self._model = model
        self._start()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name in self._TRAVEL}

    def __setstate__(self, state):
        vars(self).update(state)
        self._start()

    def _head(self):
        with self._lock:
            return self._parameters["head.weight"], self._parameters["head.bias"]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Parameters by checkpoint name, batch norms folded. Copies."""
        return self._model.fold_batchnorm().state_dict()

    @property
    def answer(self) -> str:
        """What a forward gives: "logits", or "pooled" where there is no head."""
        return "logits" if self.config.num_classes else "pooled"

    def __call__(self, x):
        """Logits (B, num_classes), or pooled features (B, C3) of a network without head; as `MobileMamba.forward`.

        Raises MmrefError within `mmref.nn.layer.recording`: the layers do not run one by one here."""
        self._refuse_recording()
        return self._run(x, (self.answer,))[0]

    forward = __call__

    def forward_features(self, x):
        """The last feature map, (B, C3, H/64, W/64)."""
        self._refuse_recording()
        return self._run(x, ("3",))[0]

    def forward_head(self, x, pre_logits: bool = False):
        """Logits of a last feature map; with `pre_logits` its pooled features (B, C3). Two small sums, in NumPy."""
        check_features(x, self.config.widths[-1], self.dtype)
        self._refuse_recording()
        pooled = F.global_average_pool(x)
        if check_flag("pre_logits", pre_logits) or not self.config.num_classes:
            return pooled
        return F.linear(pooled, *self._head())

    def forward_intermediates(self, x, indices: int | list[int] | None = None, intermediates_only: bool = False):
        """As `MobileMamba.forward_intermediates`."""
        wanted = [str(index) for index in take_indices(indices, 4)]
        intermediates_only = check_flag("intermediates_only", intermediates_only)
        self._refuse_recording()
        outputs = tuple(sorted(set(wanted) | ({"3"} if not intermediates_only else set())))
        maps = dict(zip(outputs, self._run(x, outputs), strict=True))
        chosen = [maps[name] for name in wanted]
        return chosen if intermediates_only else (maps["3"], chosen)

    def _refuse_recording(self):
        if is_recording():
            raise MmrefError(f"recording() sees the layers of NumPy models only, got one of backend {self.backend!r}: "
                             f"record create_model(..., backend='numpy'), which computes the same")


def check_plan_shape(shape, channels: int) -> tuple[int, ...]:
    """The shape of an input to be planned for, as plain integers; ShapeError or ValueProblem for any other."""
    sizes = check_integers("shape", shape, 4, 0)
    if sizes[1] != channels or 0 in sizes:
        raise ShapeError(f"shape must be (batch, {channels}, height, width), each >= 1, got {sizes}")
    return sizes


def check_supported(config, backend: str):
    """ValueProblem unless the kernels can run the variant."""
    for field, only in (("scan_order", "bidirectional"), ("d_state", 1), ("wavelet_levels", 1)):
        if getattr(config, field) != only:
            raise ValueProblem(f"{field} must be {only!r} for backend {backend!r}, got {getattr(config, field)!r} "
                               f"(backend 'numpy' runs it)")
    if config.wavelet not in ("db1", "haar"):
        raise ValueProblem(f"wavelet must be 'db1' (Haar) for backend {backend!r}, got {config.wavelet!r}")
    if not config.depths[0]:
        raise ValueProblem(f"depths[0] must be at least 1 for backend {backend!r}, got 0 (backend 'numpy' runs it)")


def check_unchanged(model: MobileMamba, backend: str) -> None:
    """ValueProblem unless the layers are those that `MobileMamba(model.config)` makes, in class, order and settings:
    plans are written for that network, and would compute it whatever the layers of this one do."""
    plain = MobileMamba(model.config)
    plain = dict((plain.fold_batchnorm() if model.folded else plain).walk())
    for path, layer in model.walk():
        change = _change(plain.get(path), layer)
        if change:
            raise ValueProblem(f"model must have the layers that its config describes for backend {backend!r}, got "
                               f"{change} at {path or 'the network itself'} (backend 'numpy' runs it)")


def _change(plain, layer) -> str | None:
    """In what `layer` is not the layer `plain` (which may be None), parameters' values left aside."""
    kind = type(layer)
    if type(plain) is not kind:
        return f"{kind.__name__} in place of {type(plain).__name__}" if plain else f"another layer, {kind.__name__},"
    if list(layer.children) != list(plain.children):
        return f"the layers {', '.join(layer.children) or 'none'} in place of {', '.join(plain.children) or 'none'}"
    own, known = vars(layer), vars(plain)
    for name, shape in plain.shapes.items():
        if np.shape(own.get(name)) != shape:
            return f"{name} of shape {np.shape(own.get(name))} in place of {shape}"
    given = {"name", "shapes", "config", "transform", "class_names", *plain.shapes, *plain.children}
    for name in sorted(known.keys() - given):
        if name not in own or not np.array_equal(own[name], known[name]):
            return f"another {name}"
    for name in sorted(own.keys() - known.keys() - given):
        if hasattr(kind, name):  # what is not is read by no method of the class
            return f"its own {name}"
    for owner in kind.__mro__[:-1]:
        for name, method in vars(owner).items():
            if isfunction(method) and method.__module__ != owner.__module__:
                return f"its own {name}"
    return None
