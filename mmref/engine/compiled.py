"""CompiledModel: the NumPy model's face over the compiled engine."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from mmref.engine.face import EngineModel
from mmref.engine.folding import FoldedParameters
from mmref.engine.plan import Plan, make_plan
from mmref.engine.walk import output_shape
from mmref.engine.weights import Weights
from mmref.errors import ShapeError, ValueProblem
from mmref.kernels.program import MOST_THREADS, addresses, run, threads_available, tile_table
from mmref.locks import Lock
from mmref.models.mobilemamba import MobileMamba, check_shape, raise_not_finite
from mmref.nn import functional as F

PLANS_KEPT = 4
IMAGES_AT_ONCE = 8  # a thread, at most: bounds memory and the length of a plan


class CompiledModel(EngineModel):
    """A network on compiled kernels, float32, any batch and picture size; `create_model(name, backend="numba")`.

    model    a `MobileMamba`, folded or not, float32; it is kept, not copied, and must not be changed afterwards
    threads  how many work on a forward, 1 to 1024, also more than there are cores; None for NUMBA_NUM_THREADS, where
             that is set, or else as many as there are cores

    Results do not depend on the number of threads nor on the batch, to the last bit: every output is added up in one
    order. Another processor may round otherwise (fused multiply-adds or not). Plans of the last few input shapes are
    kept. May be called from several threads (forwards of one model then wait for each other) and in forked processes.
    Pickles as parameters.

    Raises ValueProblem for networks it has no kernels for (scan_order other than "bidirectional", d_state other than 1,
    wavelets other than Haar, several wavelet levels: backend "numpy" runs those), MissingBackend without Numba.
    """

    backend = "numba"
    _TRAVEL = (*EngineModel._TRAVEL, "threads")

    def __init__(self, model: MobileMamba, threads: int | None = None):
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int)
                                    or not 1 <= threads <= MOST_THREADS):
            raise ValueProblem(f"threads must be an integer, 1 to {MOST_THREADS}, or None, got {threads!r}")
        self.threads = threads
        self._adopt(model)

    def _start(self):
        self._lock = Lock()
        self._parameters = FoldedParameters(self._model)
        self._weights = Weights(self._parameters, self._thread_count())
        self._plans: OrderedDict[tuple, Plan] = OrderedDict()

    def __repr__(self):
        return f"CompiledModel({self.config.name}, threads={self.threads})"

    def _run(self, x, outputs) -> list[np.ndarray]:
        check_shape(x, self.config.in_chans, self.dtype)  # whether it is finite is seen while it is read
        results = [np.empty(output_shape(self.config, x.shape, name), np.float32) for name in outputs]
        x = np.ascontiguousarray(x)
        if len(x):
            with self._lock:
                most = IMAGES_AT_ONCE * self._thread_count()
                for first in range(0, len(x), most):
                    part = slice(first, first + most)
                    self._execute(self._plan(x[part].shape, outputs), x[part], [result[part] for result in results])
        return [F.channels_first(result) if result.ndim == 4 else result for result in results]

    def _execute(self, plan, x, results, times=None):
        plan.cells[:] = [x.ctypes.data, *(result.ctypes.data for result in results), 0]
        run(plan.steps, plan.threads, times)
        if plan.cells[-1]:
            raise_not_finite()

    # -------------------------------------------------------------------- plans

    def _thread_count(self) -> int:
        return self.threads or threads_available()

    def _plan(self, shape, outputs) -> Plan:
        key = tuple(shape), outputs
        if key not in self._plans:
            while len(self._plans) >= PLANS_KEPT:
                self._plans.popitem(last=False)
            self._plans[key] = make_plan(self.config, self._weights, shape, outputs, self._thread_count(),
                                         addresses(), tile_table())
            self._parameters.forget()
        self._plans.move_to_end(key)
        return self._plans[key]

    def plan(self, shape) -> Plan:
        """The plan of a forward to the logits for an input of `shape` (B, 3, H, W), B up to 8 a thread."""
        batch, channels, *sides = shape
        if len(sides) != 2 or channels != self.config.in_chans or batch < 1 or min(sides) < 1:
            raise ShapeError(f"shape must be (batch, {self.config.in_chans}, height, width), each >= 1, got {shape}")
        most = IMAGES_AT_ONCE * self._thread_count()
        with self._lock:
            return self._plan((min(batch, most), channels, *sides), (self.answer,))

    def time_operations(self, plan: Plan, repeats: int = 20) -> list[float]:
        """Seconds each operation of a plan takes, the median of `repeats` forwards of random pictures."""
        x = np.random.default_rng(0).standard_normal(plan.shape).astype(np.float32)
        results = [np.empty(shape, np.float32) for shape in plan.output_shapes]
        times = np.zeros((repeats + 1, len(plan.steps)), np.int64)
        with self._lock:
            for row in times:
                self._execute(plan, x, results, row)
        return (np.median(times[1:], axis=0) * 1e-9).tolist()
