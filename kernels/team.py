"""Threads that work on one forward together: how they meet, wait for each other, and cannot deadlock.

A forward has 100 operations of 1 to 500 us, so it is one job: the threads enter it once, walk the same table of steps,
and between steps meet at a spin barrier (0.05 to 0.2 us). They are mmref's own (program.py starts them), not those of
one of Numba's threading layers: of these, one dies in a forked child, another aborts the process where two threads
call it, and all need Numba.

A barrier hangs when fewer threads run than it waits for, and nobody promises when a thread gets a core: the machine may
be busy, or have fewer cores than there are threads. So work is planned in *shares*, and run by a *team* of whoever
comes in time:

    lead     The caller opens a job and is its member 0. It waits for others for a while (MEET_SPINS), then closes the
             team. Who comes later finds it closed and waits for the next job.
    work     Member m of a team of t runs shares m, m + t, m + 2t, ... of every step. With a full team that is one share
             each; a smaller team does the rest as well, with the same result to the last bit.
    barrier  Counts members of the closed team, all of which are running: the wait ends.
    leave    The caller goes on when all members have left: nobody touches the job's memory after that. Threads outside
             of the team touch nothing of a job but the word that says it is closed.

Waiting threads spin, for the next step is some microseconds away; after SPINS_BEFORE_YIELD turns they offer their core
to whoever they wait for, who may need it (two threads on one core, after a pause). Without a job for IDLE_SPINS turns,
about a millisecond, a thread goes to sleep until the next one.

The word `job` of the record TEAM: number of the job (32 bits), closed (1 bit), shares (15 bits), members (16 bits).
Joining is one compare-and-swap of that word, so nobody can join a job that has closed or changed meanwhile.
"""

from __future__ import annotations

import sys

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import signature
from numba.extending import intrinsic

from mmref.kernels.float_mode import enter_kernels, set_float_mode
from mmref.kernels.records import STEP, TEAM
from mmref.kernels.target import TARGET
from mmref.kernels.vector import INT64, call, load_integer, operation, store_integer, view

SPINS_BEFORE_YIELD = 400
MEET_SPINS = 20_000
IDLE_SPINS = 20_000
JOB_SHIFT, SHARES_SHIFT = 32, 16        # fields of the word `job`
CLOSED, SHARES_MASK, MEMBERS_MASK = 1 << 31, 0x7FFF, 0xFFFF
JOB, BARRIER, LEFT, ASLEEP, LOCK, WAKE = (TEAM.fields[name][1]
                                          for name in ("job", "barrier", "left", "asleep", "lock", "wake"))
STEP_BYTES = STEP.itemsize
MONOTONIC_CLOCK = 6 if sys.platform == "darwin" else 1
WINDOWS, LINUX = sys.platform == "win32", sys.platform.startswith("linux")

# ------------------------------------------------------------------------- what the system and the processor offer


def _system(name, *arguments):
    return types.ExternalFunction(name, types.int32(*arguments))


if WINDOWS:  # in memory of zeros both are ready for use
    _yield_core = _system("SwitchToThread")
    _lock, _unlock = (_system(f"{verb}SRWLockExclusive", types.int64) for verb in ("Acquire", "Release"))
    _sleep = _system("SleepConditionVariableSRW", types.int64, types.int64, types.int32, types.int32)
    _wake_all = _system("WakeAllConditionVariable", types.int64)
else:
    _yield_core = _system("sched_yield")
    _lock, _unlock = (_system(f"pthread_mutex_{verb}", types.int64) for verb in ("lock", "unlock"))
    _sleep = _system("pthread_cond_wait", types.int64, types.int64)
    _wake_all = _system("pthread_cond_broadcast", types.int64)
    _make_lock = _system("pthread_mutex_init", types.int64, types.int64)
    _make_condition = _system("pthread_cond_init", types.int64, types.int64)
if LINUX:
    _this_core = _system("sched_getcpu")
    _get_cores, _set_cores = (_system(f"sched_{verb}affinity", types.int32, types.int64, types.int64)
                              for verb in ("get", "set"))
CORE_SET_BYTES = 128


def _atomic(builder, address):
    return builder.inttoptr(address, INT64.as_pointer())


@operation(types.int64, types.int64, types.int64)
def atomic_add(builder, address, amount):
    """Add to the word; returns what it was."""
    return builder.atomic_rmw("add", _atomic(builder, address), amount, "seq_cst")


@operation(types.int64, types.int64)
def atomic_read(builder, address):
    return builder.load_atomic(_atomic(builder, address), "seq_cst", 8)


@operation(types.void, types.int64, types.int64)
def atomic_write(builder, address, value):
    builder.store_atomic(value, _atomic(builder, address), "seq_cst", 8)


@intrinsic
def compare_and_swap(_context, address, expected, new):
    """Write `new` if the word is `expected`; returns what it was."""
    def generate(context, builder, _signature, values):
        pair = builder.cmpxchg(_atomic(builder, values[0]), values[1], values[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 0)
    return signature(types.int64, types.int64, types.int64, types.int64), generate


@operation(types.void)
def relax(builder):
    """Tell the core that this is a spin loop: x86's `pause`; on ARM64 `isb`, which waits about as long."""
    if TARGET.is_x86:
        call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
    elif TARGET.name == "NEON":
        call(builder, "llvm.aarch64.isb", ir.VoidType(), [ir.Constant(ir.IntType(32), 15)])


@operation(types.int64)
def nanoseconds(builder):
    """The monotonic clock (not on Windows, where operations are not timed: 0)."""
    if WINDOWS:
        return ir.Constant(INT64, 0)
    spec = cgutils.alloca_once(builder, ir.ArrayType(INT64, 2))
    call(builder, "clock_gettime", ir.IntType(32), [ir.Constant(ir.IntType(32), MONOTONIC_CLOCK), spec])
    seconds, rest = (builder.extract_value(builder.load(spec), i) for i in range(2))
    return builder.add(builder.mul(seconds, ir.Constant(INT64, 1_000_000_000)), rest)


@operation(types.int64)
def core_set(builder):
    """The address of memory on the stack for a set of 1024 cores, a bit each."""
    words = ir.ArrayType(INT64, CORE_SET_BYTES // 8)
    return builder.ptrtoint(cgutils.alloca_once(builder, words), INT64)


@intrinsic
def call_kernel(_context, address, record, share, shares):
    """Call machine code: void kernel(record, share, shares)."""
    def generate(context, builder, _signature, values):
        function_type = ir.FunctionType(ir.VoidType(), [INT64] * 3)
        builder.call(builder.inttoptr(values[0], function_type.as_pointer()), values[1:])
        return context.get_dummy_value()
    return signature(types.void, *[types.int64] * 4), generate


# --------------------------------------------------------------------------------------------------- a job

@njit
def _wait_a_turn(spins):
    """One turn of a spin loop; returns the number of turns so far."""
    relax()
    spins += 1
    if spins % SPINS_BEFORE_YIELD == 0:
        _yield_core()
    return spins


@njit
def barrier(team, members):
    """Wait until every member of the team has come here as often as this one."""
    if members == 1:
        return
    arrived = atomic_add(team + BARRIER, 1)
    target = (arrived // members + 1) * members
    spins = 0
    while atomic_read(team + BARRIER) < target:
        spins = _wait_a_turn(spins)


@njit
def _walk(team, steps, count, shares, times, member, members):
    """What one member does in a job; `times` (0: none) takes nanoseconds by step. The thread is in the kernels'
    floating-point mode meanwhile."""
    mode = enter_kernels()
    last = nanoseconds()
    for index in range(count):
        step = view(steps + index * STEP_BYTES, STEP)
        mine = member == 0
        if step.owner < 0:
            for share in range(member, shares, members):
                call_kernel(step.function, step.record, share, shares)
        else:
            mine = step.owner % members == member
            if mine:
                call_kernel(step.function, step.record, 0, 1)
        if step.barrier != 0:
            barrier(team, members)
        if times != 0:
            now = nanoseconds()
            if mine:
                store_integer(times + 8 * index, now - last)
            last = now
    set_float_mode(mode)


def walk_alone(steps, count, shares, times):
    """All shares of `count` steps on the calling thread; needs no team and may run on several threads at once."""
    _walk(0, steps, count, shares, times, 0, 1)


def lead(team, steps, count, shares, times):
    """All shares of `count` steps by the calling thread and as many others as come in time. One caller at a time."""
    job = view(team, TEAM)
    job.steps, job.count, job.times = steps, count, times
    atomic_write(team + BARRIER, 0)
    atomic_write(team + LEFT, 0)
    if LINUX:
        job.core = _this_core()
    number = (atomic_read(team + JOB) >> JOB_SHIFT) + 1
    opened = (number << JOB_SHIFT) + (shares << SHARES_SHIFT)
    atomic_write(team + JOB, opened + 1)
    if atomic_read(team + ASLEEP) != 0:
        _lock(team + LOCK)
        _wake_all(team + WAKE)
        _unlock(team + LOCK)
    spins = 0
    while True:
        seen = atomic_read(team + JOB)
        if seen - opened == shares or spins > MEET_SPINS:
            if compare_and_swap(team + JOB, seen, seen + CLOSED) == seen:
                break
        spins = _wait_a_turn(spins)
    members = seen - opened
    _walk(team, steps, count, shares, times, 0, members)
    spins = 0
    while atomic_read(team + LEFT) < members - 1:
        spins = _wait_a_turn(spins)


@njit
def _join(team):
    """This thread's number in the team of the job that is open now, -1 where none is."""
    while True:
        seen = atomic_read(team + JOB)
        member = seen & MEMBERS_MASK
        if seen & CLOSED != 0 or member >= (seen >> SHARES_SHIFT) & SHARES_MASK:
            return -1
        if compare_and_swap(team + JOB, seen, seen + 1) == seen:
            return member


@njit
def _leave_core(core):
    """Go to another core if this is that one, and if there is another. Linux may wake a thread on the core of whoever
    woke it and leave both there for milliseconds, taking turns: a forward then takes longer than on one thread."""
    if _this_core() == core:
        cores = core_set()
        if _get_cores(0, CORE_SET_BYTES, cores) == 0:
            word, bit = cores + core // 64 * 8, 1 << core % 64
            store_integer(word, load_integer(word) & ~bit)
            _set_cores(0, CORE_SET_BYTES, cores)  # refused where no core is left
            store_integer(word, load_integer(word) | bit)
            _set_cores(0, CORE_SET_BYTES, cores)


@njit
def _sleep_until_woken(team):
    """Sleep, unless a job has been opened meanwhile: `lead` opens it first and looks for sleepers then."""
    _lock(team + LOCK)
    atomic_add(team + ASLEEP, 1)
    seen = atomic_read(team + JOB)
    if seen & CLOSED != 0 or seen & MEMBERS_MASK >= (seen >> SHARES_SHIFT) & SHARES_MASK:
        if WINDOWS:
            _sleep(team + WAKE, team + LOCK, -1, 0)
        else:
            _sleep(team + WAKE, team + LOCK)
    atomic_add(team + ASLEEP, -1)
    _unlock(team + LOCK)
    if LINUX:
        _leave_core(view(team, TEAM).core)


def work(team):
    """The life of a thread that waits for jobs: it never returns."""
    job = view(team, TEAM)
    spins = 0
    while True:
        member = _join(team)
        if member < 0:
            spins = _wait_a_turn(spins)
            if spins >= IDLE_SPINS:
                _sleep_until_woken(team)
                spins = 0
            continue
        spins = 0
        seen = atomic_read(team + JOB)
        while seen & CLOSED == 0:
            spins = _wait_a_turn(spins)
            seen = atomic_read(team + JOB)
        _walk(team, job.steps, job.count, (seen >> SHARES_SHIFT) & SHARES_MASK, job.times, member, seen & MEMBERS_MASK)
        atomic_add(team + LEFT, 1)
        spins = 0


def prepare(team):
    """Make the lock and the condition of a record TEAM that is all zeros, and close its job 0, which never was."""
    if not WINDOWS:
        _make_lock(team + LOCK, 0)
        _make_condition(team + WAKE, 0)
    atomic_write(team + JOB, CLOSED)
