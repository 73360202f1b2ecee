"""From a network to the graph that is lowered: traced, batch norms folded, sizes as nodes."""

from __future__ import annotations

from collections.abc import Callable

from mmref.errors import NotTraceable
from mmref.graph.graph import Constant, Graph, Node, collect, rewrite
from mmref.graph.passes import fold_batch_norm, replaced
from mmref.graph.trace import Extent, plain, trace
from mmref.nn.operation import operation


@operation(lambda x, axis: (), registry={})
def size(x, axis):
    """The length of an axis, in the place of the number that an attribute had when the text was traced."""
    return x.shape[axis]


SIZES = {"height", "width", "start", "stop"}  # attributes that emitters take as nodes
BATCH = 7  # while tracing: one that no constant of a text is likely to have


def graph_of(function: Callable, model, inputs: list[tuple], side: int) -> tuple[Graph, dict[Node, str]]:
    """(graph of `function` for inputs of these dimensions, {node: the layer it is named after}).

    Dimensions are numbers, or symbols that stand for any size; side: a height and width that the network takes. Raises
    NotTraceable where a size that should stay free enters a computation, naming the layer.
    """
    shapes = [tuple((side if axis else BATCH) if isinstance(dim, str) else dim for axis, dim in enumerate(dims))
              for dims in inputs]
    traced = trace(function, model, *shapes)
    fixed_by = traced.fixed_by or next((node.layer for node in traced for name, value in node.attributes.items()
                                        if isinstance(value, Extent) and name not in SIZES), None)
    if fixed_by is not None and any(isinstance(dim, str) for dims in inputs for dim in dims[2:]):
        raise NotTraceable(f"layer {fixed_by!r} computes with the size of its input: such a network can be exported "
                           f"for one size only (fixed=(height, width), --fixed HxW)")
    graph = fold_batch_norm(without_empty_parts(sizes_as_nodes(traced)))
    return graph, scopes(graph, traced)


def sizes_as_nodes(graph: Graph) -> Graph:
    """A pass: attributes that are somebody's size become operands, nodes of operation `size`."""
    new: dict[Node | Constant, Node] = {}
    for old in graph:
        operands = {name: new.get(value, value) for name, value in old.operands.items()}
        sizes = {name: value for name, value in old.attributes.items() if name in SIZES and isinstance(value, Extent)}
        attributes = plain({name: value for name, value in old.attributes.items() if name not in sizes})
        for name, value in sizes.items():
            operands[name] = Node(size, {"x": new[value.node]}, {"axis": value.axis}, old.layer, (), old.dtype)
        new[old] = Node(old.operation, operands, attributes, old.layer, old.shape, old.dtype, old.elsewhere)
    return collect(graph, new)


def without_empty_parts(graph: Graph) -> Graph:
    """A pass: what has no channels is not concatenated, and so not computed either."""
    def rule(node, only):
        if node.name != "concatenate":
            return None
        parts = {name: part for name, part in node.operands.items() if 0 not in part.shape}
        first = next(iter(parts.values()), None)
        if len(parts) == 1 and isinstance(first, Node):
            return first
        return replaced(node, node, node.operation, parts, **node.attributes) if parts else None
    return rewrite(graph, rule)


def scopes(graph: Graph, traced: Graph) -> dict[Node, str]:
    """{node: the layer that it is named after}: that whose text made the call.

    Where a convolution has taken over the batch norm behind it, its own layer's result is no longer there. Then it is
    the layer around both, if that returns this, or else that of the batch norm.
    """
    owners: dict[Node, str] = {}
    for layer, node in graph.layers.items():
        owners.setdefault(node, layer)                # the innermost layer that returns it comes first
    names = {node: node.layer for node in graph}
    for node, layer in names.items():
        if layer in traced.layers and layer not in graph.layers:
            owner = owners.get(node, layer)
            around = _around(layer, owner)
            names[node] = around if graph.layers.get(around) is node else owner
    return names


def _around(one, other):
    """The path of the innermost layer around two."""
    parts = []
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        parts.append(a)
    return ".".join(parts)


def dimensions(node: Node, inputs: list[tuple], graph: Graph) -> tuple[int | str | None, ...]:
    """Of an output: numbers, the inputs' symbols, None for a free size that is none of theirs."""
    symbols: dict[tuple, set] = {}
    for dims, x in zip(inputs, graph.inputs, strict=True):
        for axis, dim in enumerate(dims):
            symbols.setdefault((x.shape[axis], x.elsewhere[axis]), set()).add(dim)
    free = any(isinstance(dim, str) for dims in inputs for dim in dims[2:])

    def dimension(axis, length, elsewhere):
        same = symbols.get((length, elsewhere), {None})
        if length == elsewhere or axis and not free:
            return length
        return next(iter(same)) if len(same) == 1 else None
    return tuple(dimension(axis, *both) for axis, both in enumerate(zip(node.shape, node.elsewhere, strict=True)))
