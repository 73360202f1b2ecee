"""A thin builder for ONNX graphs: nodes one after another, values known by their names.

Every name is that of the layer it belongs to and the operation, `stage.0/Conv`, so that a tool which shows the graph
shows the network's structure.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper


class GraphBuilder:
    """Collects nodes and initialisers. Values are the strings that ONNX knows them by."""

    def __init__(self):
        self.nodes, self.initialisers = [], {}
        self.scope = ""                        # the layer whose nodes are being appended
        self._taken: dict[str, int] = {}

    def node(self, op: str, inputs: list[str], outputs: int = 1, **attributes):
        """Append a node; returns its output, or the list of them where there are several."""
        name = self.unique(self.scoped(op))
        values = [name] if outputs == 1 else [f"{name}:{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, values, name=name, **attributes))
        return values[0] if outputs == 1 else values

    def constant(self, name: str, array) -> str:
        """An initialiser; floating-point arrays become float32. The name must be `unique`."""
        array = np.asarray(array)
        self.initialisers[name] = np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else np.int64)
        return name

    def integers(self, *values: int) -> str:
        """A constant vector of integers, shared by all who need it."""
        return self.constant(f"ints/{'_'.join(map(str, values))}", np.array(values, np.int64))

    def split(self, x: str, sizes: list[int], axis: int) -> list[str]:
        """`np.split` by sizes."""
        return [x] if len(sizes) == 1 else self.node("Split", [x, self.integers(*sizes)], len(sizes), axis=axis)

    def concatenate(self, parts: list[str], axis: int) -> str:
        return parts[0] if len(parts) == 1 else self.node("Concat", parts, axis=axis)

    def total(self, terms: list[str]) -> str:
        """The sum of one or more values."""
        result = terms[0]
        for term in terms[1:]:
            result = self.node("Add", [result, term])
        return result

    def transpose(self, x: str, *axes: int) -> str:
        return self.node("Transpose", [x], perm=axes)

    def graph(self, name: str, inputs, outputs):
        """The finished GraphProto; inputs and outputs are (name, dimensions), dimensions numbers, symbols or None, and
        outputs may have a type behind that, where it is not float32."""
        def describe(value):
            name, dims, *kind = value
            return helper.make_tensor_value_info(name, *(kind or [TensorProto.FLOAT]), dims)
        tensors = [numpy_helper.from_array(array, name) for name, array in self.initialisers.items()]
        return helper.make_graph(self.nodes, name, [describe(v) for v in inputs], [describe(v) for v in outputs],
                                 tensors)

    def scoped(self, name: str) -> str:
        """A name within the layer in hand."""
        return f"{self.scope}/{name}" if self.scope else name

    def unique(self, name: str) -> str:
        """The name, with a number behind it where it is taken."""
        count = self._taken[name] = self._taken.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"
