"""libcublas and libcublasLt as far as mmref calls them, in NumPy on the host's memory.

Called through C's calling convention, with the types that NVIDIA's headers give (written down here once more, so that a
wrong one in mmref.engine.cuda.cublas is seen), and as strict as the libraries: a product without stream, workspace and
math mode is refused, a new stream takes the workspace away, and while `capturing` everything is refused that a stream
capture refuses. What was refused is in `refused`.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p

import numpy as np

from mmref.engine.cuda import cublas, products
from mmref.engine.cuda.cublas import Algorithm, Found, Library
from mmref.kernels.cuda import twins

HANDLE, REFERENCE = c_void_p, POINTER(c_void_p)
TYPES = {
    "cublasCreate_v2": (REFERENCE,), "cublasDestroy_v2": (HANDLE,), "cublasSetStream_v2": (HANDLE, c_void_p),
    "cublasSetWorkspace_v2": (HANDLE, c_void_p, c_size_t), "cublasSetMathMode": (HANDLE, c_int),
    "cublasSgemm_v2": (HANDLE, c_int, c_int, c_int, c_int, c_int, POINTER(c_float), c_void_p, c_int, c_void_p, c_int,
                       POINTER(c_float), c_void_p, c_int),
    "cublasLtCreate": (REFERENCE,), "cublasLtDestroy": (HANDLE,),
    "cublasLtMatmulDescCreate": (REFERENCE, c_int, c_int), "cublasLtMatmulDescDestroy": (HANDLE,),
    "cublasLtMatmulDescSetAttribute": (HANDLE, c_int, c_void_p, c_size_t),
    "cublasLtMatrixLayoutCreate": (REFERENCE, c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutDestroy": (HANDLE,), "cublasLtMatmulPreferenceCreate": (REFERENCE,),
    "cublasLtMatmulPreferenceDestroy": (HANDLE,),
    "cublasLtMatmulPreferenceSetAttribute": (HANDLE, c_int, c_void_p, c_size_t),
    "cublasLtMatmulAlgoGetHeuristic": (HANDLE, HANDLE, HANDLE, HANDLE, HANDLE, HANDLE, HANDLE, c_int, POINTER(Found),
                                       POINTER(c_int)),
    "cublasLtMatmulAlgoCheck": (HANDLE, HANDLE, HANDLE, HANDLE, HANDLE, HANDLE, POINTER(Algorithm), POINTER(Found)),
    "cublasLtMatmulAlgoConfigGetAttribute": (POINTER(Algorithm), c_int, c_void_p, c_size_t, POINTER(c_size_t)),
    "cublasLtMatmul": (HANDLE, HANDLE, POINTER(c_float), c_void_p, HANDLE, c_void_p, HANDLE, POINTER(c_float), c_void_p,
                       HANDLE, c_void_p, HANDLE, POINTER(Algorithm), c_void_p, c_size_t, c_void_p),
}
IN_CAPTURE = ("cublasSgemm_v2", "cublasLtMatmul")  # all that may be called while a stream is captured
SPLITTING, WHOLE = 1, 2  # algorithms: one that divides the sum, one that does not
STREAM = 7777                                      # the address of the tests' stream


def array_at(pointer, rows, columns, pitch):
    """Host memory as a row-major array: columns-first of cuBLAS, read the other way round."""
    if not rows:
        return np.zeros((0, columns), np.float32)
    flat = np.ctypeslib.as_array(ctypes.cast(pointer, POINTER(c_float)), ((rows - 1) * pitch + columns,))
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (4 * pitch, 4))


class StandIn:
    """The libraries. `product(a, b)` is what they compute; `divided(a, b)` what an algorithm does that splits sums;
    `only`: the algorithms that the heuristic knows; `most_rows`: of a call that the algorithms take."""

    def __init__(self, product, divided=None, only=(SPLITTING, WHOLE), most_rows=10**9):
        self.product, self.divided, self.only, self.most_rows = product, divided or product, only, most_rows
        self.things, self.capturing, self.refused, self.calls, self.errors = {}, False, [], [], []
        for name, types in TYPES.items():
            setattr(self, name, ctypes.CFUNCTYPE(c_int, *types)(self._guarded(name)))

    def library(self) -> Library:
        return Library(self, self)

    def _guarded(self, name):
        def call(*arguments):
            if self.capturing and name not in IN_CAPTURE:
                self.refused.append(name)
                return 14
            try:
                status = getattr(self, f"_{name}")(*arguments)
            except Exception as error:  # would be lost in ctypes
                self.errors.append(f"{name}: {error!r}")
                return 14
            if status not in (None, 0, 15):  # "not supported" is an answer
                self.refused.append(name)
            return status or 0
        return call

    def _new(self, reference, **fields):
        self.things[len(self.things) + 1] = fields
        reference[0] = len(self.things)

    def _gone(self, thing):
        self.things[thing]["gone"] = True

    # ---------------------------------------------------------------------------- cuBLAS

    def _cublasCreate_v2(self, reference):
        self._new(reference, stream=None, workspace=0, mode=None)

    _cublasDestroy_v2 = _cublasLtDestroy = _cublasLtMatmulDescDestroy = _gone
    _cublasLtMatrixLayoutDestroy = _cublasLtMatmulPreferenceDestroy = _gone

    def _cublasSetStream_v2(self, handle, stream):
        self.things[handle] |= {"stream": stream, "workspace": 0}

    def _cublasSetWorkspace_v2(self, handle, address, size):
        assert address
        self.things[handle]["workspace"] = size

    def _cublasSetMathMode(self, handle, mode):
        self.things[handle]["mode"] = mode

    def _cublasSgemm_v2(self, handle, ta, tb, m, n, k, one, b, ldb, a, lda, zero, c, ldc):
        state = self.things[handle]
        if state["stream"] != STREAM or state["workspace"] < 32 << 20 or state["mode"] is None:
            return 14  # would allocate, or run on another stream
        assert (ta, tb, one[0], zero[0]) == (0, 0, 1, 0) and ldb >= m and lda >= k and ldc >= m
        self.calls.append(n)
        array_at(c, n, m, ldc)[...] = self.product(array_at(a, n, k, lda), array_at(b, k, m, ldb))

    # -------------------------------------------------------------------------- cublasLt

    def _cublasLtCreate(self, reference):
        self._new(reference)

    def _cublasLtMatmulDescCreate(self, reference, compute, scale):
        assert scale == 0
        self._new(reference, compute=compute, epilogue=1, bias=None)

    def _cublasLtMatmulDescSetAttribute(self, thing, attribute, value, size):
        name, kind, expected = {7: ("epilogue", c_int, 4), 8: ("bias", c_void_p, 8)}[attribute]
        assert size == expected
        self.things[thing][name] = ctypes.cast(value, POINTER(kind))[0]

    def _cublasLtMatrixLayoutCreate(self, reference, kind, rows, columns, pitch):
        assert kind == 0 and pitch >= rows
        self._new(reference, rows=rows, columns=columns, pitch=pitch)

    def _cublasLtMatmulPreferenceCreate(self, reference):
        self._new(reference, workspace=0, reductions=7, alignment=[256] * 4)

    def _cublasLtMatmulPreferenceSetAttribute(self, thing, attribute, value, size):
        kind = {1: c_uint64}.get(attribute, ctypes.c_uint32)
        assert size == ctypes.sizeof(kind)
        found = ctypes.cast(value, POINTER(kind))[0]
        if attribute in (5, 6, 7, 8):
            self.things[thing]["alignment"][attribute - 5] = found
        else:
            self.things[thing][{1: "workspace", 3: "reductions"}[attribute]] = found

    def _live(self, *things):
        assert all("gone" not in self.things[thing] for thing in things), "a description destroyed before its use"
        return [self.things[thing] for thing in things]

    def _fits(self, operation, weight, a, shortcut, out):
        (operation, *layouts) = self._live(operation, weight, a, shortcut, out)
        (m, k), (k_too, n), *results = ((layout["rows"], layout["columns"]) for layout in layouts)
        assert k == k_too and results == [(m, n), (m, n)]
        return m, n, k

    def _cublasLtMatmulAlgoGetHeuristic(self, handle, operation, weight, a, shortcut, out, preference, most, found,
                                        count):
        self._fits(operation, weight, a, shortcut, out)
        (preference,) = self._live(preference)
        assert preference["workspace"] == 0 and min(preference["alignment"]) >= 4
        for i, number in enumerate(self.only[:most]):
            found[i].algorithm.data[0], found[i].state, found[i].workspace = number, 0, 0
            found[i].algorithm.data[1] = preference["alignment"][3]
        count[0] = len(self.only[:most])
        return 0 if self.only else 15

    def _cublasLtMatmulAlgoConfigGetAttribute(self, algorithm, attribute, value, size, written):
        splits = algorithm[0].data[0] == SPLITTING
        assert size == 4 and attribute in (2, 3)
        ctypes.cast(value, POINTER(c_int))[0] = (4 if splits else 1) if attribute == 2 else int(splits)
        written[0] = 4

    def _cublasLtMatmulAlgoCheck(self, handle, operation, weight, a, shortcut, out, algorithm, found):
        _, n, _ = self._fits(operation, weight, a, shortcut, out)
        found[0].state, found[0].workspace = (0, 0) if n <= self.most_rows else (15, 0)
        return found[0].state

    def _cublasLtMatmul(self, handle, operation, one, b, weight, a, left, beta, c, shortcut, d, out, algorithm,
                        workspace, size, stream):
        m, n, k = self._fits(operation, weight, left, shortcut, out)
        operation, weight, left, shortcut, out = self._live(operation, weight, left, shortcut, out)
        if stream != STREAM or size or n > self.most_rows:
            return 7
        alignment = algorithm[0].data[1]
        assert all(pointer % alignment == 0 for pointer in (a, b, c, d)), "an address less aligned than was said"
        assert one[0] == 1 and beta[0] in (0, 1) and (c != d or shortcut["pitch"] == out["pitch"])
        self.calls.append(n)
        product = self.divided if algorithm[0].data[0] == SPLITTING else self.product
        y = product(array_at(a, n, k, left["pitch"]), array_at(b, k, m, weight["pitch"]))
        if beta[0]:
            y = y + array_at(c, n, m, shortcut["pitch"])
        if operation["epilogue"] & 4:
            y = y + array_at(operation["bias"], 1, m, m)
        if operation["epilogue"] & 2:
            y = np.maximum(y, 0)
        array_at(d, n, m, out["pitch"])[...] = y


# ------------------------------------------------------------------------- in place of what needs a device

class Stream:
    """A stream on which everything is done at once."""

    def __int__(self):
        return STREAM

    def synchronize(self):
        pass


class _Array(np.ndarray):
    def copy_to_host(self, stream=0):
        return np.array(self)


class _Cuda:
    """Of numba.cuda what products need, on the host."""

    current_context = staticmethod(lambda: None)
    device_array = staticmethod(np.empty)
    to_device = staticmethod(lambda array, stream=0: np.array(array).view(_Array))


def _repeat_rows(x, out, *, stream=0):
    out, x = twins.host(out), twins.host(x)
    out[...] = x[np.arange(len(out)) % len(x)]


def _compare_rows(x, expected, found, *, stream=0):
    x, expected = np.ascontiguousarray(twins.host(x)), np.ascontiguousarray(twins.host(expected))
    if (x.view(np.int32) != expected.view(np.int32)[np.arange(len(x)) % len(expected)]).any():
        found[0] = 1


def install(monkeypatch, stand_in: StandIn) -> StandIn:
    """Have products use it, and NumPy in the kernels' place; needs no device, nor the simulator."""
    monkeypatch.setattr(cublas, "library", stand_in.library)
    monkeypatch.setattr(cublas, "SIMULATOR", False)
    monkeypatch.setattr(cublas, "cuda", _Cuda)
    monkeypatch.setattr(cublas, "allocate", lambda shape: np.empty(shape, np.float32))
    monkeypatch.setattr(products, "cuda", _Cuda)
    monkeypatch.setattr(products, "repeat_rows", _repeat_rows)
    monkeypatch.setattr(products, "compare_rows", _compare_rows)
    monkeypatch.setattr(products, "epilogue", twins.epilogue)
    monkeypatch.setattr(products, "matmul", twins.matmul)
    return stand_in
