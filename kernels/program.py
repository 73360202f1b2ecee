"""Running a plan's steps: machine code loaded once a process, threads that wait for work, one call per forward.

`library()` takes the kernels from the cache (cache.py) or compiles them (compile.py), the first time they are needed in
a process. Only compiling imports Numba. What runs is described in team.py.

Parallel   every member of a team walks the whole table of STEP (records.py). A step without an owner is cut into
           shares, dealt out to the members; one with an owner (one picture of a batch) is run by one of them, whole.
Loops      steps; where one says so, the barrier after it.
Moves      32 bytes a step. Kernels are called by their addresses: one compile serves all shapes, variants and plans.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import cache as once
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np

from mmref.cores import usable_cores
from mmref.errors import MissingBackend
from mmref.kernels import cache
from mmref.kernels.records import STEP, TEAM
from mmref.kernels.target import TABLE_SIZE, TARGET
from mmref.locks import Lock

KERNELS = ("matmul", "stem", "picture", "result", "depthwise", "depthwise_any", "wavelet_branch", "scan",
           "norm_gate", "copy_relu", "mean", "gate", "scan_states", "state_scan", "move", "combine", "norm", "gather",
           "scatter", "analysis", "synthesis", "dense", "adaptive_mean", "maximum_pool", "resize", "path_conv",
           "rms_norm", "rotary", "row_stats", "norm_mean", "suppress", "align")
MOST_THREADS = 1024


class Library(NamedTuple):
    """Compiled code: kernels' addresses by name, the table of tiles, and functions of team.py."""

    addresses: dict[str, int]
    tiles: np.ndarray
    walk_alone: object
    lead: object
    work: object
    prepare: object


class Workers:
    """Threads that sleep until there is a job, and the record TEAM they share. They end with the process."""

    def __init__(self):
        self.team = _immortal(np.zeros(TEAM.itemsize + 64, np.uint8))
        self.address = self.team.ctypes.data + -self.team.ctypes.data % 64
        self.count = 0
        self.busy = Lock()
        library().prepare(self.address)

    def run(self, shares, steps, count, times):
        """A job of so many shares by the calling thread and as many workers as come in time."""
        with self.busy:
            while self.count < shares - 1:
                threading.Thread(target=library().work, args=(self.address,), name="mmref", daemon=True).start()
                self.count += 1
            library().lead(self.address, steps, count, shares, times)


_compiling = Lock(blocks_fork=True)
_workers: Workers | None = None


def _after_fork():
    """In a forked child: threads did not come along."""
    global _workers
    _workers = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _immortal(thing):
    """Keep until the process ends: threads may be running in it when the interpreter tidies up."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    return thing


def library() -> Library:
    """The compiled kernels of this process."""
    with _compiling:
        return _library()


@once
def _library() -> Library:
    code = cache.load()
    if code is not None:
        try:
            return _link(code)
        except RuntimeError as error:
            print(f"mmref: kept kernels cannot be loaded ({error})", file=sys.stderr)
    code = _compile()
    if not cache.save(code):
        print("mmref: no private cache folder can be written: kernels are compiled anew in every process",
              file=sys.stderr)
    return _link(code)


def _link(code: bytes) -> Library:
    """Load an object file. RuntimeError if it is none of ours."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = _immortal(llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()

    def function(name, arguments):
        address = engine.get_function_address(f"mmref_{name}")
        if not address:
            raise RuntimeError(f"the cached file has no function {name}")
        return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)(address)
    addresses = {name: ctypes.cast(function(name, 3), ctypes.c_void_p).value for name in KERNELS}
    tiles = _immortal(np.zeros(TABLE_SIZE, np.int64))
    function("install_tiles", 3)(tiles.ctypes.data, 0, 1)
    return Library(addresses, tiles, function("walk_alone", 4), function("lead", 5), function("work", 1),
                   function("prepare", 1))


def _compile() -> bytes:
    """Compile the kernels, with a line on stderr that says why the first answer takes seconds."""
    try:
        from mmref.kernels.compile import FUNCTIONS, compile_kernels
    except ImportError as error:
        raise MissingBackend(f"kernels must be compiled, which needs Numba: {error}; pip install numba") from error
    from mmref.progress import progress
    text = f"mmref: compiling kernels for {TARGET.name}, kept for the next time"
    with progress(len(FUNCTIONS), "kernel", text, wanted=True, leave=True,
                  bar_format="{desc}: {n}/{total}, {elapsed}") as bar:
        return compile_kernels(bar.update)


def addresses() -> dict[str, int]:
    """Machine code of the kernels, by the names of their functions, for the `function` field of a step."""
    return library().addresses


def tile_table() -> int:
    """Address of the table of matrix-product tiles, for the `tiles` field of a record."""
    return library().tiles.ctypes.data


def threads_available() -> int:
    """How many threads work where nobody says how many: NUMBA_NUM_THREADS, else the cores this process may use."""
    asked = os.environ.get("NUMBA_NUM_THREADS", "")
    if asked.isdigit() and int(asked):
        return min(int(asked), MOST_THREADS)
    return usable_cores()


def run(steps: np.ndarray, shares: int, times: np.ndarray | None = None) -> None:
    """Run steps planned in `shares`, on as many threads (fewer where some come late; more than cores work too).

    steps: array of STEP, whose records the caller keeps; times: None, or int64 by step for its nanoseconds. May be
    called from several Python threads, also at once (they wait for each other unless `shares` is 1), and in forked
    processes, which start threads of their own.
    """
    global _workers
    times = 0 if times is None else times.ctypes.data
    if shares == 1:
        library().walk_alone(steps.ctypes.data, len(steps), 1, times)
        return
    with _compiling:
        if _workers is None:
            _workers = Workers()
        workers = _workers
    workers.run(shares, steps.ctypes.data, len(steps), times)


def run_alone(kernel: str, dtype: np.dtype, fields: dict) -> None:
    """Run one kernel on arrays, on the calling thread: `fields` of its record, an array standing for its address."""
    record, step = np.zeros(1, dtype), np.zeros(1, STEP)
    for name, value in fields.items():
        record[name] = value.ctypes.data if isinstance(value, np.ndarray) else value
    step["function"], step["record"], step["owner"] = addresses()[kernel], record.ctypes.data, -1
    run(step, 1)
