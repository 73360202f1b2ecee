"""What the engine asks of the device beyond kernels: memory, streams, graphs, and other libraries' arrays."""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import suppress

import numpy as np

from mmref.errors import MissingBackend, ShapeError
from mmref.kernels.cuda.driver import INSTALL, SIMULATOR, binding, call, cuda, device
from mmref.kernels.cuda.launch import load, needed
from mmref.kernels.cuda.layout import to_contiguous

NON_BLOCKING = 1  # CUstream_flags


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


# --------------------------------------------------------------------------------------------- streams

def new_stream():
    """A stream of our own that does not wait for the default stream, nor that for it: work that someone else puts
    there while we capture a graph would otherwise end the capture."""
    if SIMULATOR:
        return cuda.stream()
    cuda.current_context()
    handle = call("cuStreamCreate", NON_BLOCKING)
    stream = cuda.external_stream(int(handle))
    weakref.finalize(stream, _destroy, "cuStreamDestroy", handle).atexit = False
    return stream


def wait_for_uploads() -> None:
    """Wait for what was uploaded on the default stream, which our own does not wait for."""
    if not SIMULATOR:
        cuda.default_stream().synchronize()


def wait_for(first, then) -> None:
    """What is put on stream `then` from now on begins after what is on `first` by now."""
    event = new_event()
    event.record(first)
    event.wait(then)


def new_event():
    """An event without a time."""
    return cuda.event() if SIMULATOR else cuda.event(timing=False)


class Lent:
    """Arrays of callers that our stream still reads or writes, kept alive until it is done with them."""

    def __init__(self):
        self._held = deque()

    def hold(self, stream, *arrays) -> None:
        """Keep these until what is on the stream by now is done; let go of earlier ones that are."""
        if SIMULATOR:
            return
        event = new_event()
        event.record(stream)
        self._held.append((event, arrays))
        while self._held[0][0].query():
            self._held.popleft()
            if not self._held:
                break


def _destroy(function, handle) -> None:
    with suppress(RuntimeError):  # the context is gone, and everything in it
        call(function, handle)


# --------------------------------------------------------------------------------------------- graphs

class Graph:
    """Launches captured from a stream. While capturing nothing may be allocated, freed, waited for or compiled."""

    def __init__(self, stream, launch):
        self.stream = int(stream)
        relaxed = binding().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED  # other threads may call the driver
        with cuda.defer_cleanup():
            call("cuStreamBeginCapture", self.stream, relaxed)
            try:
                launch()
            except BaseException:
                with suppress(RuntimeError):  # the capture must end; that it came to nothing is known already
                    call("cuGraphDestroy", call("cuStreamEndCapture", self.stream))
                raise
            graph = call("cuStreamEndCapture", self.stream)
        self.executable = call("cuGraphInstantiate", graph, 0)
        weakref.finalize(self, _destroy, "cuGraphExecDestroy", self.executable).atexit = False
        call("cuGraphDestroy", graph)

    def launch(self) -> None:
        call("cuGraphLaunch", self.executable, self.stream)


def prepare(launches) -> None:
    """Compile, or load, every kernel that `launches()` launches, side by side; launches nothing."""
    load(needed(launches))


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
    """A Numba view of a device array, with its strides; ShapeError for other dtypes than float32."""
    array = x if getattr(x, "__cuda_ndarray__", False) else cuda.as_cuda_array(x, sync=False)
    if array.dtype != np.float32:
        raise ShapeError(f"x must be float32, the model's dtype, got {array.dtype}")
    return array


def put_in_order(view, out, stream) -> None:
    """Copy a view (B, C, H, W), however it lies, into a contiguous array on the stream."""
    if view.is_c_contiguous():
        out.copy_to_device(view, stream=stream)
    else:
        to_contiguous(view, out, stream=stream)


def caller_stream(x):
    """The stream on which the library of `x` works now, for Numba; its results are ready there in order."""
    if SIMULATOR:
        return cuda.default_stream()
    name = library(x)
    if name == "cupy":
        import cupy
        pointer = cupy.cuda.get_current_stream().ptr
    elif name == "torch":
        import torch
        pointer = torch.cuda.current_stream(x.device).cuda_stream
    else:
        pointer = getattr(x, "__cuda_array_interface__", {}).get("stream")
    return cuda.external_stream(pointer) if pointer else cuda.default_stream()


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
    from mmref.engine.cuda.cublas import library as cublas  # which needs this module
    try:
        cublas()
    except MissingBackend:
        return f"{words}; but cuBLAS is missing: {INSTALL}, or ask for matmul='own'"
    return f"ready ({words}, cuBLAS)"
