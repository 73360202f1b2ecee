"""Kernels as their launchers use them: built once, compiled or taken from the cache when first needed, launched.

    kernel = build(factory, *constants, threads=256)     # nothing is compiled yet
    kernel[grid, block, stream](*arguments)              # compiled or loaded the first time, then launched; no wait

A launch hands the driver a list of 64-bit values, Numba's convention for kernels: an array is (0, 0, elements, bytes an
element, address, shape, strides in bytes), an integer itself. `needed` finds out which kernels some launches would
need without launching any, so that `load` can compile what is missing of them side by side.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial

import numpy as np

from mmref.errors import ValueProblem
from mmref.kernels.cuda import compiler
from mmref.kernels.cuda.driver import SIMULATOR, call, cuda, device
from mmref.locks import Lock

MOST_BLOCKS = 2**31 - 1, 65_535, 65_535  # of a grid, along x, y and z: the same for all compute capabilities
_local = threading.local()               # .needed: a set, while kernels are only looked for


@cache
def build(factory, *constants, threads: int, blocks: int = 1, signature: str | None = None):
    """The kernel `factory(*constants)`, for its module's SIGNATURE and for blocks of up to `threads` threads, of which
    a multiprocessor should hold `blocks` at least.

    One signature, of arrays with any strides, makes one kernel of contiguous maps and column slices alike.
    Whole-program compilation: what the compile check sees is what runs."""
    signature = signature or sys.modules[factory.__module__].SIGNATURE
    kernel = compiler.Kernel(factory.__module__, factory.__name__, constants, signature, threads, blocks)
    return Simulated(kernel, factory) if SIMULATOR else Loadable(kernel)


def check_grid(kernel, grid) -> tuple[int, int, int]:
    """A launch's grid in three dimensions; ValueProblem where no device could launch it."""
    grid = (grid,) if isinstance(grid, int) else tuple(grid)
    grid += (1,) * (3 - len(grid))
    if any(not 1 <= blocks <= most for blocks, most in zip(grid, MOST_BLOCKS, strict=True)):
        raise ValueProblem(f"{kernel} must be launched in a grid of at most {MOST_BLOCKS} blocks, got {grid}: "
                           f"a smaller batch, or smaller pictures")
    return grid


class Simulated:
    """A kernel in Numba's simulator."""

    def __init__(self, kernel: compiler.Kernel, factory):
        self.kernel, self.jitted = kernel, cuda.jit(factory(*kernel.constants))

    def __getitem__(self, configuration):
        check_grid(self.kernel, configuration[0])
        return self.jitted[configuration]


class Loadable:
    """A kernel on the device."""

    def __init__(self, kernel: compiler.Kernel):
        self.kernel, self.function, self.module = kernel, None, None
        types = parameter_types(kernel.signature)
        self.values = (ctypes.c_int64 * sum(5 + 2 * rank if rank else 1 for rank in types))()
        start = ctypes.addressof(self.values)
        self.pointers = (ctypes.c_void_p * len(self.values))(*range(start, start + 8 * len(self.values), 8))
        self.types, self.lock = types, Lock()

    def __getitem__(self, configuration):
        return partial(self.launch, *configuration)

    def launch(self, grid, block, stream, *arguments) -> None:
        """Put the kernel on the stream; does not wait."""
        grid = check_grid(self.kernel, grid)
        needed = getattr(_local, "needed", None)
        if needed is not None:
            needed.add(self)
            return
        if self.function is None:
            load([self])
        cuda.current_context()  # a thread of its own may be here for the first time
        block = ((block,) if isinstance(block, int) else tuple(block)) + (1, 1)
        values = pack(self.types, arguments)
        with self.lock:  # the driver has copied the values when it returns
            self.values[:] = values
            call("cuLaunchKernel", self.function, *grid, *block[:3], 0, int(stream), ctypes.addressof(self.pointers), 0)

    def take(self, code: compiler.Code) -> None:
        """Load machine code into the device's context; RuntimeError where the driver does not take it."""
        cuda.current_context()
        image = np.frombuffer(code.cubin, np.uint8)
        module = call("cuModuleLoadData", image.ctypes.data)
        self.function = call("cuModuleGetFunction", module, code.entry.encode())
        self.module = module  # never unloaded: kernels live as long as the process


def address(array) -> int:
    """Of an array's first element: a device array's, or (in tests without a device) NumPy's or the simulator's."""
    array = getattr(array, "_ary", array)
    if getattr(array, "__cuda_ndarray__", False):
        return array.device_ctypes_pointer.value or 0
    return array.ctypes.data


def width(*arrays) -> int:
    """How many columns of these maps and vectors one access may take: 4, where every row begins at a multiple of 16
    bytes and has a multiple of 4 columns, else 1."""
    whole = all(tuple(array.shape)[-1] % 4 == 0 and address(array) % 16 == 0
                and all(stride % 16 == 0 for stride in array.strides[:-1]) for array in arrays)
    return 4 if whole else 1


def spread(rows: int, columns: int, each: int) -> tuple[int, tuple[int, int]]:
    """(grid, block) of 256 threads a block: one for each column and every `blockDim.y`-th of its block's rows, `each`
    of them; blocks are no wider than the columns need."""
    lanes = 32
    while lanes > 4 and lanes // 2 >= columns:
        lanes //= 2
    return -(-columns // lanes) * -(-rows // (256 // lanes * each)), (lanes, 256 // lanes)


def parameter_types(signature: str) -> list[int]:
    """Of each parameter of "void(float32[:, ::1], int32)": an array's rank, 0 for an integer."""
    inside = re.fullmatch(r"void\((.*)\)", signature)[1]
    return [found.count(":") - found.count("::") if "[" in found else 0
            for found in re.findall(r"\w+(?:\[[^]]*\])?", inside)]


def pack(types: Sequence[int], arguments) -> list[int]:
    """A launch's arguments as 64-bit values, in Numba's convention; an int32 is the lower half of its own."""
    values = []
    for rank, argument in zip(types, arguments, strict=True):
        if not rank:
            values.append(int(argument))
            continue
        if len(argument.shape) != rank:
            raise TypeError(f"a kernel's argument must have rank {rank}, got shape {argument.shape}")
        values += (0, 0, argument.size, argument.dtype.itemsize, address(argument), *argument.shape, *argument.strides)
    return values


@contextlib.contextmanager
def _looking():
    _local.needed = needed = set()
    try:
        yield needed
    finally:
        _local.needed = None


def launching() -> bool:
    """Whether launches of this thread are launches, and not only looked at by `needed`."""
    return getattr(_local, "needed", None) is None


def needed(launches: Callable[[], None]) -> set[Loadable]:
    """The kernels that `launches()` would launch; nothing is launched. Libraries' calls among them must ask
    `launching` themselves. Empty in the simulator, which compiles nothing."""
    if SIMULATOR:
        return set()
    with _looking() as kernels:
        launches()
    return kernels


_loading = Lock()


def load(kernels) -> None:
    """Have these kernels in the device's context: kept code if there is any, else compiled (and kept), side by side if
    there are several. CompileError where one cannot be compiled."""
    with _loading:
        wanted = {kernel.kernel: kernel for kernel in kernels if kernel.function is None}
        if not wanted:
            return
        capability, version = device().compute_capability, int(call("cuDriverGetVersion"))
        missing = []
        for kernel, loadable in sorted(wanted.items(), key=str):
            code = compiler.read(kernel, capability, version)
            try:
                if code is not None:
                    loadable.take(code)
            except (RuntimeError, UnicodeError) as error:
                print(f"mmref: kept code of CUDA kernel {kernel} cannot be loaded ({error}); it is compiled anew",
                      file=sys.stderr)
            if loadable.function is None:
                missing.append(kernel)
        kept = True
        for kernel, code in _shown(compiler.compile_all(missing, capability), len(missing)):
            wanted[kernel].take(code)
            kept = compiler.keep(kernel, code, capability, version) and kept
        if not kept:
            print("mmref: no private cache folder can be written: CUDA kernels are compiled anew in every process",
                  file=sys.stderr)


def _shown(compiled, count):
    """The same, with a line on stderr that says why the first answer takes so long; none for a few kernels."""
    if count <= compiler.FEW:
        return compiled
    from mmref.progress import progress
    return progress(count, "kernel", "mmref: compiling CUDA kernels, kept for the next time", wanted=True, leave=True,
                    iterable=compiled, bar_format="{desc}: {n}/{total}, {elapsed}")


@lru_cache(maxsize=1)
def no_vector():
    """Stands for a vector that a kernel was built not to read."""
    return cuda.to_device(np.zeros(1, np.float32))


@lru_cache(maxsize=1)
def no_map():
    """Stands for a map or matrix that a kernel was built not to read."""
    return cuda.to_device(np.zeros((1, 1), np.float32))
