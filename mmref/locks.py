"""Locks that a forked process finds usable.

`os.fork` copies the memory of a process but only the thread that calls it. A lock that another thread held at that
moment is locked in the child forever: whoever asks for it there hangs. All locks of mmref are therefore of the class
`Lock`: in a forked child those held by threads that did not come along are open again. What such a lock protects must
withstand that: here these are stores filled by one assignment, and buffers that every forward writes anew.

A compiler or an import stopped half-way does not withstand it. A lock with `blocks_fork` makes `os.fork` wait until it
is free. The thread that forks may hold any of these locks itself, and still holds them in the child.
"""

from __future__ import annotations

import os
import threading
import weakref

__all__ = ["Lock"]

_all = weakref.WeakSet()
_of_this_fork = threading.local()


class Lock:
    """A context manager: one thread at a time, which may enter again.

    blocks_fork  os.fork waits for it: for seconds at most, and what cannot be copied half done"""

    def __init__(self, blocks_fork: bool = False):
        self.blocks_fork = blocks_fork
        self._lock = threading.RLock()
        _all.add(self)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As that of threading.RLock."""
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        """As that of threading.RLock."""
        self._lock.release()

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, *_):
        self.release()


def _before_fork():
    """Hold every lock that blocks forks. Waits for one while holding none: other threads nest them in any order."""
    held = []
    while missing := [lock for lock in list(_all) if lock.blocks_fork and lock not in held]:  # there may be new ones
        if missing[0].acquire(blocking=False):
            held.append(missing[0])
            continue
        _release(held)
        with missing[0]:
            pass
    _of_this_fork.held = held


def _in_parent():
    _release(_of_this_fork.held)


def _in_child():
    _release(_of_this_fork.held)
    for lock in list(_all):
        if lock.acquire(blocking=False):  # open, or held by the thread that came along
            lock.release()
        else:
            lock._lock = threading.RLock()


def _release(held):
    while held:
        held.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
