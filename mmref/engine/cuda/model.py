"""DeviceModel: the NumPy model's face over an NVIDIA GPU."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from mmref.arguments import MATMULS, Shaped, check_choice, check_flag
from mmref.engine.cuda import device
from mmref.engine.cuda.plan import DevicePlan, device_schedule, make_plan
from mmref.engine.cuda.products import make_products
from mmref.engine.cuda.weights import DeviceWeights
from mmref.engine.face import Call, EngineModel, check_arrays, check_plan_shape
from mmref.errors import ValueProblem
from mmref.kernels.cuda import driver
from mmref.locks import Lock
from mmref.models.network import Network, raise_not_finite

PLANS_KEPT = 4
GRAPH_BATCH = 64  # with graph=None: up to this batch launching costs more than copying the pictures once


class OnDevice(Shaped):
    """A device array, as far as checks of shape and dtype look at it."""

    __slots__ = ("dtype", "ndim", "shape")

    def __init__(self, array):
        self.shape, self.ndim, self.dtype = tuple(array.shape), array.ndim, array.dtype


class DeviceModel(EngineModel):
    """A network on an NVIDIA GPU, float32, any batch and picture size; `create_model(name, backend="cuda")`.

    model   a network of mmref, folded or not, float32. What runs is the model as it is now, whatever layers it is made
            of; its parameters are copied
    graph   run a plan's launches as a CUDA graph from the second forward of an input shape on: True, False, or None for
            batches up to 64
    matmul  "cublas"; "cublaslt": bias, shortcut and ReLU inside its products, one algorithm for all batches; or "own":
            our kernel, slower, for where cuBLAS is missing
    tf32    let cuBLAS round the factors of matrix products to 10 bits of mantissa, which tensor cores multiply faster

    x is a NumPy array, or lies on the device: CuPy's, PyTorch's, Numba's, or anything with `__cuda_array_interface__`.
    Results are of the same kind (Numba's for the last). Device arrays are worked on in the order of their library's
    current stream, and the call returns before the work is done, as those libraries' own calls do. NumPy inputs must be
    finite, as everywhere; device arrays are not looked through for NaN.

    Results do not depend on the batch and are the same from run to run, to the last bit, on one card, driver and
    cuBLAS; mmref.engine.cuda.products says how that is made sure of. Plans of the last few input shapes are kept, with
    their device memory. May be called from several threads; forwards then wait for each other. Pickles as parameters
    and settings; the device is the one current (CUDA_VISIBLE_DEVICES chooses) where it is made or unpickled.

    Raises NotTraceable for a network whose text uses what is not mmref's operation or has no kernel, naming the layer
    (backend "numpy" runs it), MissingBackend without numba-cuda, a device or cuBLAS, OutOfDeviceMemory for a batch that
    is too large.
    """

    backend = "cuda"
    _TRAVEL = (*EngineModel._TRAVEL, "graph", "matmul", "tf32")

    def __init__(self, model: Network, graph: bool | None = None, matmul: str = "cublas", tf32: bool = False):
        self.graph = None if graph is None else check_flag("graph", graph)
        self.matmul, self.tf32 = check_choice("matmul", matmul, MATMULS), check_flag("tf32", tf32)
        self._adopt(model)

    def _start(self):
        driver.device()
        if self.graph and driver.SIMULATOR:
            raise ValueProblem("graph must be False or None in the simulator, which has no graphs, got True")
        self._lock = Lock()
        self._stream, self._lent = device.new_stream(), device.Lent()
        self._products = make_products(self.matmul, self.tf32, self._stream)
        self._take_graphs()
        self._weights = DeviceWeights()
        self._plans: OrderedDict[tuple, DevicePlan] = OrderedDict()

    def __repr__(self):
        return f"DeviceModel({self.config.name}, graph={self.graph}, matmul={self.matmul!r}, tf32={self.tf32})"

    _schedule = staticmethod(device_schedule)

    # ------------------------------------------------------------------ forward

    def _run(self, call: Call, *arrays):
        if any(map(device.is_device_array, arrays)):
            return self._run_device(call, *arrays)
        check_arrays(call, arrays, self.config.in_chans, self.dtype)
        if not all(np.isfinite(array).all() for array in arrays):
            raise_not_finite()
        with self._lock:
            graph, shapes, batch = self._traced_for(call, arrays)
            if not batch:
                return graph.arrange([np.empty((0, *node.shape[1:]), np.float32) for node in graph.outputs])
            plan = self._plan(call, shapes, batch)
            for array, own in zip(arrays, plan.inputs, strict=True):
                own.copy_to_device(np.ascontiguousarray(array), stream=self._stream)
            plan.run(plan.inputs, self._use_graph(batch))
            results = [result.copy_to_host(stream=self._stream) for result in plan.results]
            self._stream.synchronize()
        return graph.arrange(results)

    def _run_device(self, call, *arrays):
        """The same for arrays on the device, without a copy to the host and without waiting."""
        views = [device.device_view(array) for array in arrays]
        check_arrays(call, [OnDevice(view) for view in views], self.config.in_chans, self.dtype)
        with self._lock:
            graph, shapes, batch = self._traced_for(call, views)
            first = arrays[0]
            results = [device.empty_like_of(first, (batch, *node.shape[1:])) for node in graph.outputs]
            if not batch:
                return graph.arrange(results)
            plan = self._plan(call, shapes, batch)
            theirs, capture = device.caller_stream(first), self._use_graph(batch)
            device.wait_for(theirs, self._stream)
            given = []
            for view, own in zip(views, plan.inputs, strict=True):
                if capture or not view.is_c_contiguous():  # a graph reads where it read when it was captured
                    device.put_in_order(view, own, self._stream)
                    view = own
                given.append(view)
            plan.run(given, capture)
            for result, own in zip(results, plan.results, strict=True):
                device.device_view(result).copy_to_device(own, stream=self._stream)
            device.wait_for(self._stream, theirs)
            self._lent.hold(self._stream, *arrays, *views, results)
        return graph.arrange(results)

    def _use_graph(self, batch) -> bool:
        if driver.SIMULATOR:
            return False
        return batch <= GRAPH_BATCH if self.graph is None else self.graph

    # -------------------------------------------------------------------- plans

    def _traced_for(self, call, arrays):
        """(graph of one sample, its shapes, how many samples)."""
        shapes = tuple(tuple(array.shape[1:]) for array in arrays)
        return self._graph(call, shapes)[0], shapes, arrays[0].shape[0]

    def _plan(self, call, shapes, batch) -> DevicePlan:
        key = call.key, shapes, batch
        if key not in self._plans:
            while len(self._plans) >= PLANS_KEPT:
                self._forget()
            graph, schedule = self._graph(call, shapes)
            self._plans[key] = make_plan(graph, schedule, batch, self._weights, self._products, self._stream,
                                         self._forget)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _forget(self) -> bool:
        """Let go of the plan used longest ago, and its memory; whether there was one."""
        if not self._plans:
            return False
        self._stream.synchronize()
        self._plans.popitem(last=False)
        return True

    def plan(self, shape) -> DevicePlan:
        """The plan of a forward for an input of `shape` (B, channels, H, W)."""
        batch, *sample = check_plan_shape(shape, self.config.in_chans)
        with self._lock:
            return self._plan(self._call("forward"), (tuple(sample),), batch)
