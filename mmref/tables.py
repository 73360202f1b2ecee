"""Tables for people, of plain text."""

from __future__ import annotations

from mmref.text import printable


def table(rows: list[tuple], header: tuple[str, ...], left: int = 1) -> str:
    """Rows as aligned text: the first `left` columns to the left, the rest to the right; names are safe in it."""
    cells = [tuple(printable(cell) for cell in row) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row):
        return "  ".join(cell.ljust(w) if i < left else cell.rjust(w)
                         for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *map(line, cells[1:])])
