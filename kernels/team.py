"""Threads that work on one forward together: how they meet, wait for each other, and cannot deadlock.

A parallel region of Numba costs 2 us (OpenMP) to 100 us (workqueue), a forward has 100 operations: so the region is
entered once, and between operations the threads meet at a spin barrier (0.05 to 0.2 us).

A barrier hangs when fewer threads run than it waits for, and nobody promises how many Numba starts, or when: with
`workqueue`, a busy machine, or more threads than cores, two shares of the region may run one after the other on one
thread. So work is planned in *shares*, and run by a *team* of whoever comes in time:

    join     The first to come leads. It waits for the others for a while (MEET_SPINS), then closes the team. Who comes
             later is told so and goes home.
    work     Member m of a team of t runs shares m, m + t, m + 2t, ... of every operation. With a full team that is one
             share each; a smaller team does the rest as well, with the same result to the last bit.
    barrier  Counts members of the closed team, all of which are running: the wait ends.

Waiting threads spin, for the next operation is some microseconds away; after SPINS_BEFORE_YIELD turns they offer their
core to whoever they wait for, who may need it (two threads on one core, after a pause).
"""

from __future__ import annotations

import sys

from llvmlite import ir
from numba import njit, types
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from mmref.kernels.target import TARGET
from mmref.kernels.vector import INT64, call, operation

SPINS_BEFORE_YIELD = 400
MEET_SPINS = 20_000
CLOSED = 1 << 32            # flag in the first state word, above the count of arrivals
STATE_WORDS = 16            # int64: word 0 arrivals and flag, word 8 barrier count (another cache line)
BARRIER_OFFSET = 64

if sys.platform == "win32":
    yield_core = types.ExternalFunction("SwitchToThread", types.int32())
else:
    yield_core = types.ExternalFunction("sched_yield", types.int32())


def _atomic(builder, address):
    return builder.inttoptr(address, INT64.as_pointer())


@operation(types.int64, types.int64, types.int64)
def atomic_add(builder, address, amount):
    """Add to the word; returns what it was."""
    return builder.atomic_rmw("add", _atomic(builder, address), amount, "seq_cst")


@operation(types.int64, types.int64)
def atomic_read(builder, address):
    return builder.load_atomic(_atomic(builder, address), "acquire", 8)


@intrinsic
def compare_and_swap(_context, address, expected, new):
    """Write `new` if the word is `expected`; returns what it was."""
    def generate(context, builder, _signature, values):
        pair = builder.cmpxchg(_atomic(builder, values[0]), values[1], values[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 0)
    return signature(types.int64, types.int64, types.int64, types.int64), generate


@operation(types.void)
def relax(builder):
    """Tell the core that this is a spin loop: x86's `pause`; nothing elsewhere."""
    if TARGET.is_x86:
        call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])


@njit
def join(state, shares):
    """(member, team size) of this thread; (-1, 0) where the team has closed. `state` is STATE_WORDS zeros at first."""
    while True:
        seen = atomic_read(state)
        if seen >= CLOSED:
            return -1, 0
        if compare_and_swap(state, seen, seen + 1) == seen:
            break
    member, spins = seen, 0
    while True:
        seen = atomic_read(state)
        if seen >= CLOSED:
            return member, seen - CLOSED
        if member == 0 and (seen == shares or spins > MEET_SPINS):
            if compare_and_swap(state, seen, seen + CLOSED) == seen:
                return 0, seen
        spins += 1
        relax()
        if spins % SPINS_BEFORE_YIELD == 0:
            yield_core()


@njit
def barrier(state, team):
    """Wait until every member of the team has come here as often as this one."""
    if team == 1:
        return
    arrived = atomic_add(state + BARRIER_OFFSET, 1)
    target = (arrived // team + 1) * team
    spins = 0
    while atomic_read(state + BARRIER_OFFSET) < target:
        relax()
        spins += 1
        if spins % SPINS_BEFORE_YIELD == 0:
            yield_core()
