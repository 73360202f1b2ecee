"""The engine without a GPU: what can be seen in Numba's simulator, and what is said where there is no device."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from simulator import run_in_simulator

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "mmref[test-cuda]"')


def test_lowering():
    """Every launch of every variant gets the right arguments, NumPy twins in the kernels' place (sim_lowering.py)."""
    run_in_simulator("sim_lowering.py")


def test_network():
    """Our kernels together are the network, whatever the batch, the same from run to run (sim_network.py)."""
    run_in_simulator("sim_network.py")


def mmref(*arguments, **environment):
    """The command in a process that finds no device."""
    return subprocess.run([sys.executable, "-m", "mmref", *arguments], capture_output=True, text=True,
                          env=os.environ | {"CUDA_VISIBLE_DEVICES": "", **environment})


def test_without_a_gpu():
    """Catches a traceback, a fall-back to another backend, and an error without a remedy."""
    done = mmref("classify", "--sample", "cat", "--backend", "cuda")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("mmref: error: backend 'cuda' needs an NVIDIA GPU") and done.stderr.count("\n") == 1
    info = mmref("info", "mobilemamba_nano")
    line = next(line for line in info.stdout.splitlines() if line.startswith("backend cuda"))
    assert info.returncode == 0 and "missing" in line
    line = mmref("info", "mobilemamba_nano", NUMBA_ENABLE_CUDASIM="1").stdout.splitlines()[-1]
    assert line.startswith("backend cuda: no GPU: Numba's simulator")


def test_without_the_package():
    """Catches an import error where numba-cuda is not installed; other backends must not notice."""
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba_cuda" else find(name, *rest)
import mmref, mmref.cli
from mmref.errors import MissingBackend
mmref.create_model("mobilemamba_nano", backend="numba")
assert not any(name.startswith(("numba.cuda", "numba_cuda", "cupy")) for name in sys.modules), "loaded unasked"
try:
    mmref.create_model("mobilemamba_nano", backend="cuda")
except MissingBackend as error:
    assert 'pip install "mmref[cuda]"' in str(error), error
else:
    raise AssertionError("no error")
mmref.cli.main(["info", "mobilemamba_nano"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "backend cuda: missing: backend 'cuda' needs the package numba-cuda" in done.stdout
