"""The one door to numba.cuda: what is installed, which device there is, and how a kernel is compiled and launched.

`from mmref.kernels.cuda.driver import cuda` is the only import of numba.cuda in mmref, and nothing imports this module
before a CUDA backend is asked for. NUMBA_ENABLE_CUDASIM=1, set before Numba is imported, runs all kernels in Numba's
simulator, which needs no GPU.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from mmref.errors import MissingBackend

INSTALL = 'pip install "mmref[cuda]"'

os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")  # one stream for all that we share with CuPy
if importlib.util.find_spec("numba_cuda") is None:  # numba.cuda as bundled with numba is unmaintained
    raise MissingBackend(f"backend 'cuda' needs the package numba-cuda: {INSTALL}")
try:
    from numba import cuda
except ImportError as error:
    raise MissingBackend(f"backend 'cuda' cannot load numba.cuda ({error}): {INSTALL}") from error

SIMULATOR = bool(cuda.config.ENABLE_CUDASIM)
ALIGNMENT = None if SIMULATOR else 16  # bytes, of shared arrays read four values at a time; the simulator has none


@dataclass(frozen=True)
class Device:
    """The device in use. `memory` in bytes; `processors` streaming multiprocessors."""

    name: str
    compute_capability: tuple[int, int]
    memory: int
    processors: int


def device() -> Device:
    """The current device; MissingBackend with the remedy where there is none that can be used."""
    if SIMULATOR:
        return Device("simulator", (9, 0), 0, 1)
    return _device()


@lru_cache(maxsize=1)
def _device() -> Device:
    try:
        current = cuda.get_current_device()
        _, memory = cuda.current_context().get_memory_info()
    except Exception as error:  # no driver, no device, a driver too old: each has its own class in numba-cuda
        reason = " ".join(str(error).split()).rstrip(" :.") or type(error).__name__
        raise MissingBackend("backend 'cuda' needs an NVIDIA GPU and its driver (version 580 or later, for CUDA 13); "
                             f"found none that can be used: {reason}; backends 'numpy' and 'numba' run without"
                             ) from error
    name = current.name
    return Device(name.decode() if isinstance(name, bytes) else str(name), tuple(current.compute_capability), memory,
                  current.MULTIPROCESSOR_COUNT)


@cache
def build(factory, *constants, threads: int, blocks: int = 1, signature: str | None = None):
    """The kernel `factory(*constants)`, compiled once, for its module's SIGNATURE and for blocks of up to `threads`
    threads, of which a multiprocessor should hold `blocks` at least.

    One signature, of arrays with any strides, makes one kernel of contiguous maps and column slices alike, and lets
    Numba skip the types at every launch. Whole-program compilation: what the compile check sees is what runs."""
    if SIMULATOR:
        return cuda.jit(factory(*constants))
    signature = signature or sys.modules[factory.__module__].SIGNATURE
    return cuda.jit(signature, lto=False, launch_bounds=(threads, max(blocks, 1)))(factory(*constants))


@lru_cache(maxsize=1)
def no_vector():
    """Stands for a vector that a kernel was built not to read."""
    return cuda.to_device(np.zeros(1, np.float32))


@lru_cache(maxsize=1)
def no_map():
    """Stands for a map or matrix that a kernel was built not to read."""
    return cuda.to_device(np.zeros((1, 1), np.float32))
