"""What every engine answers to: the methods of the NumPy model, over one `_run`."""

from __future__ import annotations

import numpy as np

from mmref.engine.weights import check_haar
from mmref.errors import ShapeError, ValueProblem
from mmref.models.mobilemamba import MobileMamba, take_indices
from mmref.nn import functional as F


class EngineModel:
    """Base of `CompiledModel` and `DeviceModel`, which have

    backend           its name
    _start()          makes a lock, `_parameters`, and what else does not travel with a pickle
    _run(x, outputs)  list of results, one for each of `outputs`: of "0" to "3" (stem and stages), "pooled", "logits"
    """

    strides = MobileMamba.strides
    dtype = np.dtype(np.float32)
    _TRAVEL = ("config", "transform", "class_names", "_model")  # what a pickle holds

    def _adopt(self, model: MobileMamba):
        """Take over a model that the kernels can run, or ValueProblem."""
        if model.dtype != np.float32:
            raise ValueProblem(f"model must be float32 for backend {self.backend!r}, got {model.dtype}")
        check_supported(model.config, self.backend)
        state = model.state_dict()
        for name in state:
            if name.endswith(".wt_filter"):
                check_haar(state, name.removesuffix(".wt_filter"), self.backend)
        self.config, self.transform, self.class_names = model.config, model.transform, model.class_names
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
        """Logits (B, num_classes), or pooled features (B, C3) of a network without head; as `MobileMamba.forward`."""
        return self._run(x, (self.answer,))[0]

    forward = __call__

    def forward_features(self, x):
        """The last feature map, (B, C3, H/64, W/64)."""
        return self._run(x, ("3",))[0]

    def forward_head(self, x, pre_logits: bool = False):
        """Logits of a last feature map; with `pre_logits` its pooled features (B, C3). Two small sums, in NumPy."""
        F.check_rank("x", x, "batch channels height width")
        if x.shape[1] != self.config.widths[-1]:
            raise ShapeError(f"x must have {self.config.widths[-1]} channels, got shape {x.shape}")
        pooled = F.global_average_pool(x)
        if pre_logits or not self.config.num_classes:
            return pooled
        return F.linear(pooled, *self._head())

    def forward_intermediates(self, x, indices: int | list[int] | None = None, intermediates_only: bool = False):
        """As `MobileMamba.forward_intermediates`."""
        wanted = [str(index) for index in take_indices(indices, 4)]
        outputs = tuple(sorted(set(wanted) | ({"3"} if not intermediates_only else set())))
        maps = dict(zip(outputs, self._run(x, outputs), strict=True))
        chosen = [maps[name] for name in wanted]
        return chosen if intermediates_only else (maps["3"], chosen)


def check_supported(config, backend: str):
    """ValueProblem unless the kernels can run the variant."""
    for field, only in (("scan_order", "bidirectional"), ("d_state", 1), ("wavelet_levels", 1)):
        if getattr(config, field) != only:
            raise ValueProblem(f"{field} must be {only!r} for backend {backend!r}, got {getattr(config, field)!r} "
                               f"(backend 'numpy' runs it)")
    if config.wavelet not in ("db1", "haar"):
        raise ValueProblem(f"wavelet must be 'db1' (Haar) for backend {backend!r}, got {config.wavelet!r}")
