"""Forked processes: no lock of mmref hangs a child, whatever the parent's other threads were doing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import mmref.kernels
import mmref.weights
from mmref.locks import Lock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

UNDER_LOAD = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore")  # Python 3.12 and later warn of forking beside threads
import numpy as np
from PIL import Image
from mmref.tasks.predictor import Predictor

backend, forks = sys.argv[1], int(sys.argv[2])
picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
predict = Predictor(backend=backend, threads=1 if backend == "numba" else None, img_size=64)
if sys.argv[3] == "loaded":
    expected = predict([picture])
started, stop = threading.Event(), threading.Event()

def load():
    while not stop.is_set():
        started.set()
        Predictor(backend=backend, threads=predict.threads, img_size=64, workers=1)([picture] * 3)

threads = [threading.Thread(target=load) for _ in range(3)]
for thread in threads:
    thread.start()
started.wait()
children = []
for _ in range(forks):
    child = os.fork()
    if not child:
        signal.alarm(250)  # a child that hangs is killed
        answers = predict([picture])
        os._exit(0 if not answers[0].error and (sys.argv[3] != "loaded" or answers == expected) else 1)
    children.append(os.waitpid(child, 0)[1])
stop.set()
for thread in threads:
    thread.join()
print(children)
"""


@pytest.mark.parametrize("backend, forks, state", [("numpy", 12, "loaded"), ("numba", 12, "loaded"),
                                                   ("numpy", 2, "loading"), ("numba", 2, "loading")])
def test_fork_while_other_threads_predict(backend, forks, state):
    """Catches: a lock that another thread held when the process was forked. Five children of six hung at one in the
    predictor; forks while the weights are being loaded, or kernels linked, are tried too."""
    done = subprocess.run([sys.executable, "-c", UNDER_LOAD, backend, str(forks), state], capture_output=True,
                          text=True, check=False, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert done.stdout == f"{[0] * forks}\n", done.stdout + done.stderr


def forked(work) -> int:
    """The wait status of a child that runs `work`, killed where it hangs."""
    import signal
    child = os.fork()
    if not child:
        signal.alarm(100)
        os._exit(0 if work() else 1)
    return os.waitpid(child, 0)[1]


def held_elsewhere(lock):
    """A thread that holds the lock until the event it returns is set."""
    has, let_go = threading.Event(), threading.Event()

    def hold():
        with lock:
            has.set()
            let_go.wait()

    threading.Thread(target=hold).start()
    has.wait()
    return let_go


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_locks_in_a_child():
    """Catches: a lock that stays locked in the child, is open there although the forking thread holds it, or is lost to
    the parent."""
    lock, other = Lock(), Lock()
    let_go = held_elsewhere(lock)

    def child():
        with lock:
            other.release()  # the thread that forked holds it here, too
            return True

    with other:
        assert forked(child) == 0
    assert not lock.acquire(blocking=False)  # the parent's other thread still has it
    let_go.set()
    assert lock.acquire(timeout=20)
    lock.release()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_waits_for_work_that_cannot_be_copied():
    """Catches: a child with half a compiler; a deadlock between two such locks that others nest the other way round."""
    first, second, finished = Lock(blocks_fork=True), Lock(blocks_fork=True), []
    started = threading.Event()

    def work():
        for a, b in ((first, second), (second, first)) * 20:
            with a:
                started.set()
                with b:
                    time.sleep(0.001)
        finished.append(True)

    thread = threading.Thread(target=work)
    with first:
        thread.start()
    started.wait()

    def child():
        return first.acquire(blocking=False) and second.acquire(blocking=False)

    assert [forked(child) for _ in range(10)] == [0] * 10
    thread.join()
    assert finished and first.acquire(blocking=False) and second.acquire(blocking=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_waits_for_locks_made_meanwhile():
    """Catches: a fork that waits only for the locks there were when it began: loading a model imports the compiler,
    whose lock is new, and the child found a module half imported (tried: it hung)."""
    outer, started = Lock(blocks_fork=True), threading.Event()
    inner = []

    def work():
        with outer:
            started.set()
            time.sleep(0.05)
            inner.append(Lock(blocks_fork=True))
            inner[0].acquire()
        time.sleep(0.05)
        inner[0].release()

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    assert forked(lambda: inner[0].acquire(blocking=False)) == 0
    thread.join()


def test_no_other_locks():
    """Catches: a new lock somewhere in the package that a fork would leave locked."""
    folders = {Path(package.__file__).parent for package in (mmref, mmref.kernels, mmref.weights)}
    found = [path for folder in folders for path in folder.rglob("*.py")
             if "bench" not in path.parts and path.name != "locks.py"
             and re.search(r"threading\.(R?Lock|Condition|Semaphore)\(", path.read_text("utf-8"))]
    assert folders and not found
