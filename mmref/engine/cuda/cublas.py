"""libcublas and libcublasLt, called directly: the dozen functions that products.py needs, with their C types.

Everything that a stream capture refuses (a handle, its stream, its workspace, its math mode, a choice of algorithm)
happens once, before any plan runs; what a plan calls is `Handle.multiply` or `Fused.multiply`, which launches and does
nothing else. The numbers are those of NVIDIA's headers cublas_api.h and cublasLt.h, the same in CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache

from mmref.engine.cuda.device import allocate
from mmref.errors import MissingBackend
from mmref.kernels.cuda.driver import INSTALL, SIMULATOR, cuda
from mmref.kernels.cuda.launch import address

WORKSPACE_BYTES = 32 << 20  # what cuBLAS recommends from compute capability 9.0 on; 4 MiB before
REMEDY = f"{INSTALL}, or ask for matmul='own', our own slower kernel"
PEDANTIC_MATH, TF32_MATH = 2, 3                # cublasMath_t
COMPUTE_PEDANTIC, COMPUTE_TF32 = 69, 77        # cublasComputeType_t: 32F_PEDANTIC, 32F_FAST_TF32
FLOAT32 = 0                                    # CUDA_R_32F
EPILOGUE, BIAS_POINTER = 7, 8                  # cublasLtMatmulDescAttributes_t
DEFAULT, RELU, BIAS = 1, 2, 4                  # cublasLtEpilogue_t; RELU | BIAS is a value, too
MOST_WORKSPACE, REDUCTIONS, ALIGNMENTS = 1, 3, (5, 6, 7, 8)  # cublasLtMatmulPreferenceAttributes_t; A, B, C, D
SPLIT_K, REDUCTION = 2, 3                      # cublasLtMatmulAlgoConfigAttributes_t
CHOICES = 16                                   # algorithms to ask the heuristic for
STATUS = {1: "not initialized", 3: "allocation failed", 7: "invalid value", 8: "architecture mismatch",
          11: "mapping error", 13: "execution failed", 14: "internal error", 15: "not supported", 16: "license error"}


class Algorithm(Structure):
    """cublasLtMatmulAlgo_t: a kernel and how it divides the work; opaque."""

    _fields_ = [("data", c_uint64 * 8)]


class Found(Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [("algorithm", Algorithm), ("workspace", c_size_t), ("state", c_int), ("waves", c_float),
                ("reserved", c_int * 4)]


PROTOTYPES = {
    "cublasCreate_v2": (POINTER(c_void_p),),
    "cublasDestroy_v2": (c_void_p,),
    "cublasSetStream_v2": (c_void_p, c_void_p),
    "cublasSetWorkspace_v2": (c_void_p, c_void_p, c_size_t),
    "cublasSetMathMode": (c_void_p, c_int),
    "cublasSgemm_v2": (c_void_p, c_int, c_int, c_int, c_int, c_int, POINTER(c_float), c_void_p, c_int, c_void_p, c_int,
                       POINTER(c_float), c_void_p, c_int),
    "cublasLtCreate": (POINTER(c_void_p),),
    "cublasLtDestroy": (c_void_p,),
    "cublasLtMatmulDescCreate": (POINTER(c_void_p), c_int, c_int),
    "cublasLtMatmulDescDestroy": (c_void_p,),
    "cublasLtMatmulDescSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatrixLayoutCreate": (POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutDestroy": (c_void_p,),
    "cublasLtMatmulPreferenceCreate": (POINTER(c_void_p),),
    "cublasLtMatmulPreferenceDestroy": (c_void_p,),
    "cublasLtMatmulPreferenceSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatmulAlgoGetHeuristic": (c_void_p,) * 7 + (c_int, POINTER(Found), POINTER(c_int)),
    "cublasLtMatmulAlgoCheck": (c_void_p,) * 6 + (POINTER(Algorithm), POINTER(Found)),
    "cublasLtMatmulAlgoConfigGetAttribute": (POINTER(Algorithm), c_int, c_void_p, c_size_t, POINTER(c_size_t)),
    "cublasLtMatmul": (c_void_p, c_void_p, POINTER(c_float), c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_float),
                       c_void_p, c_void_p, c_void_p, c_void_p, POINTER(Algorithm), c_void_p, c_size_t, c_void_p),
}


class Library:
    """The functions of PROTOTYPES in `cublas` and `lt`, which ctypes loaded."""

    def __init__(self, cublas, lt):
        self.functions = {}
        for name, types in PROTOTYPES.items():
            function = getattr(lt if name.startswith("cublasLt") else cublas, name)
            function.argtypes, function.restype = types, c_int
            self.functions[name] = function

    def call(self, name: str, *arguments) -> None:
        """RuntimeError where the status is not success, MemoryError where it is a failed allocation."""
        status = self.functions[name](*arguments)
        if status:
            raise (MemoryError if status == 3 else RuntimeError)(
                f"{name}: status {status}, {STATUS.get(status, 'unknown to mmref')}")


@cache
def library() -> Library:
    """cuBLAS of the package nvidia-cublas, else of a toolkit on the machine; MissingBackend where there is none."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib
        found = [load_nvidia_dynamic_lib(name).abs_path for name in ("cublasLt", "cublas")]
        lt, cublas = map(ctypes.CDLL, found)
        return Library(cublas, lt)
    except Exception as error:  # not found, not loadable, a function missing: each has its own class
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingBackend(f"backend 'cuda' multiplies matrices with cuBLAS, which cannot be loaded ({words}): "
                             f"{REMEDY}") from error


def _close(library, name, handle):
    library.functions[name](handle)  # its status helps nobody any more


def _start(create: str):
    """(libraries, a new handle) on the current device; MissingBackend where there are none."""
    if SIMULATOR:
        raise MissingBackend("the simulator has no cuBLAS: ask for matmul='own'")
    loaded, handle = library(), c_void_p()
    cuda.current_context()
    try:
        loaded.call(create, byref(handle))
    except RuntimeError as error:
        raise MissingBackend(f"backend 'cuda' cannot start cuBLAS ({error}): {REMEDY}") from error
    return loaded, handle


def _owned(owner, library, destroy: str, handle):
    """Have `destroy` called on a handle when its owner goes; not at the interpreter's end, where the driver may be
    gone already and the process's memory is freed anyway."""
    weakref.finalize(owner, _close, library, destroy, handle).atexit = False
    return handle


class Described:
    """A description made by cublasLt, destroyed when nobody refers to it any more; an argument of its functions."""

    def __init__(self, library, kind: str, *arguments):
        made = c_void_p()
        library.call(f"cublasLt{kind}Create", byref(made), *arguments)
        self._as_parameter_ = _owned(self, library, f"cublasLt{kind}Destroy", made)
        self.library, self.kind = library, kind

    def set(self, attribute: int, value) -> None:
        self.library.call(f"cublasLt{self.kind}SetAttribute", self, attribute, byref(value), ctypes.sizeof(value))


class Handle:
    """A cuBLAS context on one stream. `multiply` is all that a plan calls."""

    def __init__(self, stream, tf32: bool):
        self.library, handle = _start("cublasCreate_v2")
        self.handle = _owned(self, self.library, "cublasDestroy_v2", handle)
        self.library.call("cublasSetStream_v2", handle, int(stream))
        self.workspace = allocate((WORKSPACE_BYTES // 4,))  # behind the stream, which resets it
        self.library.call("cublasSetWorkspace_v2", handle, address(self.workspace), WORKSPACE_BYTES)
        self.library.call("cublasSetMathMode", handle, TF32_MATH if tf32 else PEDANTIC_MATH)
        self.one, self.zero = c_float(1), c_float(0)

    def multiply(self, a: int, lda: int, matrix, out: int, ldc: int, rows: int) -> None:
        """One product at these addresses; pitches in floats. cuBLAS counts columns first: out^T = weight^T a^T."""
        self.library.call("cublasSgemm_v2", self.handle, 0, 0, matrix.columns, rows, matrix.depth, byref(self.one),
                          address(matrix.weight), matrix.pitch, a, lda, byref(self.zero), out, ldc)


class Fused:
    """cublasLt on one stream: products with bias, one shortcut and ReLU inside, by one algorithm for all row counts.

    An algorithm is the heuristic's first for `TYPICAL` rows that does not divide the sum (no split K, no reduction, no
    workspace): a row's sum is then in an order that does not depend on how many rows there are."""

    TYPICAL = 16_384

    def __init__(self, stream, tf32: bool):
        self.stream, (self.library, handle) = int(stream), _start("cublasLtCreate")
        self.handle = _owned(self, self.library, "cublasLtDestroy", handle)
        self.compute = COMPUTE_TF32 if tf32 else COMPUTE_PEDANTIC
        self.one, self.zero = c_float(1), c_float(0)

    def describe(self, matrix, relu: bool, bias: bool):
        """The operation: what is multiplied how, and what follows."""
        made = Described(self.library, "MatmulDesc", self.compute, FLOAT32)
        made.set(EPILOGUE, c_int32((BIAS if bias else 0) | (RELU if relu else 0) or DEFAULT))
        if bias:
            made.set(BIAS_POINTER, c_void_p(address(matrix.bias)))
        return made

    def layouts(self, matrix, rows: int, lda: int, ldc: int, ldd: int):
        """(weight, a, shortcut, out) as cuBLAS sees them: columns first."""
        return [Described(self.library, "MatrixLayout", FLOAT32, *shape) for shape in
                ((matrix.columns, matrix.depth, matrix.pitch), (matrix.depth, rows, lda), (matrix.columns, rows, ldc),
                 (matrix.columns, rows, ldd))]

    def choose(self, operation, layouts, alignment: int) -> Algorithm | None:
        """The first algorithm that does not divide the sum; None where there is none. `layouts` of TYPICAL rows;
        alignment: of all addresses, in bytes."""
        preference = Described(self.library, "MatmulPreference")
        preference.set(MOST_WORKSPACE, c_uint64(0))
        preference.set(REDUCTIONS, c_uint32(0))
        for attribute in ALIGNMENTS:
            preference.set(attribute, c_uint32(alignment))
        found, count = (Found * CHOICES)(), c_int()
        try:
            self.library.call("cublasLtMatmulAlgoGetHeuristic", self.handle, operation, *layouts, preference, CHOICES,
                              found, byref(count))
        except RuntimeError:  # "not supported": no algorithm
            return None
        for choice in found[:count.value]:
            if choice.state == 0 and choice.workspace == 0 and not self._divides(choice.algorithm):
                return choice.algorithm
        return None

    def _divides(self, algorithm) -> bool:
        values = []
        for attribute, kind in ((SPLIT_K, c_int32), (REDUCTION, c_uint32)):
            value, written = kind(), c_size_t()
            self.library.call("cublasLtMatmulAlgoConfigGetAttribute", byref(algorithm), attribute, byref(value),
                              ctypes.sizeof(value), byref(written))
            values.append(value.value)
        return values[0] > 1 or values[1] != 0

    def runs(self, operation, layouts, algorithm) -> bool:
        """Whether the algorithm runs these layouts without a workspace."""
        found = Found()
        try:
            self.library.call("cublasLtMatmulAlgoCheck", self.handle, operation, *layouts, byref(algorithm),
                              byref(found))
        except RuntimeError:
            return False
        return found.state == 0 and found.workspace == 0

    def multiply(self, operation, layouts, algorithm, weight: int, a: int, shortcut: int | None, out: int) -> None:
        """One product at these addresses; without a shortcut `out` is not read."""
        beta, c = (self.zero, out) if shortcut is None else (self.one, shortcut)
        self.library.call("cublasLtMatmul", self.handle, operation, byref(self.one), weight, layouts[0], a, layouts[1],
                          byref(beta), c, layouts[2], out, layouts[3], byref(algorithm), None, 0, self.stream)
