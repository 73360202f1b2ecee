"""The effective receptive field (paper figure 1; Luo et al. 2016): the gradient of the features at a map's centre with
respect to the pixels.

mmref runs forward only, so it is measured with finite differences in float64, a forward one of step STEP: pixels are
moved a cell at a time, by random signs, and what the features move by is the result. The signs make the square of that
the expected sum of the squared gradients of all features for all pixels of the cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from mmref.errors import ValueProblem

STEP = 1e-4  # in units of the normalised input


def fields(run: Callable, x: np.ndarray, cells: int, seen=None, batch: int = 16) -> dict[str, tuple]:
    """{map: ((cells, cells) root of the summed squared gradients of all centre features for a cell's pixels, centre of
    the map in the picture (y, x))}.

    run    from pictures (B, C, H, W) to maps by name, {name: (B, C', H', W')}
    x      one picture, (1, C, H, W) float64
    seen   called with the number of cells done

    An estimate from one draw of signs a cell. Raises ValueProblem for more cells than pixels."""
    height, width = x.shape[2:]

    def centres(pictures):
        return {name: maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2] for name, maps in run(pictures).items()}
    middles = {name: tuple((side // 2 + 0.5) * length / side for side, length in
                           zip(maps.shape[2:], (height, width), strict=True)) for name, maps in run(x).items()}
    base = centres(x)
    signs = np.random.default_rng(0).choice((-STEP, STEP), x.shape[1:])
    moved = {name: [] for name in base}
    for cell_batch in batches(cell_slices(cells, height, width), batch):
        inputs = np.repeat(x, len(cell_batch), 0)
        for one, cell in zip(inputs, cell_batch, strict=True):
            one[cell] += signs[cell]
        for name, features in centres(inputs).items():
            moved[name].append((features - base[name]) / STEP)
        if seen is not None:
            seen(len(inputs))
    return {name: (np.sqrt(np.square(np.concatenate(parts)).sum(1)).reshape(cells, cells), middles[name])
            for name, parts in moved.items()}


def cell_slices(cells: int, height: int, width: int) -> list[tuple]:
    """An index of every cell of a picture (C, H, W) cut into cells x cells, row by row. Raises ValueProblem for more
    cells than pixels."""
    if not 1 <= cells <= min(height, width):
        raise ValueProblem(f"--cells must be 1 to {min(height, width)}, the picture's side, got {cells}")
    rows, columns = ([slice(*pair) for pair in zip(edges[:-1], edges[1:], strict=True)] for edges in
                     (np.linspace(0, n, cells + 1).astype(int).tolist() for n in (height, width)))
    return [(slice(None), i, j) for i in rows for j in columns]


def batches(items: list, size: int) -> Iterator[list]:
    """The items, `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start:start + size]
