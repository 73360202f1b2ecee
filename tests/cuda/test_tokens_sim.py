"""The CUDA kernels of LocalVim and EfficientVMamba without a GPU: in Numba's simulator."""

from __future__ import annotations

import pytest
from simulator import run_in_simulator

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "mmref[test-cuda]"')


def test_kernels_and_networks():
    """Every kernel against the reference, and small networks of both families (sim_tokens.py)."""
    run_in_simulator("sim_tokens.py")
