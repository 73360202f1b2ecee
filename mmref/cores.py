"""How many processors there are to work on."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Logical processors that this process may run on: fewer than the machine has in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
