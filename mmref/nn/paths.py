"""The orders in which a scan visits the pixels of a map, as tables of pixel numbers.

A direction is one pass over the map; its path lists pixels by number, `row * width + column`, and -1 for a pixel of
zeros that pads the map to whole windows. An order is several directions whose sequences are scanned side by side.

    unidirectional  K = 1: rows, left to right
    bidirectional   K = 2: rows; the same backwards (the released weights)
    cross           K = 4: rows; columns; both backwards (VMamba)
    atrous          K = 4: every second pixel of every second row, four ways to begin (EfficientVMamba)

Any tuple of directions is an order too: "rows", "columns", "windows 7" (windows of 7x7 row by row, and row by row in a
window; any side), each also with " backwards" behind it, as LocalVim mixes them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mmref.arguments import check_integer, shown
from mmref.errors import ValueProblem

ORDERS = {"unidirectional": ("rows",), "bidirectional": ("rows", "rows backwards"),
          "cross": ("rows", "columns", "rows backwards", "columns backwards"),
          "atrous": ("even rows, even columns", "odd rows, even columns by column", "even rows, odd columns",
                     "odd rows, odd columns by column")}
BACKWARDS = " backwards"
PADDING = -1


def paths(order: str | tuple[str, ...], height: int, width: int) -> np.ndarray:
    """Table (K, L) of int64 pixel numbers of a height x width map; read-only. ValueProblem for an unknown order, and
    for a height or width that is no integer in 0..2^24."""
    return _table(directions(order), check_integer("height", height, 0, 1 << 24),
                  check_integer("width", width, 0, 1 << 24))


@lru_cache(maxsize=256)
def _table(order, height, width):
    numbers = np.arange(height * width).reshape(height, width)
    several = [_path(direction, numbers) for direction in order]
    table = np.full((len(several), max(map(len, several))), PADDING)
    for row, path in zip(table, several, strict=True):
        row[:len(path)] = path  # what pads a shorter path stands behind its last pixel, where it changes nothing
    table.flags.writeable = False
    return table


def directions(order: str | tuple[str, ...]) -> tuple[str, ...]:
    """The directions of an order, by name. ValueProblem for an unknown one."""
    named = ORDERS.get(order) if isinstance(order, str) else order
    if not isinstance(named, (tuple, list)) or not named or not all(map(_known, named)):
        raise ValueProblem(f"order must be one of {', '.join(ORDERS)} or a tuple of directions ('rows', 'columns', "
                           f"'windows 7', each also with '{BACKWARDS}' behind it), got {shown(order)}")
    return tuple(named)


def _known(direction):
    if not isinstance(direction, str):
        return False
    plain = direction.removesuffix(BACKWARDS)
    return plain in ("rows", "columns", *ORDERS["atrous"]) or _window(plain) > 0


def _window(direction):
    word, _, side = direction.partition(" ")
    return int(side) if word == "windows" and side.isascii() and side.isdigit() and len(side) <= 4 else 0


def _path(direction, numbers):
    plain = direction.removesuffix(BACKWARDS)
    if plain == "rows":
        path = numbers.ravel()
    elif plain == "columns":
        path = numbers.T.ravel()
    elif plain in ORDERS["atrous"]:
        start = [int(plain.startswith("odd")), int("odd columns" in plain)]
        cells = _padded(numbers, 2)[start[0]::2, start[1]::2]
        path = (cells.T if "by column" in plain else cells).ravel()
    else:
        side = _window(plain)
        cells = _padded(numbers, side)
        path = cells.reshape(len(cells) // side, side, -1, side).swapaxes(1, 2).ravel()
    return path[::-1] if direction.endswith(BACKWARDS) else path


def _padded(numbers, step):
    """Rows and columns of padding at the bottom and right, to whole steps."""
    return np.pad(numbers, [(0, -side % step) for side in numbers.shape], constant_values=PADDING)
