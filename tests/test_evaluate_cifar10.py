"""CIFAR-10's 10,000 test pictures through `mmref eval` in four ways; minutes long, so only when asked for:

    MMREF_CIFAR10=cifar10/test python -m pytest -s tests/test_evaluate_cifar10.py

MMREF_CIFAR10_FLAGS adds flags, e.g. "--limit 500" or "--backend numba".
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

FOLDER = os.environ.get("MMREF_CIFAR10")


@pytest.mark.skipif(not FOLDER or os.name != "posix", reason="MMREF_CIFAR10 names no folder with the test pictures")
def test_four_ways_to_one_figure(tmp_path):
    """Catches: a figure that depends on processes, cluster, kill and resume. The results must be equal to the byte."""
    pytest.importorskip("distributed")
    flags = shlex.split(os.environ.get("MMREF_CIFAR10_FLAGS", ""))
    ways = {"1 process": ["--workers", "1"], "2 processes": ["--processes", "2"], "Dask": ["--scheduler", "local:2"],
            "killed and resumed": ["--processes", "2", "--resume", str(tmp_path / "journal")]}
    seen = {}
    for way, more in ways.items():
        file = tmp_path / f"{way}.json"
        command = [sys.executable, "-m", "mmref", "eval", FOLDER, "--results-file", str(file), "--progress",
                   *more, *flags]
        if "--resume" in more:
            kill_halfway(command, tmp_path / "journal", json.loads(seen["Dask"])["pictures"])
        start = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seen[way] = file.read_bytes()
        results = json.loads(seen[way])
        print(f"{way}: {results['correct_top1']} of {results['answered']} right, {results['correct_top5']} among five, "
              f"{time.monotonic() - start:.0f} s")
    assert len(set(seen.values())) == 1


def kill_halfway(command, journal, pictures):
    """kill -9 when about half of the pictures are in the journal."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not journal.exists() or journal.read_bytes().count(b"\n") < pictures // 32 // 2 + 1:
        assert child.poll() is None, "ended before it could be killed"
        time.sleep(0.1)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    batches = journal.read_bytes().count(b"\n") - 1
    print(f"killed after {32 * batches} pictures")
