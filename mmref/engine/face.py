"""The interface of all engines: the methods of the NumPy model, run from the graphs that its own text gives."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import numpy as np

from mmref.arguments import check_array, check_flag, check_integers, check_kind
from mmref.engine.schedule import Schedule, channel_axis
from mmref.errors import MmrefError, ShapeError, ValueProblem
from mmref.graph.graph import Graph
from mmref.graph.passes import fused
from mmref.graph.trace import Constants, resized, trace
from mmref.models.network import Network, check_shape, take_indices
from mmref.nn.layer import is_recording

GRAPHS_KEPT = 8


class EngineModel:
    """Base of `CompiledModel` and `DeviceModel`, which have

    backend                        its name
    _start()                       makes a lock and what else does not travel with a pickle; calls `_take_graphs`
    _schedule(graph)               how the backend would run a graph; raises where it cannot
    _run(call, x, *more)           results of `call`, a `Call`
    """

    dtype = np.dtype(np.float32)
    _TRAVEL = ("config", "transform", "class_names", "source", "notes", "_model")  # what a pickle holds

    def _adopt(self, model: Network):
        """Take over a model as it is now: what is changed in it afterwards, layers or parameters, is not seen."""
        check_kind("model", model, Network, "a network, what mmref.create_model gives with backend='numpy'")
        for name, array in model.state_dict().items():
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                got = "nothing" if array is None else getattr(array, "dtype", type(array).__name__)
                raise ValueProblem(f"model must be float32 for backend {self.backend!r}, got {got} for {name}")
        self.config, self.transform, self.class_names = model.config, model.transform, model.class_names
        self.source, self.notes = model.source, model.notes
        self._model = model.frozen(parameters=True)
        self._start()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name in self._TRAVEL}

    def __setstate__(self, state):
        vars(self).update(state)
        self._start()

    def _take_graphs(self):
        self._constants = Constants(self._model)
        self._traced: dict[tuple, Graph] = {}  # by call, of those that hold for every size
        self._graphs: OrderedDict[tuple, tuple[Graph, Schedule]] = OrderedDict()

    def _graph(self, call: Call, shapes) -> tuple[Graph, Schedule]:
        """The fused graph of a call for one sample of these shapes, and how the backend runs it."""
        key = call.key, shapes
        if key not in self._graphs:
            while len(self._graphs) >= GRAPHS_KEPT:
                self._graphs.popitem(last=False)
            graph = self._for_shapes(call, [(1, *shape) for shape in shapes])
            self._graphs[key] = graph, self._schedule(graph)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _for_shapes(self, call, shapes):
        known = self._traced.get(call.key)
        if known is not None and [node.shape[:2] for node in known.inputs] == [shape[:2] for shape in shapes]:
            return resized(known, *shapes)
        graph = fused(trace(call.function, self._model, *shapes, constants=self._constants))
        if graph.fixed_by is None:
            self._traced[call.key] = graph
        return graph

    def _check(self, x, *more):
        check_shape(x, self.config.in_chans, self.dtype)

    # ------------------------------------------------------------------------- the NumPy model's methods

    strides = property(lambda self: self._model.strides)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Parameters by checkpoint name, batch norms folded. Copies."""
        return self._model.fold_batchnorm().state_dict()

    def __call__(self, x):
        """What the NumPy model's `forward` gives. Raises MmrefError within `mmref.nn.layer.recording`: layers do not
        run one by one here."""
        return self._run(self._call("forward"), x)

    forward = __call__

    def forward_features(self, x):
        """As the NumPy model's."""
        return self._run(self._call("forward_features"), x)

    def forward_head(self, x, pre_logits: bool = False):
        """As the NumPy model's."""
        if isinstance(x, (list, tuple)):         # several maps, of a network whose head takes no option
            call = self._call("forward_head", False)
            return self._run(Call(call.key, lambda *maps: call.function(maps), False), *x)
        return self._run(self._call("forward_head", False, pre_logits=check_flag("pre_logits", pre_logits)), x)

    def forward_intermediates(self, x, indices: int | list[int] | None = None, intermediates_only: bool = False):
        """As the NumPy model's."""
        wanted = tuple(take_indices(indices, len(self.strides)))
        only = check_flag("intermediates_only", intermediates_only)
        return self._run(self._call("forward_intermediates", indices=wanted, intermediates_only=only), x)

    def detect(self, x, image_sizes=None, original_sizes=None):
        """As the NumPy model's, of a detector: its dense parts run here, the rest on the host."""
        def dense(method, *arrays):
            return self._run(self._call(method, pictures=method == "forward"), *arrays)
        return self._model.detect(x, image_sizes, original_sizes, dense=dense, backend="numba")

    def _call(self, method: str, pictures: bool = True, **options) -> Call:
        if is_recording():
            raise MmrefError(f"recording() sees the layers of NumPy models only, got one of backend {self.backend!r}: "
                             f"record create_model(..., backend='numpy'), which computes the same")
        return Call((method, *options.items()), partial(getattr(self._model, method), **options), pictures)


def check_plan_shape(shape, channels: int) -> tuple[int, ...]:
    """The shape of an input to be planned for, as plain integers; ShapeError or ValueProblem for any other."""
    sizes = check_integers("shape", shape, 4, 0)
    if sizes[1] != channels or 0 in sizes:
        raise ShapeError(f"shape must be (batch, {channels}, height, width), each >= 1, got {sizes}")
    return sizes


class Call:
    """A method of the model with its options. `pictures`: whether its input is the network's own."""

    def __init__(self, key: tuple, function: Callable, pictures: bool = True):
        self.key, self.function, self.pictures = key, function, pictures


def check_arrays(call: Call, arrays, channels: int, dtype) -> None:
    """ShapeError unless the inputs of a call are float32 arrays of four axes; pictures have the network's channels."""
    if not arrays:
        raise ShapeError("x must be a NumPy array, or a list of some, got none")
    for array in arrays:
        if call.pictures:
            check_shape(array, channels, dtype)
        else:
            check_array("x", array, "batch channels height width", dtype)
            if 0 in array.shape[1:]:
                raise ShapeError(f"x must have channels, height and width >= 1, got shape {array.shape}")


def result_shapes(graph: Graph, batch: int) -> list[tuple[int, ...]]:
    """Of the graph's outputs, as engines write them: channels last."""
    shapes = []
    for node in graph.outputs:
        axis = channel_axis(node)
        others = [size for i, size in enumerate(node.shape) if i not in (0, axis)]
        shapes.append((batch, *others, node.shape[axis]))
    return shapes


def as_traced(graph: Graph, results: list[np.ndarray]):
    """Results, channels last, as the NumPy model returns them: views."""
    return graph.arrange([np.moveaxis(result, -1, channel_axis(node))
                          for node, result in zip(graph.outputs, results, strict=True)])
