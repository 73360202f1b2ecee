"""The CUDA kernels without a GPU: in Numba's simulator, and what is said where there is no device or no package."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from simulator import run_in_simulator

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "mmref[test-cuda]"')

CALL = """
import numpy as np
from mmref.nn.functional import depthwise_conv2d
from mmref.nn.recurrence import selective_scan
ones = np.ones((1, 1, 2, 3), np.float32)
try:
    {call}
except ImportError as error:
    print(type(error).__name__, error)
"""
CALLS = ("depthwise_conv2d(np.ones((1, 2, 3, 3), np.float32), np.ones((2, 1, 1, 1), np.float32), backend='cuda')",
         "selective_scan(ones, ones, np.ones((1, 2, 1), np.float32), ones[:, :, :1], ones[:, :, :1], "
         "np.ones((1, 2), np.float32), backend='cuda')")


def test_kernels():
    """Every kernel and both operations against the reference (sim_kernels.py)."""
    run_in_simulator("sim_kernels.py")


@pytest.mark.parametrize("call", CALLS)
def test_operations_without_a_gpu(call):
    """Catches a silent fall-back to the CPU, and an error of the driver's instead of ours."""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"} | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", CALL.format(call=call)], capture_output=True, text=True,
                          env=environment)
    assert done.stdout.startswith("MissingBackend backend 'cuda' needs an NVIDIA GPU"), done.stdout + done.stderr


@pytest.mark.parametrize("call", CALLS)
def test_operations_without_the_package(call):
    """Catches an error that does not say what to install, and the use of the unmaintained copy inside numba."""
    hide = ("import importlib.util\nfind = importlib.util.find_spec\nimportlib.util.find_spec = "
            "lambda name, *rest: None if name == 'numba_cuda' else find(name, *rest)\n")
    done = subprocess.run([sys.executable, "-c", hide + CALL.format(call=call)], capture_output=True, text=True)
    assert done.stdout.startswith("MissingBackend") and 'pip install "mmref[cuda]"' in done.stdout, done.stdout
