"""Running a plan's steps: a table of STEP (records.py), walked by all threads of a team (team.py) at the same time.

Parallel   every member walks the whole table. A step without an owner is cut into shares, dealt out to the members; one
           with an owner (one picture of a batch) is run by one of them, whole.
Loops      steps; where one says so, the barrier after it.
Moves      32 bytes a step. Kernels are called by their addresses, so that each is compiled, cached and loaded by
           itself, once for all shapes, variants and plans.

`library()` compiles the kernels, or loads them from the cache, the first time they are needed in a process.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import cache as once
from functools import partial
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import cfunc, get_num_threads, njit, prange, set_num_threads, types
from numba.core import cgutils, config
from numba.core.typing.templates import signature
from numba.extending import intrinsic
from numba.np.ufunc import parallel as numba_threads

from mmref.kernels import (
    cache,
    depthwise,
    join,
    matmul,
    norm_gate,
    pool,
    scan,
    selective_scan,
    squeeze_excite,
    stem,
    wavelet_branch,
)
from mmref.kernels.records import STEP
from mmref.kernels.target import TARGET
from mmref.kernels.team import STATE_WORDS, barrier
from mmref.kernels.team import join as join_team
from mmref.kernels.vector import INT64, call, operation, view

KERNELS = (matmul.matmul, stem.stem, stem.picture, stem.result, depthwise.depthwise, wavelet_branch.wavelet_branch,
           scan.scan, norm_gate.norm_gate, join.copy_relu, pool.mean, squeeze_excite.gate, selective_scan.scan_states,
           matmul.install_tiles)
KERNEL_SIGNATURE = types.void(types.int64, types.int64, types.int64)
STEP_BYTES = STEP.itemsize
MONOTONIC_CLOCK = 6 if sys.platform == "darwin" else 1


@intrinsic
def call_kernel(_context, address, record, share, shares):
    """Call machine code: void kernel(record, share, shares)."""
    def generate(context, builder, _signature, values):
        function_type = ir.FunctionType(ir.VoidType(), [INT64] * 3)
        builder.call(builder.inttoptr(values[0], function_type.as_pointer()), values[1:])
        return context.get_dummy_value()
    return signature(types.void, *[types.int64] * 4), generate


@operation(types.int64)
def nanoseconds(builder):
    """The monotonic clock (not on Windows, where operations are not timed: 0)."""
    if sys.platform == "win32":
        return ir.Constant(INT64, 0)
    spec = cgutils.alloca_once(builder, ir.ArrayType(INT64, 2))
    call(builder, "clock_gettime", ir.IntType(32), [ir.Constant(ir.IntType(32), MONOTONIC_CLOCK), spec])
    seconds, rest = (builder.extract_value(builder.load(spec), i) for i in range(2))
    return builder.add(builder.mul(seconds, ir.Constant(INT64, 1_000_000_000)), rest)


@operation(types.void, types.int64, types.int64)
def store_integer(builder, address, value):
    builder.store(value, builder.inttoptr(address, INT64.as_pointer()))


@njit
def run_shares(steps, count, state, shares, times, member, team):
    """What one member of a team does in a forward; `times` (0: none) takes nanoseconds by step."""
    last = nanoseconds()
    for index in range(count):
        step = view(steps + index * STEP_BYTES, STEP)
        mine = member == 0
        if step.owner < 0:
            for share in range(member, shares, team):
                call_kernel(step.function, step.record, share, shares)
        else:
            mine = step.owner % team == member
            if mine:
                call_kernel(step.function, step.record, 0, 1)
        if step.barrier != 0:
            barrier(state, team)
        if times != 0:
            now = nanoseconds()
            if mine:
                store_integer(times + 8 * index, now - last)
            last = now


def run_serial(steps, count, state, shares, times):
    """All shares on the calling thread."""
    run_shares(steps, count, state, shares, times, 0, 1)


def run_team(steps, count, state, shares, times):
    """All shares on as many threads as come in time."""
    for _thread in prange(shares):
        member, team = join_team(state, shares)
        if member >= 0:
            run_shares(steps, count, state, shares, times, member, team)


class Library(NamedTuple):
    """Compiled code: kernels' addresses by name, the table of tiles, and the two ways to run steps."""

    addresses: dict[str, int]
    tiles: np.ndarray
    serial: object
    parallel: object
    keep: list          # what owns the machine code


RUN_SIGNATURE = types.void(*[types.int64] * 5)
_compiling = threading.RLock()
_launching = threading.RLock()      # the workqueue layer aborts the process where two threads enter it
_orphaned = False                   # in a child forked after Numba's threads were started: it has none of them


def _after_fork():
    """In a forked child: locks that another thread held stay locked for ever, and threads are gone."""
    global _compiling, _launching, _orphaned
    _compiling, _launching = threading.RLock(), threading.RLock()
    _orphaned = _orphaned or numba_threads._is_initialized


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def library() -> Library:
    """The compiled kernels of this process."""
    with _compiling:
        return _library()


@once
def _library() -> Library:
    place = cache.folder()
    note = _Progress(len(KERNELS) + 2, quiet=place is not None and cache.is_filled(place))
    if place is None:
        note.say("no private cache folder can be written: kernels are compiled anew in every process")
    kernels = {function.__name__: _compile(partial(_build_kernel, function), place, note) for function in KERNELS}
    serial = _compile(partial(_build_runner, run_serial), place, note)
    parallel = _compile(partial(_build_runner, run_team, parallel=True), place, note)
    if place is not None and not note.quiet:
        cache.seal(place)
    note.end()
    addresses = {name: kernel.address for name, kernel in kernels.items()}
    tiles = np.zeros(matmul.TABLE_SIZE, np.int64)
    install = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(addresses.pop("install_tiles"))
    install(tiles.ctypes.data, 0, 1)
    return Library(addresses, tiles, serial, parallel, list(kernels.values()))


def _build_kernel(function, **how):
    return cfunc(KERNEL_SIGNATURE, error_model="numpy", **how)(function)


def _build_runner(function, **how):
    return njit(RUN_SIGNATURE, nogil=True, error_model="numpy", **how)(function)


def _compile(build, place, note):
    """Compile or load one function, from the cache folder if that works."""
    try:
        if place is None:
            return build()
        before = config.CACHE_DIR
        config.CACHE_DIR = str(place)
        try:
            return build(cache=True)
        except Exception as error:  # a damaged file can raise anything when it is loaded
            note.say(f"the kernel cache in {place} cannot be used ({type(error).__name__}: {error})")
            return build()
        finally:
            config.CACHE_DIR = before
    finally:
        note.step()


class _Progress:
    """One line on stderr that says why the first answer takes ten seconds."""

    def __init__(self, steps, quiet):
        self.steps, self.quiet, self.bar = steps, quiet, None

    def say(self, text):
        print(f"mmref: {text}", file=sys.stderr)

    def step(self):
        if self.quiet:
            return
        if self.bar is None:
            from tqdm import tqdm
            text = f"mmref: compiling kernels for {TARGET.name}, kept for the next time"
            self.bar = tqdm(total=self.steps, file=sys.stderr, desc=text, bar_format="{desc}: {n}/{total}, {elapsed}")
        self.bar.update()

    def end(self):
        if self.bar is not None:
            self.bar.close()


def addresses() -> dict[str, int]:
    """Machine code of the kernels, by the names of their functions, for the `function` field of a step."""
    return library().addresses


def tile_table() -> int:
    """Address of the table of matrix-product tiles, for the `tiles` field of a record."""
    return library().tiles.ctypes.data


def threads_available() -> int:
    """How many threads Numba may start (NUMBA_NUM_THREADS, by default the cores)."""
    return config.NUMBA_NUM_THREADS


def run(steps: np.ndarray, shares: int, times: np.ndarray | None = None) -> None:
    """Run steps planned in `shares`, on as many threads where Numba starts that many.

    steps: array of STEP, whose records the caller keeps; times: None, or int64 by step for its nanoseconds. May be
    called from several Python threads, also at once. In a process forked after Numba started its threads the calling
    thread does all shares (same result, slower): start processes with `spawn`.
    """
    compiled = library()
    state = np.zeros(STATE_WORDS, np.int64)
    arguments = (steps.ctypes.data, len(steps), state.ctypes.data, shares, 0 if times is None else times.ctypes.data)
    if shares == 1 or _orphaned:  # OpenMP kills a forked child that asks for its parent's threads
        return compiled.serial(*arguments)
    with _launching:
        before = get_num_threads()
        set_num_threads(min(shares, threads_available()))
        try:
            compiled.parallel(*arguments)
        finally:
            set_num_threads(before)


def run_alone(kernel: str, dtype: np.dtype, fields: dict) -> None:
    """Run one kernel on arrays, on the calling thread: `fields` of its record, an array standing for its address."""
    record, step = np.zeros(1, dtype), np.zeros(1, STEP)
    for name, value in fields.items():
        record[name] = value.ctypes.data if isinstance(value, np.ndarray) else value
    step["function"], step["record"], step["owner"] = addresses()[kernel], record.ctypes.data, -1
    run(step, 1)
