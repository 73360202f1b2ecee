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
from typing import NamedTuple

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
    for a height or width that is not an integer in 0..2^24."""
    return _table(directions(order), check_integer("height", height, 0, 1 << 24),
                  check_integer("width", width, 0, 1 << 24))


@lru_cache(maxsize=256)
def _table(order, height, width):
    numbers = np.arange(height * width).reshape(height, width)
    several = [_path(way(direction), numbers) for direction in order]
    table = np.full((len(several), max(map(len, several))), PADDING)
    for row, path in zip(table, several, strict=True):
        row[:len(path)] = path  # what pads a shorter path stands behind its last pixel, where it changes nothing
    table.flags.writeable = False
    return table


def directions(order: str | tuple[str, ...]) -> tuple[str, ...]:
    """The directions of an order, by name. ValueProblem for an unknown one."""
    named = ORDERS.get(order) if isinstance(order, str) else order
    if not isinstance(named, (tuple, list)) or not named or None in map(way, named):
        raise ValueProblem(f"order must be one of {', '.join(ORDERS)} or a tuple of directions ('rows', 'columns', "
                           f"'windows 7', each also with '{BACKWARDS}' behind it), got {shown(order)}")
    return tuple(named)


class Way(NamedTuple):
    """What the name of a direction says. The map is cut into square blocks, padded to whole ones."""

    side: int = 1                        # of a block
    cell: tuple[int, int] | None = None  # which pixel of every block, (row, column); None: block after block, all of it
    by_column: bool = False              # blocks one below the other, not side by side
    backwards: bool = False


def way(direction: str) -> Way | None:
    """A direction taken apart, None for an unknown one."""
    if not isinstance(direction, str):
        return None
    plain, backwards = direction.removesuffix(BACKWARDS), direction.endswith(BACKWARDS)
    if plain in ("rows", "columns"):
        return Way(by_column=plain == "columns", backwards=backwards)
    if plain in ORDERS["atrous"]:
        cell = int(plain.startswith("odd rows")), int("odd columns" in plain)
        return Way(2, cell, plain.endswith("by column"), backwards)
    word, _, side = plain.partition(" ")
    if word == "windows" and side.isascii() and side.isdigit() and len(side) <= 4 and int(side):
        return Way(int(side), backwards=backwards)
    return None


def _path(way, numbers):
    side = way.side
    padded = np.pad(numbers, [(0, -length % side) for length in numbers.shape], constant_values=PADDING)
    rows, columns = (length // side for length in padded.shape)
    blocks = padded.reshape(rows, side, columns, side).swapaxes(1, 2)       # (H/side, W/side, side, side)
    if way.cell:
        blocks = blocks[:, :, way.cell[0], way.cell[1]]
    path = (blocks.swapaxes(0, 1) if way.by_column else blocks).ravel()
    return path[::-1] if way.backwards else path
