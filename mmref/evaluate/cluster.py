"""Batches on a Dask cluster (the extra `dask`). Dask starts a lost worker's batches again on another one."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice

from mmref.arguments import shown
from mmref.errors import MissingBackend, MmrefError
from mmref.evaluate.batch import NEVER_BEGAN, run_batch

__all__ = ["on_cluster"]

_AHEAD = 3  # batches sent per thread of the cluster: enough to keep it busy, few enough for a million pictures
CONNECT_SECONDS = 30
_ADDRESS = re.compile(r"inproc://[!-~]+|([a-z0-9+.-]+://)?[!-~]+:\d+(/[!-~]*)?")
_IGNORE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"  # the parent ends its cluster


def on_cluster(predictor, pictures, starts, scheduler: str) -> Iterator[dict]:
    """Yield the record of every batch, in the order of completion.

    scheduler  "tcp://host:8786", a scheduler file (*.json), or "local:N" for N processes on this machine
    Raises MissingBackend without Dask, MmrefError where no worker answers or batches keep killing their workers."""
    try:
        from distributed import Client, LocalCluster, as_completed
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise MissingBackend(f"scheduler needs Dask: pip install 'mmref[dask]' ({error})") from error
    token = uuid.uuid4().hex
    with ExitStack() as stack:
        if scheduler.startswith("local:"):
            count = _count(scheduler)
            _check_that_processes_begin()
            scheduler = stack.enter_context(LocalCluster(
                count, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=logging.CRITICAL,
                preload=[_IGNORE_CTRL_C]))
        client = stack.enter_context(_connect(Client, scheduler))

        def submit(start):
            # a key of its own for every batch and run: Dask must not take the answer of an earlier evaluation
            return client.submit(run_batch, predictor, pictures.batch(start, predictor.batch_size),
                                 key=f"mmref-eval-{token}-{start}", pure=False)

        coming, running, threads = iter(starts), as_completed(loop=client.loop), _Threads(client)
        try:
            while True:
                for start in islice(coming, max(0, _AHEAD * threads.count() - running.count())):
                    running.add(submit(start))
                if running.is_empty():
                    return
                for future in running.next_batch(block=True):
                    if future.cancelled():
                        raise _Lost
                    yield future.result()
        except KilledWorker as error:
            raise MmrefError("cluster workers keep dying on the same batch (out of memory?); try a smaller "
                             "--batch-size") from error
        except _Lost as error:
            raise MmrefError(f"scheduler {scheduler}: connection lost; with a journal (--resume) nothing is lost "
                             f"that was done") from error


class _Lost(Exception):
    """The scheduler is gone."""


class _Threads:
    """How many threads the cluster has; asked now and then, since workers come and go."""

    def __init__(self, client):
        self._client, self._count, self._asked = client, 1, float("-inf")

    def count(self) -> int:
        if time.monotonic() - self._asked > 1:
            try:
                self._count = max(1, sum(self._client.nthreads().values()))
            except OSError as error:
                raise _Lost from error
            self._asked = time.monotonic()
        return self._count


def _connect(client, scheduler):
    if isinstance(scheduler, str) and not (scheduler.endswith(".json") or _ADDRESS.fullmatch(scheduler)):
        # older releases of Dask wait a minute, and again when the client goes
        raise MmrefError(f"scheduler must be an address such as tcp://host:8786, a scheduler file (*.json) or local:N, "
                         f"got {shown(scheduler)}")
    try:
        if isinstance(scheduler, str) and scheduler.endswith(".json"):
            return client(scheduler_file=scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        return client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise MmrefError(f"scheduler {scheduler}: cannot connect: {' '.join(str(error).split())[:200]}") from error


def _check_that_processes_begin():
    """Raise MmrefError where a new process does not get as far as its work: Dask would wait for it, or restart it, for
    ever (seen with distributed 2024.8 to 2026.3)."""
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    try:
        process.start()
    except RuntimeError as error:  # this is such a process, importing the program that started it
        raise MmrefError(NEVER_BEGAN) from error
    process.join()
    if process.exitcode:
        raise MmrefError(NEVER_BEGAN)


def _count(scheduler):
    number = scheduler.removeprefix("local:")
    if not number.isdecimal() or not 1 <= int(number) <= 1024:
        raise MmrefError(f"scheduler must be local:N with N in 1..1024, got {scheduler!r}")
    return int(number)
