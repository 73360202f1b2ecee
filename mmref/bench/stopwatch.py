"""Run a command, print its seconds and peak memory: `python -m mmref.bench.stopwatch COMMAND ...`.

A process of its own, and a small one: Linux counts as the peak of a new process at least what its parent held.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time


def main():
    start = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
    if hasattr(os, "wait4"):
        _, status, usage = os.wait4(process.pid, 0)
        code, peak = os.waitstatus_to_exitcode(status), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    else:
        code, peak = process.wait(), 0  # Windows: not known
    print(json.dumps({"seconds": time.perf_counter() - start, "bytes": peak}))
    return code


if __name__ == "__main__":
    sys.exit(main())
