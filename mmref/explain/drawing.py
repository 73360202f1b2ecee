"""The network as the page draws it: its tree of layers, and every layer opened into those inside it.

A drawing of a layer has one box for each layer that its text calls, and one for each operation that the text calls
itself, laid out in rows as `mmref show --what graph` lays out operations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmref.explain.run import Run, within
from mmref.models.summary import Row
from mmref.show.graph import levels_of, places

# operations that make sequences of maps, take a map apart for a while, or end it
PASSING = ("analysis", "global_average_pool", "adaptive_average_pool", "slice_axis", "cross_scan", "project",
           "cross_merge")
MOST_BOXES = 80  # of a drawing; a layer of more is opened through those inside it


@dataclass(eq=False)
class Box:
    """A layer (`layer`), an operation (one of `nodes`), or what the opened layer is given, in a drawing."""

    layer: str | None
    nodes: list = field(default_factory=list)         # of the graph
    sources: list[Box] = field(default_factory=list)  # as levels_of and places want it
    given: bool = False


def parent_of(name: str, called) -> str:
    """The innermost layer that was called around `name`; None for the network itself."""
    parts = name.split(".")
    return next((".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1) if ".".join(parts[:i]) in called), "")


def children_of(run: Run) -> dict[str, list[str]]:
    """{layer: the layers right inside it, in the order of the call}."""
    tree = {name: [] for name in run.layers}
    first = {}
    for i, node in enumerate(run.graph):
        if node.operation is not None:
            name = node.layer
            while name:
                first.setdefault(name, i)
                name = parent_of(name, run.layers)
    for name in sorted((name for name in run.layers if name), key=lambda name: (first.get(name, -1), name.count("."))):
        tree[parent_of(name, run.layers)].append(name)
    return tree


def drawing(run: Run, layer: str, children: list[str]) -> dict | None:
    """Boxes and arrows of an opened layer; None where there is one box or fewer, or too many to look at."""
    boxes = _boxes(run, layer, children)
    if not 1 < sum(not box.given for box in boxes) <= MOST_BOXES:
        return None
    place = places(boxes, levels_of(boxes))
    number = {box: i for i, box in enumerate(boxes)}
    arrows, owner = [], {node: box for box in boxes for node in box.nodes}
    for box in boxes:
        seen = set()
        for node in box.nodes:
            for source in node.sources:
                start = owner.get(source)
                if start is not box and not box.given and (start, source) not in seen:
                    seen.add((start, source))
                    arrows.append({"from": number[start], "to": number[box], "shape": list(source.shape[1:])})
    return {"boxes": [{"layer": box.layer, "operation": None if box.layer is not None else box.nodes[0].name,
                       "given": box.given, "note": "" if box.layer is not None or box.given else _note(box.nodes[0]),
                       "x": place[box][0], "y": place[box][1], "shape": list(box.nodes[-1].shape[1:])}
                      for box in boxes], "arrows": arrows}


def _boxes(run, layer, children):
    boxes, of_layer, owner = [], {}, {}
    for node in run.inside(layer):
        child = next((child for child in children if within(node.layer, child)), None)
        box = of_layer.get(child) if child is not None else None
        if box is None:
            box = Box(child)
            boxes.append(box)
            if child is not None:
                of_layer[child] = box
        box.nodes.append(node)
        owner[node] = box
    outside = dict.fromkeys(source for box in boxes for node in box.nodes for source in node.sources
                            if source not in owner)
    for source in outside:
        owner[source] = Box(None, [source], given=True)
    boxes = [owner[source] for source in outside] + boxes
    number = {box: i for i, box in enumerate(boxes)}
    for box in boxes[len(outside):]:
        sources = dict.fromkeys(owner[source] for node in box.nodes for source in node.sources if source in owner)
        box.sources = [source for source in sources if number[source] < number[box]]  # a layer called twice: no cycle
    return boxes


def _note(node):
    """What an operation's arguments say, in a word."""
    if node.name == "slice_axis" and node.attributes["axis"] == 1:
        start, stop = int(node.attributes["start"]), int(node.attributes["stop"])
        return f"channels {start} to {stop - 1}" if stop > start else "no channels"
    if node.name == "slice_axis":
        start, stop, axis = (int(node.attributes[name]) for name in ("start", "stop", "axis"))
        return f"{start} to {stop - 1} of axis {axis}"
    if node.name in ("cross_scan", "cross_merge"):
        order = node.attributes["order"]
        return order if isinstance(order, str) else ", ".join(order)
    if node.attributes.get("stride", 1) != 1:
        return f"stride {int(node.attributes['stride'])}"
    return ""


def layer_rows(run: Run, rows: dict[str, Row], tree: dict[str, list[str]]) -> list[dict]:
    """Every layer with its costs, network first, parents before those inside them."""
    order, pending = [], [""]
    while pending:
        name = pending.pop()
        order.append(name)
        pending += reversed(tree[name])
    empty = Row("", "", (), 0, 0)
    return [{"name": name, "kind": type(run.layers[name]).__name__, "parent": parent_of(name, run.layers) if name else
             None, "children": tree[name], "parameters": rows.get(name, empty).parameters,
             "macs": rows.get(name, empty).macs, "drawing": drawing(run, name, tree[name])} for name in order]


def halvings(run: Run) -> list[dict]:
    """Where a map gets smaller: operations that read a map and give one of fewer rows or columns."""
    found = []
    for node in run.graph:
        maps = [source for source in node.sources if source.ndim == 4]
        if node.ndim == 4 and maps and node.name not in PASSING:
            before, after = max(source.shape[2:] for source in maps), node.shape[2:]
            if after[0] < before[0] or after[1] < before[1]:
                found.append({"layer": node.layer, "operation": node.name, "from": list(before), "to": list(after)})
    return found


def untouched(run: Run) -> list[dict]:
    """Channels that a layer cuts off and joins again without computing anything on them."""
    found = []
    for node in run.graph:
        for source in node.sources if node.name == "concatenate" else ():
            if source.name == "slice_axis" and source.layer == node.layer and source.attributes["axis"] == 1:
                start, stop = int(source.attributes["start"]), int(source.attributes["stop"])
                if stop > start:
                    found.append({"layer": node.layer, "from": start, "to": stop - 1,
                                  "of": int(source.sources[0].shape[1])})
    return found
