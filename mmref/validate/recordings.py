"""Records that hold something else than the candidate computed with: overwritten in place after they were kept.

A record that differs although what was computed from it agrees is suspicious, but a fault may fade on its way, too. So
a record is only set aside where it holds what the next operation made of it (an in-place ReLU, a sum in place), or
where its values, had they been used, would have shown in a later record that agrees.
"""

from __future__ import annotations

import numpy as np

from mmref.errors import MmrefError
from mmref.validate.layouts import arranged
from mmref.validate.replay import Replay, compute
from mmref.validate.trace import largest

CLEAR = 4.0  # how far beyond the limit a later record would have been


def overwritten(model, records, candidate, rows, allowed) -> list[str]:
    """Names of the rows, in order from the first that differs, that are recordings and no differences."""
    agree = {row.name: records[row.name] for row in rows if row.verdict == "same"}
    differ = [row for row in rows if row.verdict == "DIFFERS" and row.name != "input"]
    if model is None or "input" not in records or not differ or not agree:
        return []
    try:
        replay = Replay(model.astype(np.float64), {"input": records["input"], **agree}, records["input"].shape)
    except MmrefError:
        return []
    found, name_of = [], {}
    for name, node in replay.names.items():
        if name in agree:
            name_of.setdefault(node, name)
    for row in differ:
        node = replay.names.get(row.name)
        if node is None or node in replay.own:  # another name of a record that agrees
            if node is None:
                break
            found.append(row.name)
            continue
        got, _ = arranged(records[row.name], candidate.records[row.candidate])
        if not (_next(replay, node, got, allowed[row.name][0]) or _would_show(replay, node, got, name_of, allowed)):
            break
        found.append(row.name)
    return found


def _next(replay, node, got, limit):
    """Whether the record is what an operation that reads it gives."""
    for user in replay.users[node]:
        if user.shape == got.shape and largest(compute(user, replay.values) - got) <= limit:
            return any(other in replay.own for other in replay.reached([user]))
    return False


def _would_show(replay, node, got, name_of, allowed):
    with np.errstate(all="ignore"):
        return any(largest(value - replay.own[other]) > CLEAR * allowed[name_of[other]][0]
                   for other, value in replay.changed({node: lambda o, a: got}) if other in name_of)
