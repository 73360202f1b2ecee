"""DeviceModel: the NumPy model's face over an NVIDIA GPU."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from mmref.arguments import check_choice, check_flag
from mmref.engine.cuda import device
from mmref.engine.cuda.plan import DevicePlan, make_plan
from mmref.engine.cuda.products import make_products
from mmref.engine.cuda.weights import DeviceWeights
from mmref.engine.face import EngineModel, check_plan_shape
from mmref.engine.folding import FoldedParameters
from mmref.engine.walk import output_shape
from mmref.errors import ShapeError, ValueProblem
from mmref.kernels.cuda import driver
from mmref.locks import Lock
from mmref.models.mobilemamba import MobileMamba, check_input

PLANS_KEPT = 4
GRAPH_BATCH = 64  # with graph=None: up to this batch launching costs more than copying the pictures once


class DeviceModel(EngineModel):
    """A network on an NVIDIA GPU, float32, any batch and picture size; `create_model(name, backend="cuda")`.

    model   a `MobileMamba`, folded or not, float32; it is kept, not copied, and must not be changed afterwards
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

    Raises ValueProblem for networks it has no kernels for (as `CompiledModel`), MissingBackend without numba-cuda, a
    device or cuBLAS, OutOfDeviceMemory for a batch that is too large.
    """

    backend = "cuda"
    _TRAVEL = (*EngineModel._TRAVEL, "graph", "matmul", "tf32")

    def __init__(self, model: MobileMamba, graph: bool | None = None, matmul: str = "cublas", tf32: bool = False):
        self.graph = None if graph is None else check_flag("graph", graph)
        self.matmul, self.tf32 = check_choice("matmul", matmul, ("cublas", "own")), check_flag("tf32", tf32)
        self._adopt(model)

    def _start(self):
        driver.device()
        if self.graph and driver.SIMULATOR:
            raise ValueProblem("graph must be False or None in the simulator, which has no graphs, got True")
        self._lock = Lock()
        self._stream, self._lent = device.new_stream(), device.Lent()
        self._products = make_products(self.matmul, self.tf32, self._stream)
        self._parameters = FoldedParameters(self._model)
        self._weights = DeviceWeights(self._parameters)
        self._plans: OrderedDict[tuple, DevicePlan] = OrderedDict()

    def __repr__(self):
        return f"DeviceModel({self.config.name}, graph={self.graph}, matmul={self.matmul!r}, tf32={self.tf32})"

    def forward_head(self, x, pre_logits: bool = False):
        """As `MobileMamba.forward_head`; two small sums, in NumPy on the host wherever x lies."""
        if not device.is_device_array(x):
            return super().forward_head(x, pre_logits)
        view, theirs = device.device_view(x), device.caller_stream(x)
        if not view.is_c_contiguous():
            lying, view = view, device.allocate(view.shape)
            device.put_in_order(lying, view, theirs)
        maps = view.copy_to_host(stream=theirs)
        theirs.synchronize()
        answer = super().forward_head(maps, pre_logits)
        result = device.empty_like_of(x, answer.shape)
        device.device_view(result).copy_to_device(np.ascontiguousarray(answer), stream=theirs)
        theirs.synchronize()  # before the host's copy of it goes
        return result

    # ------------------------------------------------------------------ forward

    def _run(self, x, outputs):
        if device.is_device_array(x):
            return self._run_device(x, outputs)
        check_input(x, self.config.in_chans, self.dtype)
        shapes = [output_shape(self.config, x.shape, name) for name in outputs]
        if not len(x):
            return [np.empty(channels_first(shape), np.float32) for shape in shapes]
        with self._lock:
            plan = self._plan(x.shape, outputs)
            plan.pictures.copy_to_device(np.ascontiguousarray(x), stream=self._stream)
            plan.run(plan.pictures, self._use_graph(len(x)))
            results = [result.copy_to_host(stream=self._stream) for result in plan.results]
            self._stream.synchronize()
        return [result.reshape(channels_first(shape)) for result, shape in zip(results, shapes, strict=True)]

    def _run_device(self, x, outputs):
        """The same for an array on the device, without a copy to the host and without waiting."""
        view = device.device_view(x)
        check_shape(view.shape, self.config.in_chans)
        shapes = [channels_first(output_shape(self.config, view.shape, name)) for name in outputs]
        results = [device.empty_like_of(x, shape) for shape in shapes]
        if not view.shape[0]:
            return results
        with self._lock:
            plan = self._plan(tuple(view.shape), outputs)
            theirs, graph = device.caller_stream(x), self._use_graph(view.shape[0])
            device.wait_for(theirs, self._stream)
            if graph or not view.is_c_contiguous():  # a graph reads where it read when it was captured
                device.put_in_order(view, plan.pictures, self._stream)
                pictures = plan.pictures
            else:
                pictures = view
            plan.run(pictures, graph)
            for result, own in zip(results, plan.results, strict=True):
                device.device_view(result).reshape(*own.shape).copy_to_device(own, stream=self._stream)
            device.wait_for(self._stream, theirs)
            self._lent.hold(self._stream, x, view, results)
        return results

    def _use_graph(self, batch) -> bool:
        if driver.SIMULATOR:
            return False
        return batch <= GRAPH_BATCH if self.graph is None else self.graph

    # -------------------------------------------------------------------- plans

    def _plan(self, shape, outputs) -> DevicePlan:
        key = tuple(shape), outputs
        if key not in self._plans:
            while len(self._plans) >= PLANS_KEPT:
                self._forget()
            self._plans[key] = make_plan(self.config, self._weights, shape, outputs, self._products, self._stream,
                                         self._forget)
            self._parameters.forget()
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
        """The plan of a forward to the logits for an input of `shape` (B, 3, H, W)."""
        shape = check_plan_shape(shape, self.config.in_chans)
        with self._lock:
            return self._plan(shape, (self.answer,))


def check_shape(shape, channels):
    """ShapeError unless it is that of pictures."""
    if len(shape) != 4 or shape[1] != channels or 0 in shape[2:]:
        raise ShapeError(f"x must have shape (batch, {channels}, height, width) with height and width >= 1, "
                         f"got {tuple(shape)}")


def channels_first(shape) -> tuple[int, ...]:
    return shape if len(shape) == 2 else (shape[0], shape[3], *shape[1:3])
