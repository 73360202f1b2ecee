"""The one door to numba.cuda: what is installed, and which device there is.

`from mmref.kernels.cuda.driver import cuda` is the only import of numba.cuda in mmref, and nothing imports this module
before a CUDA backend is asked for. NUMBA_ENABLE_CUDASIM=1, set before Numba is imported, runs all kernels in Numba's
simulator, which needs no GPU. compiler.py turns a kernel into machine code, launch.py loads and launches it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from mmref.errors import MissingBackend

INSTALL = 'pip install "mmref[cuda]"'

os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")  # we order streams ourselves (DeviceModel)


@contextlib.contextmanager
def _row_stack():
    """np.row_stack while numba.cuda is imported.

    NumPy 2.5 removed it, and numba-cuda 0.30.4 registers an implementation of it (in numba/cuda/np/arrayobj.py) the
    moment a kernel is compiled or its array module loaded: without the name no kernel compiles. Since that is an
    alias of vstack, so is this; it goes again, so that nobody else's code finds a name that their NumPy does not have.
    """
    if hasattr(np, "row_stack"):
        yield
        return
    vars(np)["row_stack"] = np.vstack
    try:
        yield
    finally:
        del vars(np)["row_stack"]


def _import_cuda():
    if importlib.util.find_spec("numba_cuda") is None:
        raise MissingBackend(f"backend 'cuda' needs the package numba-cuda: {INSTALL}")
    try:
        # What makes `numba.cuda` mean numba-cuda is a .pth file, which Python reads in site-packages only, not in a
        # folder on PYTHONPATH (pip install --target). Importing what it imports does the same anywhere.
        with contextlib.suppress(ImportError):
            import _numba_cuda_redirector  # noqa: F401
        with _row_stack():
            from numba import cuda
            ours = "numba_cuda" in cuda.__file__  # the copy bundled with numba is unmaintained and lacks what we use
            if ours and not cuda.config.ENABLE_CUDASIM:
                import numba.cuda.np.arrayobj  # noqa: F401  loaded late otherwise, with the first kernel
    except ImportError as error:
        raise MissingBackend(f"backend 'cuda' cannot load numba.cuda ({error}): {INSTALL}") from error
    if not ours:
        raise MissingBackend(f"backend 'cuda' needs numba.cuda of the package numba-cuda, got the copy inside numba "
                             f"({cuda.__file__}): import mmref.kernels.cuda.driver before numba.cuda, or reinstall "
                             f"with {INSTALL}")
    return cuda


cuda = _import_cuda()
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
def binding():
    """cuda.bindings.driver, NVIDIA's own Python functions of the driver: a dependency of numba-cuda."""
    from cuda.bindings import driver
    return driver


def call(function: str, *arguments):
    """A function of the driver, by name: its results without the status. RuntimeError where it is not success."""
    status, *results = getattr(binding(), function)(*arguments)
    if int(status):
        name = getattr(status, "name", status)
        raise (MemoryError if "OUT_OF_MEMORY" in str(name) else RuntimeError)(f"{function}: {name}")
    return results[0] if len(results) == 1 else results or None
