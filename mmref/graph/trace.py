"""From a network's text to its graph: the text is run once, on symbols instead of arrays.

    graph = trace(model.forward, model, (1, 3, 192, 192))

Every operation that the text calls becomes a node (mmref.nn.operation); `+`, `*`, `-` and slices of symbols are
operations too. What the text computes from parameters alone is done at once, and enters the graph as a constant. A text
that does something else with a symbol (a NumPy function, a comparison of its values) is an error that names the layer.

A text may hand sizes on to operations, `synthesis(bands, bank, *x.shape[2:])`: they arrive as `Extent`s, which know
whose size they are, and the graph holds for other sizes too (`resized`). Where a text computes with a size, the graph
holds for this one only, and says which layer did (`Graph.fixed_by`).
"""

from __future__ import annotations

import operator
from collections import ChainMap
from collections.abc import Callable
from functools import partial

import numpy as np

from mmref.arguments import Shaped, check_ndarray
from mmref.errors import NotTraceable, ShapeError
from mmref.graph.fused import FUSED
from mmref.graph.graph import Constant, Graph, Node
from mmref.nn import functional as F
from mmref.nn.operation import OPERATIONS, Symbol, apply

OURS = ChainMap({"input": None}, FUSED, OPERATIONS)  # names that passes and backends go by


class Tracer:
    """Nodes recorded so far, the layer whose forward runs, and the model's constants."""

    def __init__(self, constants: Constants):
        self.constants, self.nodes, self.layer, self.layers, self.fixed_by = constants, [], "", {}, None

    def symbol(self, node: Node) -> TracedArray:
        self.nodes.append(node)
        return TracedArray(self, node)

    def value(self, operand) -> Node | Constant:
        """The node of a symbol, the constant of an array."""
        if isinstance(operand, TracedArray):
            return operand.node
        return self.constants.of(operand, self.layer)

    def look_at(self, extent: Extent) -> int:
        """A size that the text wants as a number: the graph is then one for this size only."""
        if extent.axis == 0:
            raise NotTraceable(f"layer {self.layer!r} computes with the batch size, which backends other than 'numpy' "
                               f"do not know: samples must stay apart")
        self.fixed_by = self.fixed_by or self.layer or "the network itself"
        return extent.value


class Constants:
    """The constants of one model, each array once, whichever graph it enters."""

    def __init__(self, model):
        self.names, self.places, self.arrays, self.computed = {}, {}, {}, {}
        for name, layer, attribute in model.named_parameters():
            array = getattr(layer, attribute)
            if array is None:  # a bias that somebody took away; a text that needs it says so
                continue
            check_ndarray(name, array)
            self.names[id(array)] = self.places[_place(array)] = name
            self.arrays[name] = array  # kept, so that its id and its place stay its own

    def of(self, array: np.ndarray, layer: str) -> Constant:
        """A parameter, or what a layer's text computed from parameters: then known by its value. A parameter in another
        shape has its name."""
        name = self.names.get(id(array))
        if name is not None:
            return Constant(name, name, array.shape, array.dtype, lambda: array)
        known = self.computed.setdefault(layer, [])
        for constant in known:
            if constant.shape == array.shape and np.array_equal(constant.make(), array):
                return constant
        kept = array.copy()
        name = self.places.get(_place(array), f"{layer} (computed {len(known)})")
        constant = Constant(name, (layer, len(known)), array.shape, array.dtype, lambda: kept)
        known.append(constant)
        return constant


def _place(array):
    """The memory that an array fills: that of a parameter, for one that was only reshaped."""
    return array.ctypes.data, array.nbytes


class Extent:
    """The length of an axis that depends on the input's size: a number that remembers whose length it is.

    It may be handed on to an operation. Whatever else looks at the number tells the tracer."""

    __slots__ = ("axis", "node", "tracer", "value")

    def __init__(self, value: int, node: Node, axis: int, tracer: Tracer | None):
        self.value, self.node, self.axis, self.tracer = value, node, axis, tracer

    def __index__(self):
        return self.value if self.tracer is None else self.tracer.look_at(self)

    __int__ = __hash__ = __index__

    def __repr__(self):
        return str(self.value)


def _looks(function):
    def method(self, *others):
        return function(int(self), *(int(other) if isinstance(other, Extent) else other for other in others))
    return method


for _name in ("add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge", "truediv", "pow"):
    setattr(Extent, f"__{_name}__", _looks(getattr(operator, _name)))
for _name in ("add", "sub", "mul", "floordiv", "mod", "truediv"):
    setattr(Extent, f"__r{_name}__", _looks(partial(lambda f, size, other: f(other, size), getattr(operator, _name))))


def plain(attributes: dict) -> dict:
    """Attributes with sizes as integers."""
    return {name: value.value if isinstance(value, Extent) else value for name, value in attributes.items()}


class TracedArray(Symbol):
    """The symbol that records."""

    __slots__ = ("known_shape", "node", "tracer")
    __array_priority__ = 1000  # `array * symbol` asks the symbol, not NumPy

    def __init__(self, tracer: Tracer, node: Node):
        self.tracer, self.node, self.known_shape = tracer, node, None

    @property
    def shape(self) -> tuple[int | Extent, ...]:
        if self.known_shape is None:
            node, tracer = self.node, self.tracer
            both = enumerate(zip(node.shape, node.elsewhere, strict=True))
            self.known_shape = tuple([size if size == other else Extent(size, node, axis, tracer)
                                      for axis, (size, other) in both])
        return self.known_shape

    dtype = property(lambda self: self.node.dtype)
    ndim = property(lambda self: len(self.node.shape))

    def __len__(self):
        return int(self.shape[0])

    def __repr__(self):
        return f"symbol {self.node.shape} in layer {self.tracer.layer!r}"

    def record(self, operation, operands, attributes):
        tracer = self.tracer
        values = {name: tracer.value(operand) for name, operand in operands.items()}
        if OURS.get(operation.name, operation) is not operation:
            raise NotTraceable(f"layer {tracer.layer!r} uses an operation of {operation.__module__} named "
                               f"{operation.name!r}, a name that backends take for mmref's own: choose another")
        if attributes.get("axis") == 0:
            raise NotTraceable(f"layer {tracer.layer!r} uses {operation.name} on the batch axis, which backends other "
                               f"than 'numpy' do not know: samples must stay apart")
        shape = infer(operation, values, attributes)
        try:
            elsewhere = infer(operation, values, attributes, elsewhere=True)
        except ShapeError:  # a constant that goes with this size only; with any batch all the same
            tracer.fixed_by = tracer.fixed_by or tracer.layer or "the network itself"
            batch = next(value.elsewhere[:1] for value in values.values() if isinstance(value, Node))
            elsewhere = (*batch, *shape[1:])
        first = next(iter(values.values()))
        return tracer.symbol(Node(operation, values, attributes, tracer.layer, shape, first.dtype, elsewhere))

    def inside(self, layer, *inputs):
        tracer = self.tracer
        before, tracer.layer = tracer.layer, layer.name
        try:
            result = layer.forward(*inputs)
        finally:
            tracer.layer = before
        if isinstance(result, TracedArray):
            tracer.layers[layer.name] = result.node
        return result

    def refuse(self, what):
        raise NotTraceable(
            f"layer {self.tracer.layer!r} uses {what} on an activation, which backends other than 'numpy' do not know: "
            f"write it with operations of mmref.nn, or make a function of it an operation (mmref.nn.operation)")

    # ----------------------------------------------------------- what the text may do with an array

    def __add__(self, other):
        return F.add(self, self._like(other))

    def __mul__(self, other):
        return F.multiply(self, self._like(other))

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + (-other)

    def __rsub__(self, other):
        return -self + other

    def _like(self, other):
        """A number as an array of one element, so that every operand has a shape."""
        if isinstance(other, (int, float, np.number)) and not isinstance(other, bool):
            return np.full((1,) * self.ndim, other, self.dtype)
        if isinstance(other, np.ndarray) and other.ndim < self.ndim:
            return other.reshape((1,) * (self.ndim - other.ndim) + other.shape)
        return other

    def __getitem__(self, key):
        """Slices with positive steps."""
        key = key if isinstance(key, tuple) else (key,)
        result = self
        for axis, part in enumerate(key):
            if not isinstance(part, slice):
                self.refuse(f"the index {part!r}")
            start, step, size = part.start or 0, part.step or 1, self.shape[axis]
            if step < 1:
                self.refuse(f"the slice {part!r}")
            if part.stop is None and start >= 0:
                stop = size
                if start == 0 and step == 1:
                    continue
            else:
                start, stop, step = part.indices(int(size))
                stop = max(start, stop)
            result = F.slice_axis(result, axis, start, stop, step)
        return result

    def __array__(self, *args, **kwargs):
        self.refuse("a NumPy function")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method == "__call__" and not kwargs and ufunc in (np.add, np.multiply, np.subtract):
            x, y = inputs
            if not isinstance(x, TracedArray):  # `array * symbol` arrives here
                return y.__rsub__(x) if ufunc is np.subtract else y.__add__(x) if ufunc is np.add else y.__mul__(x)
        self.refuse(f"numpy.{ufunc.__name__}")

    def __array_function__(self, function, types, args, kwargs):
        self.refuse(f"numpy.{function.__name__}")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self.refuse(f".{name}")

    def __bool__(self):
        self.refuse("the truth value")


def _refused(sign):
    def method(self, *others):
        self.refuse(sign)
    return method


# What an array can and a symbol cannot. `x += y` would bind another symbol where an array changes under all its names.
for _name, _sign in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "truediv": "/",
                     "rtruediv": "/", "floordiv": "//", "rfloordiv": "//", "mod": "%", "rmod": "%", "pow": "**",
                     "rpow": "**", "matmul": "@", "rmatmul": "@", "abs": "abs()", "iter": "iteration",
                     "float": "float()", "int": "int()", "index": "an index", "contains": "in", "iadd": "+=",
                     "isub": "-=", "imul": "*=", "itruediv": "/=", "ipow": "**=", "imatmul": "@=", "ifloordiv": "//=",
                     "imod": "%=", "setitem": "assignment to elements", "and": "&", "or": "|", "xor": "^",
                     "invert": "~"}.items():
    setattr(TracedArray, f"__{_name}__", _refused(_sign))
TracedArray.__hash__ = object.__hash__


def infer(operation, operands: dict, attributes: dict, elsewhere: bool = False) -> tuple[int, ...]:
    """The shape of an operation's result from those of its operands; `elsewhere`: from their other shapes."""
    def size(value):
        if not isinstance(value, Extent):
            return value
        return value.node.elsewhere[value.axis] if elsewhere else value.value
    given = {name: Other(value) if elsewhere and isinstance(value, Node) else value for name, value in operands.items()}
    return tuple(apply(operation, given, {name: size(value) for name, value in attributes.items()},
                       operation.result_shape))


class Other(Shaped):
    """A node with its other shape."""

    __slots__ = ("dtype", "ndim", "shape")

    def __init__(self, node: Node):
        self.shape, self.ndim, self.dtype = node.elsewhere, node.ndim, node.dtype


def trace(function: Callable, model, *shapes: tuple[int, ...], constants: Constants | None = None) -> Graph:
    """The graph of `function` (a method of `model`, or anything made of its layers) for inputs of these shapes.

    `function` gets one symbol for each shape and returns a symbol, or tuples, lists and dictionaries of such.
    `constants`: those of an earlier trace of the same model, so that equal ones have equal keys. Raises NotTraceable
    where the text does what no graph can hold, and ShapeError as the operations do.
    """
    tracer = Tracer(constants or Constants(model))
    inputs = []
    for shape in shapes:
        batch, *rest = shape = tuple(map(int, shape))
        # what is of another length for another batch and size of picture depends on them
        elsewhere = 2 * batch + 1, *rest[:1], *(2 * side + 1030 + axis for axis, side in enumerate(rest[1:]))
        node = Node(None, {}, {}, "", shape, np.dtype(model.dtype), elsewhere)
        inputs.append(tracer.symbol(node))
    returned = function(*inputs)
    outputs = []

    def take(part):
        if isinstance(part, TracedArray):
            outputs.append(part.node)
            return len(outputs) - 1
        if isinstance(part, (tuple, list)):
            return type(part)(take(inner) for inner in part)
        if isinstance(part, dict):
            return {name: take(inner) for name, inner in part.items()}
        raise NotTraceable(f"a traced function must return activations, or tuples, lists or dictionaries of them, got "
                           f"{part!r}")
    structure = take(returned)
    for node in tracer.nodes:  # the text has run: nobody else will look
        for value in node.attributes.values():
            if isinstance(value, Extent):
                value.tracer = None
    return Graph(tracer.nodes, [x.node for x in inputs], outputs, structure, tracer.layers, tracer.fixed_by)


def resized(graph: Graph, *shapes: tuple[int, ...]) -> Graph:
    """The graph for inputs of other shapes (their batch and size), without running the text again. Only for one that
    holds for every size: `fixed_by` is None. Raises ShapeError as the operations do."""
    new: dict[Node, Node] = {}

    def size(value):
        return Extent(place(value.node).shape[value.axis], place(value.node), value.axis, None) \
            if isinstance(value, Extent) else value

    def place(node):
        if node not in new:
            operands = {name: place(value) if type(value) is Node else value for name, value in node.operands.items()}
            attributes = {name: size(value) for name, value in node.attributes.items()}
            new[node] = Node(node.operation, operands, attributes, node.layer,
                             infer(node.operation, operands, attributes), node.dtype, node.elsewhere)
        return new[node]
    for node, shape in zip(graph.inputs, shapes, strict=True):
        new[node] = Node(None, {}, {}, "", tuple(map(int, shape)), node.dtype, node.elsewhere)
    nodes = [place(node) for node in graph.nodes]
    return Graph(nodes, [new[node] for node in graph.inputs], [new[node] for node in graph.outputs], graph.structure,
                 {name: new[node] for name, node in graph.layers.items()})
