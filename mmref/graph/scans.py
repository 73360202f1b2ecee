"""Which scans a graph has, and in which order each of them reads its map."""

from __future__ import annotations

from mmref.graph.graph import Graph, Node


def scans_of(graph: Graph) -> dict[str, list[Node]]:
    """{layer: its selective scans}, in network order, of a graph as it was traced."""
    found = {}
    for node in graph:
        if node.name == "selective_scan":
            found.setdefault(node.layer, []).append(node)
    return found


def read_from(scan: Node) -> Node | None:
    """The `cross_scan` that a selective scan's sequences come from, None if there is none. Its source is the map, its
    attribute `order` the order."""
    pending, known = [scan.operands["u"]], set()
    while pending:
        one = pending.pop(0)
        if getattr(one, "name", "") == "cross_scan":
            return one
        if one not in known:
            known.add(one)
            pending += getattr(one, "sources", ())
    return None
