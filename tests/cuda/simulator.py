"""Run a file of tests in Numba's simulator, which is switched on before Numba is imported: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_in_simulator(name: str, *arguments: str) -> None:
    """pytest on a file of this folder (`sim_*.py`, not collected otherwise); AssertionError with its output."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "--durations=3", "-p", "no:cacheprovider",
                           str(Path(__file__).parent / name), *arguments],
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
