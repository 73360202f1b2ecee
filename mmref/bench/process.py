"""The parent's end of a worker process (worker.py, gpu_worker.py)."""

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


class Process:
    """A process that says what it finds, a line of JSON a message, and ends with the block. What it writes to stderr is
    kept for its last words."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None):
        self._replies, self._stderr = queue.Queue(), tempfile.TemporaryFile("w+")
        self.started = time.perf_counter()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
                                         text=True, bufsize=1, env=environment)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put(None)

    def say(self, message: dict) -> None:
        """OSError where nobody listens any more."""
        print(json.dumps(message), file=self._process.stdin, flush=True)

    def next_message(self, seconds: float) -> dict | None:
        """What it says next, None where it has ended; TimeoutError where it says nothing for so long."""
        try:
            line = self._replies.get(timeout=max(seconds, 0))
        except queue.Empty:
            raise TimeoutError from None
        return None if line is None else json.loads(line)

    def last_words(self) -> str:
        """The last line it wrote to stderr."""
        self._stderr.seek(0)
        lines = [line for line in self._stderr.read().splitlines() if line.strip()]
        return " ".join(lines[-1].split())[:300] if lines else "without a word"

    def close(self, patience: float = 2) -> None:
        """End the process, by force if it does not end by itself within so many seconds."""
        try:
            self._process.stdin.close()
            self._process.wait(patience)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close(patience=0)


class WorkerProcess(Process):
    """A contestant's process (worker.py) that has been told its job; `opened` is what it answered.

    cache: folder for whatever it compiles (an empty one makes a cold start), None for the user's own.
    limit: seconds it may take for one answer.
    """

    def __init__(self, job: Job, cache: str | None = None, limit: float = 600):
        self.job, self.opened, self.limit = job, None, limit
        environment = os.environ | {name: str(job.threads) for name in THREAD_VARIABLES}
        if cache is not None:
            environment |= {name: os.path.join(cache, name.lower()) for name in CACHE_VARIABLES}
        super().__init__([sys.executable, "-m", "mmref.bench.worker"], environment)
        try:
            self.opened = self.ask("open", job=asdict(job))
        except BaseException:
            self.close()
            raise

    def ask(self, what: str, **arguments) -> dict:
        """Send an order and wait for its answer; WorkerFailed for an error or none."""
        try:
            self.say({"do": what, **arguments})
            reply = self.next_message(self.limit)
        except TimeoutError:
            raise WorkerFailed(f"no answer within {self.limit:g} s") from None
        except OSError:  # the pipe's other end is gone
            reply = None
        if reply is None:
            raise WorkerFailed(f"the process ended: {self.last_words()}")
        if "error" in reply:
            raise WorkerFailed(reply["error"])
        return reply
