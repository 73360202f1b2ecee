"""CompiledModel: the NumPy model's face over the compiled engine."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from mmref.arguments import check_integer
from mmref.engine.face import Call, EngineModel, as_traced, check_arrays, check_plan_shape, result_shapes
from mmref.engine.plan import Plan, cpu_schedule, make_plan
from mmref.engine.weights import Weights
from mmref.kernels.program import MOST_THREADS, addresses, run, threads_available, tile_table
from mmref.locks import Lock
from mmref.models.network import Network, raise_not_finite

PLANS_KEPT = 4  # of each method
IMAGES_AT_ONCE = 8  # a thread, at most: bounds memory and the length of a plan
PARTS_AT_ONCE = 64  # likewise of what is not pictures: small maps, which a network has many of


class CompiledModel(EngineModel):
    """A network on compiled kernels, float32, any batch and picture size; `create_model(name, backend="numba")`.

    model    a network of mmref, folded or not, float32. What is compiled is the model as it is now, whatever layers it
             is made of; its parameters are copied
    threads  how many work on a forward, 1 to 1024, also more than there are cores; None for NUMBA_NUM_THREADS, where
             that is set, or else as many as there are cores

    Results do not depend on the number of threads nor on the batch, to the last bit: every output is added up in one
    order. Another processor may round otherwise (fused multiply-adds or not). Plans of the last few input shapes are
    kept. May be called from several threads (forwards of one model then wait for each other) and in forked processes.
    Pickles as parameters.

    Raises NotTraceable for a network whose text uses what is not mmref's operation or has no kernel, naming the layer
    (backend "numpy" runs it), MissingBackend without Numba.
    """

    backend = "numba"
    _TRAVEL = (*EngineModel._TRAVEL, "threads")

    def __init__(self, model: Network, threads: int | None = None):
        self.threads = None if threads is None else check_integer("threads", threads, 1, MOST_THREADS)
        self._adopt(model)

    def _start(self):
        self._lock = Lock()
        self._take_graphs()
        self._weights = Weights(self._thread_count())
        self._plans: OrderedDict[tuple, Plan] = OrderedDict()

    def __repr__(self):
        return f"CompiledModel({self.config.name}, threads={self.threads})"

    _schedule = staticmethod(cpu_schedule)

    def _run(self, call: Call, *arrays):
        check_arrays(call, arrays, self.config.in_chans, self.dtype)  # that they are finite is seen as they are read
        arrays = [np.ascontiguousarray(array) for array in arrays]
        shapes = tuple(array.shape[1:] for array in arrays)
        batch = len(arrays[0])
        with self._lock:
            graph, _ = self._graph(call, shapes)
            results = [np.empty(shape, np.float32) for shape in result_shapes(graph, batch)]
            most = (IMAGES_AT_ONCE if call.pictures else PARTS_AT_ONCE) * self._thread_count()
            for first in range(0, batch, most):
                part = slice(first, first + most)
                images = [array[part] for array in arrays]
                self._execute(self._plan(call, shapes, len(images[0])), images, [result[part] for result in results])
        return as_traced(graph, results)

    def _execute(self, plan, arrays, results, times=None):
        plan.cells[:] = [*(array.ctypes.data for array in (*arrays, *results)), 0]
        run(plan.steps, plan.threads, times)
        if plan.cells[-1]:
            raise_not_finite()

    # -------------------------------------------------------------------- plans

    def _thread_count(self) -> int:
        return self.threads or threads_available()

    def _plan(self, call, shapes, images) -> Plan:
        key = call.key, shapes, images
        if key not in self._plans:
            of_call = [other for other in self._plans if other[0] == call.key]
            for other in of_call[:len(of_call) + 1 - PLANS_KEPT]:
                del self._plans[other]
            graph, schedule = self._graph(call, shapes)
            self._plans[key] = make_plan(graph, schedule, images, self._weights, self._thread_count(), addresses(),
                                         tile_table())
        self._plans.move_to_end(key)
        return self._plans[key]

    def plan(self, shape) -> Plan:
        """The plan of a forward for an input of `shape` (B, channels, H, W), B up to 8 a thread."""
        batch, *sample = check_plan_shape(shape, self.config.in_chans)
        most = IMAGES_AT_ONCE * self._thread_count()
        with self._lock:
            return self._plan(self._call("forward"), (tuple(sample),), min(batch, most))

    def time_operations(self, plan: Plan, repeats: int = 20) -> list[float]:
        """Seconds each operation of a plan takes, the median of `repeats` forwards of random pictures."""
        repeats, rng = check_integer("repeats", repeats, 1), np.random.default_rng(0)
        arrays = [rng.standard_normal(shape).astype(np.float32) for shape in plan.input_shapes]
        results = [np.empty(shape, np.float32) for shape in result_shapes(plan.graph, plan.images)]
        times = np.zeros((repeats + 1, len(plan.steps)), np.int64)
        with self._lock:
            for row in times:
                self._execute(plan, arrays, results, row)
        return (np.median(times[1:], axis=0) * 1e-9).tolist()
