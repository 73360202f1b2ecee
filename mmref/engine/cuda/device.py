"""What the engine asks of the device beyond kernels: memory, graphs, CuPy, and other libraries' arrays."""

from __future__ import annotations

import math
import weakref

import numpy as np

from mmref.errors import MissingBackend, ShapeError
from mmref.kernels.cuda.driver import INSTALL, SIMULATOR, cuda, device

RELAXED = 2  # CUstreamCaptureMode: what other threads ask of the driver meanwhile is their affair


def load_cupy():
    """CuPy with its cuBLAS, or MissingBackend."""
    try:
        import cupy
        from cupy_backends.cuda.libs import cublas
    except ImportError as error:
        raise MissingBackend(f"backend 'cuda' multiplies matrices with cuBLAS through CuPy, which cannot be loaded "
                             f"({_first_line(error)}): {INSTALL}, or ask for matmul='own', our own slower kernel"
                             ) from error
    return cupy, cublas


def _first_line(error) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --------------------------------------------------------------------------------------------- memory

def allocate(shape):
    """A float32 device array with nothing particular in it; MemoryError where the device has no room."""
    try:
        return cuda.device_array(shape, np.float32)
    except Exception as error:  # numba.cuda's own classes differ between its versions
        if "OUT_OF_MEMORY" in str(error):
            raise MemoryError(str(error)) from error
        raise


def free_memory() -> tuple[int, int]:
    """Bytes (free, in all) of the device."""
    info = cuda.current_context().get_memory_info()
    return info.free, info.total


# --------------------------------------------------------------------------------------------- graphs

class Graph:
    """Launches captured from a stream. While capturing nothing may be allocated, freed or compiled."""

    def __init__(self, stream, launch):
        binding = cuda.cudadrv.driver.binding
        self.stream, self.api = int(stream), cuda.cudadrv.driver.driver
        with cuda.defer_cleanup():
            self.api.cuStreamBeginCapture(self.stream, binding.CUstreamCaptureMode(RELAXED))
            try:
                launch()
            finally:
                graph = self.api.cuStreamEndCapture(self.stream)
        self.executable = self.api.cuGraphInstantiate(graph, 0)
        weakref.finalize(self, self.api.cuGraphExecDestroy, self.executable)
        self.api.cuGraphDestroy(graph)

    def launch(self) -> None:
        self.api.cuGraphLaunch(self.executable, self.stream)


# --------------------------------------------------------------------------------------------- arrays

def is_device_array(x) -> bool:
    """Whether x lies on the device: CuPy, PyTorch on CUDA, Numba, anything with `__cuda_array_interface__`."""
    if getattr(x, "__cuda_ndarray__", False):
        return True
    try:
        return hasattr(x, "__cuda_array_interface__")
    except Exception:  # PyTorch raises for tensors on the CPU, and for those that require gradients
        return False


def library(x) -> str:
    """Whose array it is: "cupy", "torch", or "numba" for everyone else's."""
    name = type(x).__module__.partition(".")[0]
    return name if name in ("cupy", "torch") else "numba"


def device_view(x):
    """A Numba view of a device array, C-contiguous; ShapeError for other dtypes than float32.

    An array that lies otherwise is copied by CuPy."""
    if getattr(x, "__cuda_ndarray__", False):
        array, strides, dtype = x, None if x.is_c_contiguous() else x.strides, x.dtype
    else:
        interface = x.__cuda_array_interface__
        strides, dtype = interface.get("strides"), np.dtype(interface["typestr"])
        packed = np.cumprod((dtype.itemsize, *interface["shape"][:0:-1]))[::-1].tolist()
        strides = None if strides is None or list(strides) == packed else strides
        array = cuda.as_cuda_array(x, sync=False)
    if dtype != np.float32:
        raise ShapeError(f"x must be float32, the model's dtype, got {dtype}")
    if strides is not None and math.prod(array.shape):
        cupy, _ = load_cupy()
        array = cuda.as_cuda_array(cupy.ascontiguousarray(cupy.asarray(x)), sync=False)
    return array


def caller_stream(x):
    """The stream on which the library of `x` works now, for Numba; its results are ready there in order."""
    if SIMULATOR:
        return 0
    name = library(x)
    if name == "cupy":
        import cupy
        pointer = cupy.cuda.get_current_stream().ptr
    elif name == "torch":
        import torch
        pointer = torch.cuda.current_stream(x.device).cuda_stream
    else:
        pointer = getattr(x, "__cuda_array_interface__", {}).get("stream")
    return cuda.external_stream(pointer) if pointer else 0


def empty_like_of(x, shape):
    """An uninitialised float32 array of the library that `x` is of."""
    name = library(x)
    if name == "cupy":
        import cupy
        return cupy.empty(shape, np.float32)
    if name == "torch":
        import torch
        return torch.empty(shape, dtype=torch.float32, device=x.device)
    return allocate(shape)


# --------------------------------------------------------------------------------------------- for people

def found() -> str:
    """What there is on this machine, or what is missing and the remedy; in words, never an exception."""
    if SIMULATOR:
        return "no GPU: Numba's simulator (NUMBA_ENABLE_CUDASIM=1), for tests"
    try:
        info = device()
    except MissingBackend:
        reason = " ".join(str(cuda.cudadrv.driver.driver.initialization_error).split())
        if "cannot be found" in reason:
            return "missing: no NVIDIA driver (version 580 or later is needed, for CUDA 13)"
        if "NO_DEVICE" in reason:
            return "missing: an NVIDIA driver, but no device that it can use"
        return f"missing: no device that can be used ({reason.rstrip(' :')})"
    major, minor = info.compute_capability
    words = f"{info.name}, compute capability {major}.{minor}, {info.memory / 2**30:.0f} GiB"
    try:
        cupy, _ = load_cupy()
    except MissingBackend:
        return f"{words}; but CuPy or its cuBLAS is missing: {INSTALL}, or ask for matmul='own'"
    return f"ready ({words}, CuPy {cupy.__version__})"
