"""The scans of a run, every number of the recurrence as it was, in float32.

    decay[l] = exp(delta[l] A)
    h[l] = decay[l] h[l-1] + delta[l] u[l] B[l]
    y[l] = D u[l] + sum of C[l] h[l]

The page does these steps again, in JavaScript's single precision and in the order of `mmref.nn.recurrence`; `h` is what
it must come to, and is computed here as the recurrence computes it.
"""

from __future__ import annotations

import numpy as np

from mmref.explain.pack import packed, share
from mmref.explain.run import Run
from mmref.graph.scans import read_from
from mmref.nn.paths import ORDERS, PADDING, directions, paths

SCAN_BYTES = 3_600_000  # of all scans together; where they need more, every scan keeps its first channels


def scans(run: Run, wanted, budget: int = SCAN_BYTES) -> list[dict]:
    """Every selective scan that a layer matching `wanted` makes, in network order."""
    nodes = [node for node in run.graph if node.name == "selective_scan" and wanted(node.layer)]
    limit = share([(node.shape[2], 1, _bytes(run, node)) for node in nodes], budget) if nodes else 0
    return [_scan(run, node, limit // _bytes(run, node)) for node in nodes]


def _bytes(run, node):
    """Of one channel: u, delta and y, and for every state decay and h."""
    return 4 * node.shape[1] * node.shape[3] * (3 + 2 * run.read[node]["A"].shape[-1])


def _scan(run, node, most):
    u, delta, A, B, C, D = (run.read[node][name] for name in ("u", "delta", "A", "B", "C", "D"))
    u, delta, B, C, y = u[0], delta[0], B[0], C[0], run.values[node][0]     # (K, D, L), ..., B and C (K, N, L)
    K, channels, L = u.shape
    N = A.shape[-1]
    kept = min(channels, max(1, most))
    u, delta, A, D, y = u[:, :kept], delta[:, :kept], A[:, :kept], D[:, :kept], y[:, :kept]
    decay = np.exp(delta[:, :, None] * A[..., None])                        # (K, D, N, L)
    ways, size = _paths(node, L)
    return {"layer": node.layer, "K": K, "D": channels, "kept": kept, "N": N, "L": L, "size": size,
            "paths": packed(ways, np.int32), "directions": _names(node, K), "u": packed(u), "delta": packed(delta),
            "A": packed(A), "B": packed(B), "C": packed(C), "skip": packed(D), "decay": packed(decay),
            "h": packed(states(u, delta, B, decay)), "y": packed(y)}


def orders(height: int, width: int) -> list[dict]:
    """Every named order of scanning, for a map of this size: the paths of its directions."""
    return [{"order": order, "directions": list(names), "paths": packed(paths(order, height, width), np.int32),
             "L": paths(order, height, width).shape[1]} for order, names in ORDERS.items()]


def states(u, delta, B, decay) -> np.ndarray:
    """h (K, D, N, L) of every step, in the order of arithmetic of `mmref.nn.recurrence.selective_scan`."""
    drive = (delta * u)[:, :, None] * B[:, None]                            # (K, D, N, L)
    h, last = np.empty_like(decay), np.zeros(decay.shape[:-1], decay.dtype)
    for step in range(decay.shape[-1]):
        last = decay[..., step] * last + drive[..., step]
        h[..., step] = last
    return h


def _paths(node, L):
    """((K, L) pixel numbers, [height, width] of the map); a sequence of no map is a row of pixels."""
    cross = read_from(node)
    if cross is not None:
        size = list(cross.sources[0].shape[2:])
        table = paths(cross.attributes["order"], *size)
        if table.shape == (node.shape[1], L):
            return table, size
    return np.tile(np.arange(L), (node.shape[1], 1)), [1, L]


def _names(node, K):
    cross = read_from(node)
    names = [] if cross is None else list(directions(cross.attributes["order"]))
    return names if len(names) == K else [f"sequence {k}" for k in range(K)]


assert PADDING == -1  # what the page takes for a step without a pixel
