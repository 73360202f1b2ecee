"""Shared test settings: one hypothesis profile, and where the published model's figures lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

for folder in (Path(__file__).parents[1] / "weights" / "training", Path(__file__).parent):
    sys.path.insert(0, str(folder))
# PyTorch's small operations take forty times as long where its threads share cores with other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

OWN_GOLDEN = Path(__file__).parent / "golden"
SHARED_GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """The folder with the published model's figures; tests that need it are skipped where it is absent."""
    if not SHARED_GOLDEN.is_dir():
        pytest.skip(f"published golden figures not at {SHARED_GOLDEN}")
    return SHARED_GOLDEN


@pytest.fixture(scope="session")
def own_golden() -> Path:
    """The few of those figures that stand in the repository, for whoever has nothing else."""
    return OWN_GOLDEN
