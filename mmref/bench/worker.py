"""The process one contestant runs in: `python -m mmref.bench.worker`, a line of JSON in, a line of JSON out.

    {"do": "open", "job": {...}}           import, then build       -> {"import": s, "build": s}
    {"do": "prepare", "shape": [...]}      and answer once          -> {"first": s, "logits": [...]}
    {"do": "run", "count": n,              n forwards after one; `cpu`: the process's processor seconds, not the clock's
     "cpu": false}                                                  -> {"seconds": [...]}
    {"do": "rate"}                         calibration only         -> {"rate": multiply-adds a second, "method": ...,
                                                                        "is_peak": whether nothing can be faster}
    {"do": "memory"}                       peak so far              -> {"bytes": ...}

A failure is answered too: {"error": "..."}. The process ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from mmref.bench.backends import BACKENDS, Calibration, Job
from mmref.nested import arrays_of

if TYPE_CHECKING:  # NumPy is first imported by the contestants, whose import is timed
    import numpy as np


MOST_SHOWN = 65_536  # logits that an answer holds, evenly spread: those of a large map would be a gigabyte of text


def test_input(shape) -> np.ndarray:
    """The pictures everyone gets: standard normal float32, the same for the same shape."""
    import numpy as np
    return np.random.default_rng(0).standard_normal(shape, np.float32)


class Worker:
    """Keeps one contestant and the shape it is prepared for."""

    def open(self, job):
        job = Job(**job)
        kind = Calibration if job.backend == "calibration" else BACKENDS[job.backend]
        start = time.perf_counter()
        kind.load()
        loaded = time.perf_counter()
        self.contestant = kind(job)
        return {"import": loaded - start, "build": time.perf_counter() - loaded}

    def prepare(self, shape):
        x = test_input(shape)
        start = time.perf_counter()
        run = self.contestant.prepare(tuple(shape))
        results = run(x)
        self.forward = lambda: run(x)
        seconds = time.perf_counter() - start
        results = arrays_of(results)
        most, shown = MOST_SHOWN // len(results), []
        for logits in results:  # no copy of them all: memory is measured, too
            shown += logits.flat[::-(-logits.size // most) or 1].astype("float64").tolist()
        return {"first": seconds, "logits": shown}

    def run(self, count, cpu=False):
        self.forward()  # wakes threads and fills caches after the others' turns
        seconds, clock = [], time.process_time if cpu else time.perf_counter
        for _ in range(count):
            start = clock()
            self.forward()
            seconds.append(clock() - start)
        return {"seconds": seconds}

    def rate(self):
        return {"rate": self.contestant.rate(), "method": self.contestant.method, "is_peak": self.contestant.is_peak}

    def memory(self):
        return {"bytes": peak_memory()}


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes.

    Linux's own figure where there is one: `getrusage` there begins with that of the process that started this one.
    """
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
    except OSError:
        pass
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main():
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not look like a reply
    worker = Worker()
    for line in sys.stdin:
        order = json.loads(line)
        try:
            with redirect_stdout(sys.stderr):
                reply = getattr(worker, order.pop("do"))(**order)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()
