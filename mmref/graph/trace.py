"""From a network's text to its graph: the text is run once, on symbols instead of arrays.

    graph = trace(model.forward, model, (1, 3, 192, 192))

Every operation that the text calls becomes a node (mmref.nn.operation); `+`, `*`, `-` and slices of symbols are
operations too. What the text computes from parameters alone is done at once, and enters the graph as a constant. A text
that does something else with a symbol (a NumPy function, a comparison of its values) is an error that names the layer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mmref.errors import NotTraceable
from mmref.graph.graph import Constant, Graph, Node
from mmref.nn import functional as F
from mmref.nn.operation import Symbol


class Tracer:
    """Nodes recorded so far, the layer whose forward runs, and the model's constants."""

    def __init__(self, constants: Constants):
        self.constants, self.nodes, self.layer, self.layers = constants, [], "", {}

    def symbol(self, node: Node) -> TracedArray:
        self.nodes.append(node)
        return TracedArray(self, node)

    def value(self, operand) -> Node | Constant:
        """The node of a symbol, the constant of an array."""
        if isinstance(operand, TracedArray):
            return operand.node
        return self.constants.of(operand, self.layer)


class Constants:
    """The constants of one model, each array once, whichever graph it enters."""

    def __init__(self, model):
        self.names, self.places, self.arrays, self.computed = {}, {}, {}, {}
        for name, layer, attribute in model.named_parameters():
            array = getattr(layer, attribute)
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


class Extent(int):
    """The length of an axis of a traced array: an integer that remembers which, for backends whose sizes stay free.

    Plus or minus an integer it remembers that as well; after any other arithmetic it is an integer like others."""

    def __new__(cls, value, node, axis, offset=0):
        self = super().__new__(cls, value)
        self.node, self.axis, self.offset = node, axis, offset
        return self

    def __add__(self, other):
        total = super().__add__(other)
        if type(other) is not int:
            return total
        return Extent(total, self.node, self.axis, self.offset + other)

    __radd__ = __add__

    def __sub__(self, other):
        return self + -other if type(other) is int else super().__sub__(other)


class TracedArray(Symbol):
    """The symbol that records."""

    __slots__ = ("node", "tracer")
    __array_priority__ = 1000  # `array * symbol` asks the symbol, not NumPy

    def __init__(self, tracer: Tracer, node: Node):
        self.tracer, self.node = tracer, node

    shape = property(lambda self: tuple(Extent(size, self.node, axis) for axis, size in enumerate(self.node.shape)))
    dtype = property(lambda self: self.node.dtype)
    ndim = property(lambda self: len(self.node.shape))

    def __len__(self):
        return self.node.shape[0]

    def __repr__(self):
        return f"symbol {self.node.shape} in layer {self.tracer.layer!r}"

    def record(self, operation, operands, attributes):
        tracer = self.tracer
        values = {name: tracer.value(operand) for name, operand in operands.items()}
        given = list(values.values()) if operation.spread else values
        shape = operation.result_shape(*given, **attributes) if operation.spread else operation.result_shape(
            **given, **attributes)
        first = next(iter(values.values()))
        return tracer.symbol(Node(operation, values, attributes, tracer.layer, tuple(map(int, shape)), first.dtype))

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
            size = self.shape[axis]
            start, stop, step = part.indices(size)
            if step < 1:
                self.refuse(f"the slice {part!r}")
            start, stop = _bound(part.start, start, size), size if part.stop is None else _bound(part.stop, stop, size)
            if (start, stop, step) != (0, size, 1):
                result = F.slice_axis(result, axis, start, max(start, stop), step)
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


def _bound(given, meant, size):
    """The bound `meant` by one `given` in a slice, as an Extent where it goes with the size of an array."""
    if given is None:
        return meant
    from_end = size + given if given < 0 else given
    return from_end if isinstance(from_end, Extent) and from_end == meant else meant


def trace(function: Callable, model, *shapes: tuple[int, ...], constants: Constants | None = None) -> Graph:
    """The graph of `function` (a method of `model`, or anything made of its layers) for inputs of these shapes.

    `function` gets one symbol for each shape and returns a symbol, or a tuple or list of such. `constants`: those of an
    earlier trace of the same model, so that equal ones have equal keys. Raises NotTraceable where the text does what
    no graph can hold, and ShapeError as the operations do.
    """
    tracer = Tracer(constants or Constants(model))
    inputs = [tracer.symbol(Node(None, {}, {}, "", tuple(map(int, shape)), np.dtype(model.dtype))) for shape in shapes]
    returned = function(*inputs)
    outputs = []

    def take(part):
        if isinstance(part, TracedArray):
            outputs.append(part.node)
            return len(outputs) - 1
        if isinstance(part, (tuple, list)):
            return type(part)(take(inner) for inner in part)
        raise NotTraceable(f"a traced function must return activations, or tuples or lists of them, got {part!r}")
    structure = take(returned)
    graph = Graph(tracer.nodes, [x.node for x in inputs], outputs, structure, tracer.layers)
    return graph
