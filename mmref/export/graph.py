"""A thin builder for ONNX graphs: nodes one after another, values known by their names.

Every name is that of the layer it belongs to and the operation, `blocks1.0.ffn0.m.pw1/Conv`; initialisers that are
parameters carry the names of the folded state dict, so that a tool which shows the graph shows mmref's structure.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper


class GraphBuilder:
    """Collects nodes and initialisers. Values are the strings that ONNX knows them by."""

    def __init__(self):
        self.nodes, self.initialisers = [], {}
        self._taken: dict[str, int] = {}

    def node(self, op: str, inputs: list[str], scope: str, outputs: int = 1, **attributes):
        """Append a node; returns its output, or the list of them where there are several."""
        name = self._unique(f"{scope}/{op}" if scope else op)
        values = [name] if outputs == 1 else [f"{name}:{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, values, name=name, **attributes))
        return values[0] if outputs == 1 else values

    def constant(self, name: str, array) -> str:
        """An initialiser; floating-point arrays become float32. The same name must mean the same array."""
        array = np.asarray(array)
        array = np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else np.int64)
        if name in self.initialisers and not np.array_equal(self.initialisers[name], array):
            raise AssertionError(f"two different arrays called {name}")
        self.initialisers[name] = array
        return name

    def integers(self, *values: int) -> str:
        """A constant vector of integers, shared by all who need it."""
        return self.constant(f"ints/{'_'.join(map(str, values))}", np.array(values, np.int64))

    def split(self, x: str, sizes, axis: int, scope: str) -> list[str]:
        """`np.split` by sizes; parts of size 0 are left out (and a single part is `x` itself)."""
        sizes = [size for size in sizes if size]
        if len(sizes) == 1:
            return [x]
        return self.node("Split", [x, self.integers(*sizes)], scope, len(sizes), axis=axis)

    def sizes(self, x: str, start: int, end: int, scope: str) -> str:
        """The sizes of axes start .. end - 1, known when the graph runs."""
        return self.node("Shape", [x], scope, start=start, end=end)

    def total(self, terms: list[str], scope: str) -> str:
        """The sum of one or more values of the same shape."""
        result = terms[0]
        for term in terms[1:]:
            result = self.node("Add", [result, term], scope)
        return result

    def graph(self, name: str, inputs, outputs):
        """The finished GraphProto; inputs and outputs are (name, dimensions), dimensions numbers or symbols."""
        def describe(value):
            return helper.make_tensor_value_info(value[0], TensorProto.FLOAT, value[1])
        tensors = [numpy_helper.from_array(array, name) for name, array in self.initialisers.items()]
        return helper.make_graph(self.nodes, name, [describe(v) for v in inputs], [describe(v) for v in outputs],
                                 tensors)

    def _unique(self, name):
        count = self._taken[name] = self._taken.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"
