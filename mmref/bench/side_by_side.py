"""Several networks beside each other: pictures a second in the same rounds, and what each has to do for them.

A ratio of two networks' speeds mixes three things: what they compute, on how large a picture, and how good the kernels
are. So each network runs at its own size and, where that is another, at the last one's, too; all of them on the same
kernels, once on mmref's and once on PyTorch's; and beside it stands the work of a picture, counted from the graph.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from mmref.bench.process import WorkerFailed
from mmref.tables import table

BACKENDS = ("numba", "torch-eager")

COUNTED = """\
Counted from the graph, one picture: MMAC, million multiply-adds of convolutions and linear layers; scan, million state
updates, each an exponential and two multiply-adds; steps, that wait for each other; MB, what moves at least."""
FOOTNOTE = f"""\
pictures/s: batch over the median of the rounds. times: pictures a second over those of the last row's on the same
backend, median and quartiles of the rounds. GMAC/s: multiply-adds times pictures a second: how good the kernels are.
{COUNTED}"""


@dataclass
class Row:
    """A network at a size. `rounds`: {backend: seconds a batch, one value a round}."""

    model: str
    img_size: int
    macs: int
    state_updates: int
    steps: int
    bytes: int
    rounds: dict[str, list[float]] = field(default_factory=dict)


WORK_TITLES = ("pixels", "MMAC", "scan", "steps", "MB")


def work_cells(img_size: int, macs: int, state_updates: int, steps: int, bytes: int) -> list[str]:
    """What stands below WORK_TITLES; the arguments are those of a Row and of `mmref.graph.work.Work`."""
    return [str(img_size), f"{macs / 1e6:,.0f}", f"{state_updates / 1e6:,.2f}", f"{steps:,}", f"{bytes / 1e6:,.0f}"]


@dataclass
class SideBySide:
    """Rows of one batch size; the last is what the others are compared with."""

    batch: int
    rows: list[Row] = field(default_factory=list)


def shapes_of(models, own_size, img_size=None) -> list[tuple[str, int]]:
    """(model, side) of the rows: each at its own size (or `img_size`, if given) and at the last one's."""
    last = img_size or own_size(models[-1])
    rows = [(model, side) for model in models for side in dict.fromkeys((img_size or own_size(model), last))]
    return list(dict.fromkeys(rows))


def row_of(model: str, side: int) -> Row:
    from mmref.graph.work import work
    from mmref.models.create import create_model
    found = work(create_model(model), side)
    return Row(model, side, found.macs, found.state_updates, found.steps, found.bytes)


def measure_side_by_side(plan, report, models, names, write_inputs, open_worker, own_size, progress, rest) -> None:
    """Append a SideBySide for every batch size to the report. The functions are those of measure.py."""
    names = [name for name in names if name in BACKENDS] or names[:1]
    with tempfile.TemporaryDirectory(prefix="mmref-bench-") as scratch:
        jobs = {}
        for model in models:
            folder = os.path.join(scratch, model)
            os.mkdir(folder)
            jobs[model] = write_inputs(model, names, report.threads, folder)
        for batch in plan.batches:
            rows = [row_of(*shape) for shape in shapes_of(models, own_size, plan.img_size)]
            with ExitStack() as stack:
                turns = []                                                  # (row, backend, worker, forwards a turn)
                for row in rows:
                    for name in names:
                        worker = open_worker(stack, report, replace(jobs[row.model], backend=name), plan)
                        turns += _prepared(plan, report, row, name, worker, batch)
                for step in range(plan.rounds):
                    progress(f"side by side, batch {batch}", step, plan.rounds)
                    shift = step % max(len(turns), 1)
                    for row, name, worker, count in turns[shift:] + turns[:shift]:
                        time.sleep(rest)
                        seconds = worker.ask("run", count=count, cpu=plan.cpu_time)["seconds"]
                        row.rounds.setdefault(name, []).append(float(np.median(seconds)))
            report.side_by_side.append(SideBySide(batch, rows))


def _prepared(plan, report, row, name, worker, batch):
    if worker is None:
        return []
    try:
        worker.ask("prepare", shape=(batch, 3, row.img_size, row.img_size))
        worker.ask("run", count=1)
        once = worker.ask("run", count=1, cpu=plan.cpu_time)["seconds"][0]
    except WorkerFailed as failure:
        report.left_out[f"{name}, {row.model}, batch {batch}, {row.img_size}x{row.img_size}"] = str(failure)
        return []
    return [(row, name, worker, min(max(math.ceil(plan.turn / max(once, 1e-6)), 1), 200))]


def times_the_last(rows: list[Row], row: Row, backend: str) -> np.ndarray | None:
    """Quartiles of a row's speed over the last row's, round by round; None where one of them did not run."""
    mine, last = row.rounds.get(backend), rows[-1].rounds.get(backend)
    return np.quantile(np.divide(last, mine), (0.25, 0.5, 0.75)) if mine and last else None


def to_text(found: list[SideBySide], threads: int) -> str:
    """A table for each batch size."""
    parts = []
    for one in found:
        backends = list(dict.fromkeys(name for row in one.rows for name in row.rounds))
        titles = ["model", *WORK_TITLES]
        titles += [title for name in backends for title in (f"{name}: pictures/s", "GMAC/s", "times", "quartiles")]
        lines = []
        for row in one.rows:
            cells = [row.model, *work_cells(row.img_size, row.macs, row.state_updates, row.steps, row.bytes)]
            for name in backends:
                cells += _cells(one, row, name)
            lines.append(cells)
        rounds = max((len(seconds) for row in one.rows for seconds in row.rounds.values()), default=0)
        parts.append(f"Networks side by side, batch {one.batch}, {threads} threads, float32, {rounds} rounds\n"
                     + table(lines, titles))
    return "\n\n".join([*parts, FOOTNOTE])


def _cells(one, row, name):
    seconds, ratio = row.rounds.get(name), times_the_last(one.rows, row, name)
    if not seconds:
        return ["", "", "", ""]
    rate = one.batch / float(np.median(seconds))
    shown = ("", "") if ratio is None else (f"{ratio[1]:.2f}", f"{ratio[0]:.2f}-{ratio[2]:.2f}")
    return [f"{rate:.1f}", f"{rate * row.macs / 1e9:.1f}", *shown]
