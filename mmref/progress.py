"""One kind of progress bar for everything that takes a while."""

from __future__ import annotations

import sys
from functools import cache

from mmref.locks import Lock


@cache
def _bar():
    from tqdm import tqdm

    class Bar(tqdm):
        """tqdm with a lock of its own, which a forked child finds open, and no thread that watches it."""

        monitor_interval = 0

    Bar.set_lock(Lock())
    return Bar


def progress(total: int | None, unit: str, text: str | None = None, wanted: bool | None = None, leave: bool = False,
             **options):
    """A tqdm bar on stderr; a context manager with `update(n)`.

    total   how many units there will be, None where nobody knows
    text    in front of the bar
    wanted  True, False, or None for a terminal only
    leave   whether the last state stays on the screen

    `options` are tqdm's."""
    return _bar()(total=total, unit=unit, desc=text, disable=None if wanted is None else not wanted, leave=leave,
                  file=sys.stderr, **options)
