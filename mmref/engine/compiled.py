"""CompiledModel: the NumPy model's face over the compiled engine."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict

import numpy as np

from mmref.arguments import check_integer
from mmref.engine.face import EngineModel, check_plan_shape
from mmref.engine.folding import FoldedParameters
from mmref.engine.plan import Plan, make_plan
from mmref.engine.walk import output_shape
from mmref.engine.weights import Weights
from mmref.kernels.program import MOST_THREADS, addresses, run, threads_available, tile_table
from mmref.models.mobilemamba import MobileMamba, check_shape, raise_not_finite
from mmref.nn import functional as F

PLANS_KEPT = 4
IMAGES_AT_ONCE = 8  # a thread, at most: bounds memory and the length of a plan

_models = weakref.WeakSet()  # for their locks, after a fork


def _renew_locks():
    """In a forked child: the thread that held a lock did not come along."""
    for model in _models:
        model._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


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
        self.threads = None if threads is None else check_integer("threads", threads, 1, MOST_THREADS)
        self._adopt(model)

    def _start(self):
        self._lock = threading.Lock()
        _models.add(self)
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
        batch, channels, *sides = check_plan_shape(shape, self.config.in_chans)
        most = IMAGES_AT_ONCE * self._thread_count()
        with self._lock:
            return self._plan((min(batch, most), channels, *sides), (self.answer,))

    def time_operations(self, plan: Plan, repeats: int = 20) -> list[float]:
        """Seconds each operation of a plan takes, the median of `repeats` forwards of random pictures."""
        repeats = check_integer("repeats", repeats, 1)
        x = np.random.default_rng(0).standard_normal(plan.shape).astype(np.float32)
        results = [np.empty(shape, np.float32) for shape in plan.output_shapes]
        times = np.zeros((repeats + 1, len(plan.steps)), np.int64)
        with self._lock:
            for row in times:
                self._execute(plan, x, results, row)
        return (np.median(times[1:], axis=0) * 1e-9).tolist()
