"""Mistakes in scans, as in faults.py: directions, merging, the recurrence."""

from __future__ import annotations

import numpy as np

from mmref.graph.graph import Constant
from mmref.nn.operation import apply
from mmref.nn.recurrence import selective_scan
from mmref.validate.faults import gives, plants


def _takes(order, steps=slice(None)):
    return lambda result, o, a: result()[:, order, :, steps]


def _count(number):
    return lambda graph, node: (node.shape[1] if node.name == "cross_scan" else node.operands["y"].shape[1]) == number


def _turned(y, which):
    """The steps of some directions the other way round."""
    y = y.copy()
    for k in which:
        y[:, k] = y[:, k, :, ::-1]
    return y


for _text, _which in (("the backward scan reads forwards, yet is turned round afterwards", (1,)),
                      ("the forward scan reads backwards", (0,)), ("every scan reads the other way round", (0, 1))):
    gives("cross_scan", "direction", _text, lambda result, o, a, w=_which: _turned(result(), w), _count(2))
for _text, _which in (("the backward scan's result is not turned round", (1,)),
                      ("the forward scan's result is turned round", (0,)),
                      ("both results are turned the wrong way round", (0, 1))):
    gives("cross_merge", "direction", _text, lambda result, o, a, w=_which: result(y=_turned(o["y"], w)), _count(2))
for _text, _order in (("directions exchanged", (1, 0)), ("the first direction read twice", (0, 0)),
                      ("the second direction read twice", (1, 1))):
    gives("cross_scan", "direction", _text, lambda result, o, a, p=_order: result()[:, list(p)], _count(2))
    gives("cross_merge", "direction", f"merging: {_text}", lambda result, o, a, p=_order: result(y=o["y"][:, list(p)]),
          _count(2))
for _order in ((1, 0, 2, 3), (0, 2, 1, 3), (2, 3, 0, 1), (0, 1, 3, 2), (3, 2, 1, 0), (0, 3, 2, 1), (2, 1, 0, 3)):
    gives("cross_scan", "direction", f"directions exchanged: order {_order}",
          lambda result, o, a, p=_order: result()[:, list(p)], _count(4))
    gives("cross_merge", "direction", f"directions merged in another order: {_order}",
          lambda result, o, a, p=_order: result(y=o["y"][:, list(p)]), _count(4))


def _only(y, k):
    y = np.zeros_like(y) if k is None else y * (np.arange(y.shape[1]) == k)[None, :, None, None]
    return y


for _k, _word in ((1, "forward"), (0, "backward")):
    gives("cross_merge", "direction", f"{_word} scan left out", lambda result, o, a, k=_k: result(y=_only(o["y"], k)),
          _count(2))
gives("cross_merge", "merge", "directions averaged instead of added",
      lambda result, o, a: result() / o["y"].shape[1], lambda g, n: n.operands["y"].shape[1] > 1)


@plants("cross_merge", "direction", "pixels scanned by columns instead of rows")
def _by_columns(graph, node):
    scans = [other for other in graph if other.name == "cross_scan" and other.layer == node.layer]
    if len(scans) != 1:
        return None

    def merged(o, a):
        return apply(node.operation, o, {**a, "height": a["width"], "width": a["height"]}).swapaxes(2, 3)
    return {scans[0]: lambda o, a: apply(scans[0].operation, {"x": o["x"].swapaxes(2, 3)}, a), node: merged}


@plants("cross_merge", "direction", "every direction reads and writes the other way round")
def _all_turned(graph, node):
    scans = [other for other in graph if other.name == "cross_scan" and other.layer == node.layer]
    if len(scans) != 1:
        return None
    return {scans[0]: lambda o, a: apply(scans[0].operation, o, a)[..., ::-1],
            node: lambda o, a: apply(node.operation, {"y": o["y"][..., ::-1]}, a)}


@plants("cross_merge", "direction", "both directions scan forwards")
def _both_forwards(graph, node):
    scans = [other for other in graph if other.name == "cross_scan" and other.layer == node.layer]
    if len(scans) != 1 or node.operands["y"].shape[1] != 2:
        return None
    return {scans[0]: lambda o, a: _turned(apply(scans[0].operation, o, a), (1,)),
            node: lambda o, a: apply(node.operation, {"y": _turned(o["y"], (1,))}, a)}


def _mixed(result, o, a):
    """The published CPU path: (B, D, L) added to (B, 1, D, L), then summed over the wrong axis."""
    y = o["y"]
    wrong = np.stack([np.broadcast_to(y[:, 0].sum(0), y[:, 0].shape), len(y) * y[:, 1]], 1)
    return result(y=wrong)


gives("cross_merge", "batch-mixed",
      "samples of the batch mixed where directions are merged, as in the published CPU path", _mixed, _count(2))


def _parameters_of(order, text):
    """The constants of every direction taken from others, in every operation of the scan's layer."""
    @plants("selective_scan", "direction", text)
    def plant(graph, node):
        directions, changes = len(order), {}
        if node.shape[1] != directions:
            return None
        for other in graph:
            names = [name for name, value in other.operands.items() if isinstance(value, Constant)]
            axes = {name: next((axis for axis in (0, 1) if other.operands[name].shape[axis:axis + 1] == (directions,)),
                               None) for name in names}
            if other.layer == node.layer and other.name in ("project", "add", "selective_scan") and names \
                    and None not in axes.values():
                changes[other] = lambda o, a, op=other.operation, axes=axes: apply(
                    op, {**o, **{name: o[name].take(order, axis) for name, axis in axes.items()}}, a)
        return changes


_parameters_of((1, 0), "parameters of the two directions exchanged")
_parameters_of((0, 0), "the first direction's parameters used for both")
_parameters_of((1, 1), "the second direction's parameters used for both")
_parameters_of((0, 2, 1, 3), "parameters of the directions exchanged: order (0, 2, 1, 3)")


def _recurrence(o, weight=None, late=False, state=None):
    """The recurrence step by step, with another `weight(delta, A of the state)` of the input than delta, answers from
    the state before the step (late), or something done to the state."""
    u, delta, A, B, C, D = (o[name] for name in ("u", "delta", "A", "B", "C", "D"))
    y = D[:, :, None] * u
    for n in range(A.shape[-1]):
        decay = np.exp(delta * A[:, :, n, None])
        drive = (delta if weight is None else weight(delta, A[:, :, n, None])) * u * B[:, :, n, None, :]
        h = np.zeros(u.shape[:-1])
        for step in range(u.shape[-1]):
            before = h
            h = decay[..., step] * h + drive[..., step]
            h = h if state is None else state(h)
            y[..., step] += C[:, :, n, None, step] * (before if late else h)
    return y


def _carried(o):
    joined = {name: np.concatenate(list(o[name]), -1)[None] for name in ("u", "delta", "B", "C")}
    y = selective_scan(joined["u"], joined["delta"], o["A"], joined["B"], joined["C"], o["D"])[0]
    return np.stack(np.split(y, len(o["u"]), -1))


def chunked(o, size):
    """The scan started anew every `size` steps."""
    length = o["u"].shape[-1]
    parts = [{name: o[name][..., start:start + size] for name in ("u", "delta", "B", "C")}
             for start in range(0, length, size)]
    return np.concatenate([selective_scan(p["u"], p["delta"], o["A"], p["B"], p["C"], o["D"]) for p in parts], -1)


def _scan(key, text, function, when=lambda graph, node: True):
    gives("selective_scan", key, text, lambda result, o, a: function(o), when)


def _instead(**changes):
    return lambda o: selective_scan(**{**o, **{name: change(o) for name, change in changes.items()}})


_scan("Ds-missing", "skip term Ds * u left out", _instead(D=lambda o: o["D"] * 0))
_scan("Ds-missing", "skip term without Ds: u itself", _instead(D=lambda o: o["D"] * 0 + 1))
_scan("decay", "A = A_logs: minus and exp left out", _instead(A=lambda o: np.log(-o["A"])))
_scan("decay", "A = -A_logs: exp left out", _instead(A=lambda o: -np.log(-o["A"])))
_scan("decay", "A = exp(A_logs): minus left out", _instead(A=lambda o: -o["A"]))
_scan("decay", "A = -1 everywhere: A_logs not used", _instead(A=lambda o: o["A"] * 0 - 1))
_scan("projection-order", "B and C exchanged", _instead(B=lambda o: o["C"], C=lambda o: o["B"]))
_scan("discretisation", "B discretised exactly (zero-order hold) instead of delta * B",
      lambda o: _recurrence(o, lambda delta, A: np.expm1(delta * A) / A))
_scan("discretisation", "B not multiplied by delta", lambda o: _recurrence(o, lambda delta, A: np.ones_like(delta)))
_scan("discretisation", "decay to first order, 1 + delta A, instead of its exponential",
      lambda o: _first_order(o))
_scan("scan-step", "every step answers with the state before it", lambda o: _recurrence(o, late=True))
_scan("scan-step", "no state is kept: every step by itself", lambda o: chunked(o, 1))
_scan("scan-reset", "scan not reset between samples: the state runs on into the next", _carried,
      lambda g, n: n.shape[0] > 1)
_scan("scan-reset", "scan not reset between directions: the state runs on into the next", lambda o: _run_on(o),
      lambda g, n: n.shape[1] > 1)
for _size in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
    _scan("scan-reset", f"scan in chunks of {_size} steps that does not pass its state on",
          lambda o, size=_size: chunked(o, size), lambda g, n, size=_size: n.shape[-1] > size)


def _first_order(o):
    y, h = o["D"][:, :, None] * o["u"], 0.0
    for n in range(o["A"].shape[-1]):
        h = np.zeros(o["u"].shape[:-1])
        for step in range(o["u"].shape[-1]):
            delta = o["delta"][..., step]
            h = (1 + delta * o["A"][:, :, n]) * h + delta * o["u"][..., step] * o["B"][:, :, n, None, step]
            y[..., step] += o["C"][:, :, n, None, step] * h
    return y


def _run_on(o):
    """Directions one after another along one sequence, each with its own constants."""
    states, parts = None, []
    for k in range(o["u"].shape[1]):
        one = {name: o[name][:, k:k + 1] for name in ("u", "delta", "B", "C")} | {
            name: o[name][k:k + 1] for name in ("A", "D")}
        y, states = _from(one, states)
        parts.append(y)
    return np.concatenate(parts, 1)


def _from(o, states):
    """(y, last states) of a scan that begins in `states`."""
    y, last = o["D"][:, :, None] * o["u"], []
    for n in range(o["A"].shape[-1]):
        h = np.zeros(o["u"].shape[:-1]) if states is None else states[n]
        for step in range(o["u"].shape[-1]):
            delta = o["delta"][..., step]
            h = np.exp(delta * o["A"][:, :, n]) * h + delta * o["u"][..., step] * o["B"][:, :, n, None, step]
            y[..., step] += o["C"][:, :, n, None, step] * h
        last.append(h)
    return y, last


@plants("selective_scan", "scan-reset", "scan reset at every row of the map")
def _row_reset(graph, node):
    merge = next((user for user in graph.users[node] if user.name == "cross_merge"), None)
    if merge is None or node.shape[-1] != merge.shape[2] * merge.shape[3] or merge.shape[2] < 2:
        return None
    return {node: lambda o, a: chunked(o, merge.shape[3])}
