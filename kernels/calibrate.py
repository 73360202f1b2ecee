"""How many multiply-adds this machine does right now: the ruler to lay beside every benchmark.

Shared machines change their clock and their neighbours within minutes; a time means nothing without this. The
measurement runs the matrix product's largest tile on data that stay in the first cache, on as many threads as the
benchmark, so that what limits it are the multipliers alone. Nothing that is computed with float32 multiply-adds can be
faster: what seems to be by more than NOISE says that one of the two is measured wrongly.
"""

from __future__ import annotations

import time

import numpy as np

from mmref.errors import ValueProblem
from mmref.kernels.program import addresses, run, threads_available, tile_table
from mmref.kernels.records import MATMUL, PANEL, STEP
from mmref.kernels.target import LANES, TARGET

DEPTH, TILES = 128, 800     # a run of 0.2 to 1 ms on each thread; weights of 24 KiB at most
NOISE = 0.05                # a share of the rate above 1 + NOISE is measured wrongly, or the rate is


def multiply_add_rate(threads: int | None = None, seconds: float = 0.2) -> float:
    """Billions of float32 operations a second (a multiply-add is two), of the fastest run in `seconds` (of three at
    least): other work on the machine makes runs slower, and none makes one faster.

    threads: how many run at once (None: as many as there are cores). Raises ValueProblem where threads < 1.
    """
    threads = threads_available() if threads is None else threads
    if threads < 1:
        raise ValueProblem(f"threads must be at least 1, got {threads}")
    rows, columns = TARGET.tile_rows, TARGET.tile_vectors * LANES
    steps, records, keep = np.zeros(threads, STEP), np.zeros(threads, MATMUL), []
    for share in range(threads):
        x, weights, out = (np.zeros(size, np.float32) for size in (DEPTH + 64, DEPTH * columns, 2 * columns))
        panel = np.zeros(1, PANEL)
        panel["vectors"], panel["weights"] = TARGET.tile_vectors, weights.ctypes.data
        keep += [x, weights, out, panel]
        record = records[share:share + 1]  # all rows lie on one another: pitch 0
        for field, value in (("a", x), ("rows", rows * TILES), ("depth", DEPTH), ("panels", 1), ("panel_table", panel),
                             ("bias", out[columns:]), ("out", out), ("chunk", rows * TILES), ("tiles", tile_table()),
                             ("tile_rows", rows)):
            record[field] = value.ctypes.data if isinstance(value, np.ndarray) else value
        steps[share] = (addresses()["matmul"], record.ctypes.data, share, share == threads - 1)
    operations = 2 * rows * columns * DEPTH * TILES * threads
    rates, end = [], time.perf_counter() + seconds
    while len(rates) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run(steps, threads)
        rates.append(operations / (time.perf_counter() - start) / 1e9)
    return max(rates)
