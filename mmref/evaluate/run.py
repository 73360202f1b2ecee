"""Who computes which batch: this process, several, or a cluster; one loop writes the answers down."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict

from mmref.arguments import check_callable, check_integer, check_kind, check_path, shown
from mmref.cores import usable_cores
from mmref.errors import MmrefError, ValueProblem
from mmref.evaluate.batch import NEVER_BEGAN, run_batch
from mmref.evaluate.journal import Journal
from mmref.evaluate.tally import Progress
from mmref.tasks.task import Task

__all__ = ["evaluate"]

_THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def evaluate(predictor: Task, pictures, *, processes: int = 1, scheduler: str | None = None, resume=None,
             progress: Callable[[Progress, int], None] | None = None) -> Progress:
    """Let a task answer every picture; returns the answers, or what was counted in them.

    predictor  a `Predictor` with a `PictureSet`, a `Segmenter` with a `LabelledSet`
    processes  1 computes here (with predictor.workers threads that decode ahead); more starts that many
    scheduler  address of a Dask scheduler, or "local:N" for a cluster of N processes on this machine; instead of
               processes
    resume     journal file: written from the start, read where it exists already
    progress   called as progress(tally, pictures that are new) after every batch

    Every batch is cut from the list in the same place, so the figures do not depend on any of these, nor on kills and
    resumes. A process or cluster worker that dies costs its running batches, which are computed again.
    Raises MmrefError for what makes the whole evaluation impossible; bad pictures are in `Tally.errors`.
    """
    check_kind("predictor", predictor, Task, "a Predictor or another task")
    if not callable(getattr(pictures, "tally", None)):
        raise ValueProblem(f"pictures must be a PictureSet, what read_folder gives, got {shown(pictures)}")
    processes = check_integer("processes", processes, 1)
    if scheduler is not None:
        check_kind("scheduler", scheduler, str, 'an address, "local:N" or None')
    resume = None if resume is None else check_path("resume", resume)
    if progress is not None:
        check_callable("progress", progress, "a function (tally, pictures that are new) or None")
    if scheduler is not None and processes > 1:
        raise ValueProblem("processes and scheduler cannot be used together: pass one of them")
    loaded = predictor.load()
    tally = pictures.tally(predictor, loaded.labels)
    with ExitStack() as stack:
        journal = None
        if resume is not None:
            journal = stack.enter_context(Journal(resume, _subject(predictor, loaded, pictures), tally.add))
        if progress is not None:
            progress(tally, int(tally.done.sum()))
        size = predictor.batch_size
        starts = [start for start in range(0, len(pictures), size) if not tally.done[start:start + size].all()]
        if scheduler is not None:
            from mmref.evaluate.cluster import on_cluster  # imports Dask
            records = on_cluster(predictor, pictures, starts, scheduler)
        elif processes > 1:
            records = _in_processes(predictor, pictures, starts, processes)
        else:
            records = _here(predictor, pictures, starts)
        for answers in stack.enter_context(closing(records)):  # closing ends pools and clusters now, not sometime
            if journal is not None:
                journal.append(answers)
            new = tally.add(answers)
            if progress is not None:
                progress(tally, new)
    if not tally.done.all():
        raise MmrefError(f"{int((~tally.done).sum())} pictures were never answered")  # no executor may lose a batch
    return tally


def _subject(predictor, loaded, pictures):
    """All that the figures depend on, as plain values."""
    from mmref import __version__
    model = predictor.model if isinstance(predictor.model, str) else loaded.model.config.name
    transform = {f"transform {key}": list(value) if isinstance(value, tuple) else value
                 for key, value in asdict(loaded.transform).items()}
    return {"journal": "mmref eval 1", "mmref": __version__, "model": model, "backend": predictor.backend,
            "weights sha256": predictor.expected_sha256, "prefer": predictor.prefer,
            **predictor.settings(), **transform, "pictures": len(pictures), "list sha256": pictures.digest()}


def _here(predictor, pictures, starts) -> Iterator[dict]:
    batches = [pictures.batch(start, predictor.batch_size) for start in starts]
    for batch, answers in zip(batches, predictor.map_batches(batch.files() for batch in batches), strict=True):
        yield batch.record(answers)


# -- processes -----------------------------------------------------------------------------------------------

class _NeverBegan(BrokenProcessPool):
    """No process of a pool got as far as its own work."""


def _in_processes(predictor, pictures, starts, processes) -> Iterator[dict]:
    """Spawned, not forked: a child of a process with threads may find locked what no thread will unlock. A pool that
    breaks because a process died is replaced, as long as each pool gets something done."""
    left = dict.fromkeys(starts)
    while left:
        before = len(left)
        try:
            for answers in _one_pool(predictor, pictures, list(left), processes):
                del left[answers["start"]]
                yield answers
        except BrokenProcessPool as error:
            if isinstance(error, _NeverBegan) and before == len(starts):
                raise MmrefError(NEVER_BEGAN) from error
            if len(left) == before:
                raise MmrefError("worker processes keep dying (out of memory?) before they finish a batch; "
                                 "try a smaller --batch-size or fewer --processes") from error


def _one_pool(predictor, pictures, starts, processes):
    threads = max(1, usable_cores() // processes)
    context = multiprocessing.get_context("spawn")
    with _environment(threads), ProcessPoolExecutor(processes, context, _start_worker) as pool:
        coming, running = iter(starts), set()
        began = pool.submit(os.getpid)  # the first thing any process does
        try:
            while True:
                while len(running) < 2 * processes and (start := next(coming, None)) is not None:
                    batch = pictures.batch(start, predictor.batch_size)
                    running.add(pool.submit(run_batch, predictor, batch))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            if began.done() and began.exception() is None:
                raise
            raise _NeverBegan from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _environment(threads):
    """Settings that the libraries in new processes read once, at import, so that they share the cores."""
    before = {name: os.environ.get(name) for name in _THREAD_SETTINGS}
    os.environ.update({name: str(threads) for name in _THREAD_SETTINGS if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _start_worker():
    import signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends the pool
    parent = multiprocessing.parent_process()

    def follow():  # a pool's processes wait for work for ever, even after a kill -9 of the parent
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
