"""Graphs whose sizes stay free: the text is traced at several sizes, and every size must give the same graph.

What goes with the size of the input is then only what an `Extent` remembers; it becomes a node of the graph, `size`, in
the place of the number. A text that computes otherwise with a size, or asks it questions, gives two different graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from mmref.errors import NotTraceable
from mmref.graph.graph import Constant, Graph, Node, collect
from mmref.graph.trace import Constants, Extent, trace
from mmref.nn.operation import operation


@operation(lambda x, axis, offset: (), registry={})
def size(x, axis, offset):
    """The length of an axis, plus a number."""
    return x.shape[axis] + offset


def trace_free(function: Callable, model, inputs: list[tuple], side: int) -> tuple[Graph, list[tuple]]:
    """The graph of `function` for inputs whose dimensions are numbers, or symbols that stand for any size.

    side: a height and width that the network is known to take. Returns the graph, and for each output its dimensions:
    numbers, symbols of the inputs, or None for a free size that is none of them. Raises NotTraceable where the graph
    depends on a size, naming the layer.
    """
    constants, traces = Constants(model), []
    for sample in _samples(inputs, side):
        shapes = [tuple(sample.get(dim, dim) for dim in dims) for dims in inputs]
        try:
            traces.append((sample, trace(function, model, *shapes, constants=constants)))
        except ValueError as error:  # what the text says of a size that it does not take
            if not traces:
                raise
            refusal = error
    if len(traces) == 1:
        raise _fixed_only(f"the network takes {traces[0][0]} and no other size ({refusal})")
    for (_, one), (_, other) in pairwise(traces):
        _check_same(one, other)
    graphs = [graph for _, graph in traces]
    outputs = [tuple(_dimension(sizes, [sample for sample, _ in traces]) for sizes in zip(*shapes, strict=True))
               for shapes in zip(*([node.shape for node in graph.outputs] for graph in graphs), strict=True)]
    return _with_sizes(graphs), outputs


def _samples(inputs, side):
    """{symbol: size} several times: the side itself, a multiple, odd and unequal ones, one pixel."""
    symbols = list(dict.fromkeys(dim for dims in inputs for dim in dims if isinstance(dim, str)))
    batches, heights, widths = (2, 3, 1, 5), (side, 2 * side, side // 2 + 1, 1), (side, 3 * side, -(-side // 3), 1)
    for sizes in zip(batches, heights, widths, strict=True):
        yield {symbol: sizes[2 - i % 2 if i else 0] for i, symbol in enumerate(symbols)}


def _dimension(sizes, samples):
    """The number or symbol that an output's axis has in every sample, None for neither."""
    if len(set(sizes)) == 1:
        return sizes[0]
    return next((symbol for symbol in samples[0]
                 if all(size == sample[symbol] for size, sample in zip(sizes, samples, strict=True))), None)


def _fixed_only(why):
    return NotTraceable(f"{why}: it can be exported with fixed sizes only (fixed=(height, width), --fixed HxW)")


def _check_same(one, other):
    places = [{node: i for i, node in enumerate(graph)} for graph in (one, other)]

    def meaning(value, places):
        if isinstance(value, Node):
            return places[value]
        if isinstance(value, Constant):
            return value.key
        return ("size", places[value.node], value.axis, value.offset) if isinstance(value, Extent) else value
    for nodes in zip(one, other, strict=False):
        a, b = ((node.layer, node.name, id(node.operation), node.ndim, {
            name: meaning(value, where) for name, value in (*node.operands.items(), *node.attributes.items())})
            for node, where in zip(nodes, places, strict=True))
        if a != b:
            changed = [name for name in a[-1] if a[-1][name] != b[-1].get(name)] if a[1:3] == b[1:3] else ()
            raise _fixed_only(f"layer {nodes[0].layer!r} computes with the size of its input: "
                              f"{' and '.join(changed) or 'what follows'} in operation {nodes[0].name!r} is not the "
                              f"same for all sizes")
        if nodes[0].shape[1:2] != nodes[1].shape[1:2] and nodes[0].operation:
            raise _fixed_only(f"layer {nodes[0].layer!r} makes its number of channels from the size of its input")
    if len(one.nodes) != len(other.nodes) or one.structure != other.structure:
        raise _fixed_only("the network does not compute the same for all sizes")


def _with_sizes(graphs):
    """The first of several equal graphs, with nodes `size` as operands in the place of sizes that differ."""
    free = {nodes[0]: [len(set(sizes)) > 1 for sizes in zip(*(node.shape for node in nodes), strict=True)]
            for nodes in zip(*graphs, strict=True)}
    new: dict[Node, Node] = {}
    for old in graphs[0]:
        operands = {name: new.get(value, value) for name, value in old.operands.items()}
        sizes = {name: value for name, value in old.attributes.items()
                 if isinstance(value, Extent) and free[value.node][value.axis]}
        for name, value in sizes.items():
            operands[name] = Node(size, {"x": new[value.node]}, {"axis": value.axis, "offset": value.offset},
                                  old.layer, (), old.dtype)
        attributes = {name: value for name, value in old.attributes.items() if name not in sizes}
        changed = sizes or any(operands[name] is not value for name, value in old.operands.items())
        new[old] = Node(old.operation, operands, attributes, old.layer, old.shape, old.dtype) if changed else old
    return collect(graphs[0], new)
