"""The parent's end of a worker process (worker.py)."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict

from mmref.bench.backends import Job
from mmref.errors import MmrefError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
                    "NUMBA_NUM_THREADS")
CACHE_VARIABLES = ("MMREF_CACHE_DIR", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


class WorkerFailed(MmrefError):
    """A contestant that could not be started, gave an error or no answer in time; the message is for people."""


class WorkerProcess:
    """A worker that has been told its job. `seconds_to_open` counts from the start of the process.

    cache: folder for whatever it compiles (an empty one makes a cold start), None for the user's own.
    limit: seconds it may take for one answer.
    """

    def __init__(self, job: Job, cache: str | None = None, limit: float = 600):
        self.job, self.opened, self.limit, self._replies = job, None, limit, queue.Queue()
        environment = os.environ | {name: str(job.threads) for name in THREAD_VARIABLES}
        if cache is not None:
            environment |= {name: os.path.join(cache, name.lower()) for name in CACHE_VARIABLES}
        self._stderr = tempfile.TemporaryFile("w+")
        self.started = time.perf_counter()
        self._process = subprocess.Popen([sys.executable, "-m", "mmref.bench.worker"], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=self._stderr, text=True, bufsize=1,
                                         env=environment)
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.opened = self.ask("open", job=asdict(job))
        except BaseException:
            self.close()
            raise

    def ask(self, what: str, **arguments) -> dict:
        """Send an order and wait for its answer; WorkerFailed for an error or none."""
        try:
            print(json.dumps({"do": what, **arguments}), file=self._process.stdin, flush=True)
            line = self._replies.get(timeout=self.limit)
        except queue.Empty:
            raise WorkerFailed(f"no answer within {self.limit:g} s") from None
        except OSError:  # the pipe's other end is gone
            line = None
        if line is None:
            raise WorkerFailed(f"the process ended: {self._last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerFailed(reply["error"])
        return reply

    def close(self) -> None:
        """End the process, by force if it does not end by itself within two seconds."""
        try:
            self._process.stdin.close()
            self._process.wait(2)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def _listen(self):
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put(None)

    def _last_words(self):
        self._stderr.seek(0)
        lines = self._stderr.read().split("\n")
        return next((line for line in reversed(lines) if line.strip()), "without a word")[:300]
