"""Kernels compiled, kept, loaded and launched, as far as that goes without a device: with a stand-in for the driver."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

import compile_kernels

from mmref.errors import MissingBackend, ValueProblem
from mmref.kernels import cache
from mmref.kernels.cuda import compiler, driver, join, launch, pool, scan

CAPABILITY = (9, 0)
COPY = compiler.Kernel("mmref.kernels.cuda.join", "copy_relu_kernel", (1,), join.SIGNATURE, 256)
MEAN = compiler.Kernel("mmref.kernels.cuda.pool", "mean_kernel", (1,), pool.SIGNATURE, 256)
BROKEN = compiler.Kernel("mmref.kernels.cuda.pool", "mean_kernel", (1,), "void(float32[:, :], int32, int32)", 256)


def is_machine_code(code) -> bool:
    """Whether it is an ELF file for NVIDIA's processors with the kernel's name in it."""
    return code.cubin[:4] == b"\x7fELF" and code.cubin[18] == 190 and code.entry.encode() in code.cubin


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("MMREF_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---------------------------------------------------------------------------------------- compiling

def test_compiled_side_by_side(capfd):
    """Catches a process that compiles something else, loses a kernel, or whose death loses one silently."""
    assert {kernel: is_machine_code(code) for kernel, code in compiler.compile_all([COPY, MEAN], CAPABILITY, 2)} == {
        COPY: True, MEAN: True}
    assert capfd.readouterr().err == ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler.Worker, "START", "raise SystemExit('no such machine')")
        patch.setattr(compiler, "compile_here", lambda kernel, capability: "here")
        assert dict(compiler.compile_all([COPY, MEAN], CAPABILITY, 2)) == {COPY: "here", MEAN: "here"}
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and "no such machine" in said
        patch.setattr(sys, "executable", "/no/such/python")
        assert len(dict(compiler.compile_all([COPY, MEAN], CAPABILITY, 1))) == 2
        assert "/no/such/python" in capfd.readouterr().err
    with pytest.raises(compiler.CompileError, match="mean_kernel"):
        list(compiler.compile_all([BROKEN, COPY], CAPABILITY, 1))
    assert issubclass(compiler.CompileError, MissingBackend)  # a line in words, not a traceback


def test_few_kernels_are_compiled_here(monkeypatch):
    """Catches two seconds spent on starting a process for a kernel of one second."""
    monkeypatch.setattr(compiler, "compile_here", lambda kernel, capability: "here")
    monkeypatch.setattr(compiler, "Worker", None)
    assert dict(compiler.compile_all([COPY, MEAN], CAPABILITY)) == {COPY: "here", MEAN: "here"}


# --------------------------------------------------------------------------------------------- kept

def test_names_of_kept_code(monkeypatch):
    """Catches code taken for that of another kernel, card, driver, source or version."""
    names = [compiler.kept_name(COPY, CAPABILITY, 13000), compiler.kept_name(MEAN, CAPABILITY, 13000),
             compiler.kept_name(COPY, (8, 0), 13000), compiler.kept_name(COPY, CAPABILITY, 13010)]
    for constants, threads, blocks in (((4,), 256, 1), ((1,), 128, 1), ((1,), 256, 2)):
        changed = compiler.Kernel(COPY.module, COPY.factory, constants, COPY.signature, threads, blocks)
        names.append(compiler.kept_name(changed, CAPABILITY, 13000))
    for name in compiler.TOOLS:
        with monkeypatch.context() as patch:
            patch.setattr(compiler, "_version", lambda package, name=name: "x" if package == name else "1")
            compiler._surroundings.cache_clear()
            names.append(compiler.kept_name(COPY, CAPABILITY, 13000))
    compiler._surroundings.cache_clear()
    real = compiler.Path.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(compiler.Path, "read_bytes", lambda path: real(path) + b" " * (path.name == "device.py"))
        names.append(compiler.kept_name(COPY, CAPABILITY, 13000))
    compiler._surroundings.cache_clear()
    assert len(set(names)) == len(names)
    assert compiler.kept_name(COPY, CAPABILITY, 13000) == names[0]


def test_kept_code(folder):
    """Catches code that comes back changed, damaged code that is loaded, and a folder that others can write to."""
    code = compiler.Code("entry", bytes(range(256)) * 3)
    assert compiler.read(COPY, CAPABILITY, 13000) is None
    assert compiler.keep(COPY, code, CAPABILITY, 13000)
    assert compiler.read(COPY, CAPABILITY, 13000) == code
    assert compiler.read(COPY, CAPABILITY, 12090) is None and compiler.read(MEAN, CAPABILITY, 13000) is None
    path = folder / compiler.kept_name(COPY, CAPABILITY, 13000)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert compiler.read(COPY, CAPABILITY, 13000) is None
    path.write_bytes(whole)
    folder.chmod(0o777)
    assert compiler.read(COPY, CAPABILITY, 13000) is None
    assert not compiler.keep(COPY, code, CAPABILITY, 13000)


# --------------------------------------------------------------------------------- loaded and launched

class Status(int):
    name = "CUDA_ERROR_INVALID_IMAGE"


class Driver:
    """cuda.bindings.driver as far as kernels need it: (status, results...) each."""

    def __init__(self):
        self.images, self.launches, self.refuse = [], [], lambda image: False

    def cuDriverGetVersion(self):
        return 0, 13000

    def cuModuleLoadData(self, address):
        image = ctypes.string_at(address, 4)
        self.images.append(image)
        return (Status(200), None) if self.refuse(image) else (0, len(self.images))

    def cuModuleGetFunction(self, module, name):
        return 0, (module, name)

    def cuLaunchKernel(self, function, *rest):
        *sizes, shared, stream, pointers, extra = rest
        assert len(sizes) == 6 and shared == 0 and extra == 0
        self.launches.append((function, tuple(sizes), stream, pointers))
        return 0,


class DeviceArray:
    """What launches ask of an array on the device."""

    __cuda_ndarray__ = True

    def __init__(self, shape, strides, address):
        self.shape, self.strides, self.dtype, self.size = shape, strides, np.dtype(np.float32), int(np.prod(shape))
        self.device_ctypes_pointer = ctypes.c_void_p(address)


@pytest.fixture
def on_device(monkeypatch, folder):
    """Kernels as on a device, over a stand-in for its driver; compiled to four bytes."""
    stand_in = Driver()
    monkeypatch.setattr(driver, "binding", lambda: stand_in)
    monkeypatch.setattr(launch, "device", lambda: SimpleNamespace(compute_capability=CAPABILITY))
    monkeypatch.setattr(launch, "cuda", SimpleNamespace(current_context=lambda: None))
    compiled = []

    def compile_all(kernels, capability):
        compiled.extend(kernels)
        return ((kernel, compiler.Code(kernel.factory, b"code")) for kernel in kernels)
    monkeypatch.setattr(compiler, "compile_all", compile_all)
    launch.build.cache_clear()
    yield SimpleNamespace(driver=stand_in, compiled=compiled)
    launch.build.cache_clear()


def maps(rows=5, columns=7):
    return DeviceArray((rows, columns), (64, 4), 4096), DeviceArray((rows, columns), (128, 4), 2**40 + 256)


def test_a_launch(on_device):
    """Catches arguments packed otherwise than a kernel takes them, sizes in another order, another stream."""
    x, out = maps()
    join.copy_relu(x, out, stream=77)
    (function, sizes, stream, _), = on_device.driver.launches
    assert function == (1, b"copy_relu_kernel") and sizes == (1, 1, 1, 8, 32, 1) and stream == 77
    kernel = launch.build(join.copy_relu_kernel, 1, threads=256)
    values = [ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int64))[0] for pointer in kernel.pointers]
    assert values == [0, 0, 35, 4, 4096, 5, 7, 64, 4, 0, 0, 35, 4, 2**40 + 256, 5, 7, 128, 4]
    pool.mean(x, out, images=1, length=5)
    kernel = launch.build(pool.mean_kernel, 1, threads=256)
    assert ctypes.cast(kernel.pointers[-1], ctypes.POINTER(ctypes.c_int32))[0] == 5
    with pytest.raises(TypeError, match="rank 2"):
        kernel[1, 1, 0](DeviceArray((5,), (4,), 4096), out, 5)


def test_compiled_once_loaded_once(on_device):
    """Catches a kernel compiled again in another process or launch, and code that is never kept."""
    for _ in range(2):
        join.copy_relu(*maps())
    assert [kernel.factory for kernel in on_device.compiled] == ["copy_relu_kernel"]
    assert len(on_device.driver.images) == 1
    launch.build.cache_clear()  # as in another process
    join.copy_relu(*maps())
    assert len(on_device.compiled) == 1 and len(on_device.driver.images) == 2
    assert len(on_device.driver.launches) == 3


def test_kept_code_that_cannot_be_loaded(on_device, capsys):
    """Catches a driver's refusal passed on to the caller, or passed over in silence; good code takes its place."""
    compiler.keep(COPY, compiler.Code("copy_relu_kernel", b"old!"), CAPABILITY, 13000)
    on_device.driver.refuse = lambda image: image == b"old!"
    join.copy_relu(*maps())
    assert len(on_device.compiled) == 1 and len(on_device.driver.launches) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "copy_relu_kernel" in said and "CUDA_ERROR_INVALID_IMAGE" in said
    assert compiler.read(COPY, CAPABILITY, 13000).cubin == b"code"


def test_no_folder_to_keep_code_in(on_device, monkeypatch, capsys):
    """Catches minutes of compiling in every process without a word of why."""
    monkeypatch.setattr(cache, "keep", lambda name, code: False)
    join.copy_relu(*maps())
    assert "compiled anew in every process" in capsys.readouterr().err
    assert len(on_device.driver.launches) == 1


def test_what_launches_need(on_device):
    """Catches launches that happen while kernels are only looked for, kernels left out, and a mode that stays on."""
    def some():
        join.copy_relu(*maps())
        pool.mean(*maps(), images=1, length=5)
        assert not launch.launching()
    found = launch.needed(some)
    assert {kernel.kernel.factory for kernel in found} == {"copy_relu_kernel", "mean_kernel"}
    assert not on_device.driver.launches and not on_device.compiled and launch.launching()
    launch.load(found)
    assert len(on_device.compiled) == 2
    with pytest.raises(ZeroDivisionError):
        launch.needed(lambda: 1 / 0)
    assert launch.launching()


def test_arguments_are_what_kernels_take():
    """Catches a convention of Numba's other than ours: number and sizes of the parameters in a kernel's PTX.

    The compile check looks at every kernel in the same way."""
    compiler.without_a_device(CAPABILITY)
    for kernel in (COPY, MEAN, compiler.Kernel("mmref.kernels.cuda.scan", "scan_kernel", (1, 1, 8), scan.SIGNATURE, 8)):
        ptx = compiler.compile_ptx(kernel, CAPABILITY)
        assert compile_kernels.parameters_differ(kernel, ptx) == 0
        fewer = ptx.replace(re.search(r"\.param \.u64 [^,]*,", ptx)[0], "", 1)
        assert compile_kernels.parameters_differ(kernel, fewer) == 1


THROUGH_THE_BINDINGS = """
import contextlib, ctypes
from types import SimpleNamespace
from mmref.kernels.cuda import driver, launch, compiler, pool
from mmref.engine.cuda import device

class Stream:
    def __init__(self, pointer):
        self.pointer = pointer
    def __int__(self):
        return self.pointer

class Array:
    __cuda_ndarray__ = True
    def __init__(self, shape, strides, size, address):
        self.shape, self.strides, self.size, self.dtype = shape, strides, size, SimpleNamespace(itemsize=4)
        self.device_ctypes_pointer = ctypes.c_void_p(address)

launch.cuda = SimpleNamespace(current_context=lambda: None)
device.cuda = SimpleNamespace(current_context=lambda: None, external_stream=Stream,
                              defer_cleanup=contextlib.nullcontext)
kernel = launch.build(pool.mean_kernel, 1, threads=256)
kernel.take(compiler.Code("mean", b"\\x7fELF"))
stream = device.new_stream()
def run():
    kernel[3, (32, 8), stream](Array((5, 7), (64, 4), 35, 4096), Array((1, 7), (128, 4), 7, 2**40 + 256), -5)
run()
graph = device.Graph(stream, run)
graph.launch()
del graph, stream
try:
    driver.call("cuStreamCreate", 5)
except MemoryError as error:
    print(error, flush=True)
"""


def test_the_driver_is_called_as_it_wants(tmp_path):
    """Catches an argument that cuda.bindings takes for something else, a stream that waits for the default one, a
    status that is not looked at, streams and graphs never given back: through the bindings to a library in the driver's
    place."""
    compile_c = shutil.which("cc") or shutil.which("gcc")
    if compile_c is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler, and Linux's names of libraries")
    subprocess.run([compile_c, "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), "-Wl,-soname,libcuda.so.1",
                    str(Path(__file__).parent / "stub_driver.c"), "-ldl"], check=True)
    done = subprocess.run([sys.executable, "-c", THROUGH_THE_BINDINGS], capture_output=True, text=True,
                          env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)})
    launched = "launch 0x22 3 1 1 32 8 1 0 0x77 0: 0 0 35 4 4096 5 7 64 4 0 0 7 4 1099511628032 1 7 128 4 -5"
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    lines.remove("cuStreamCreate: CUDA_ERROR_OUT_OF_MEMORY")  # Python's and C's lines are buffered apart
    assert lines == ["load ELF", "function 0x11 mean", "stream 1", launched, "capture 0x77 2", launched,
                     "captured 0x77", "instantiate 0x33 0", "no graph 0x33", "replay 0x44 0x77", "no executable 0x44",
                     "no stream 0x77", "stream 5"]


# ------------------------------------------------------------------------------------------------ grids

@pytest.mark.parametrize("images, side", [(70_000, 64), (1, 6000)])
def test_grids(images, side):
    """Catches a batch of more than 65,535 pictures, or a picture of many pixels, in a dimension of the grid that ends
    there."""
    Shape = compile_kernels.Shape
    pixels = images * side * side
    x, one, few = Shape(pixels, 48), Shape(1), Shape(images, 48)

    def launches(modules):
        modules["depthwise"].depthwise(x, one, one, x, images=images, height=side, width=side,
                                       filter_shape=(3, 3), stride=1, padding=1)
        modules["scan"].scan(x, x, x, one, one, one, x, images=images, length=side * side, rank=3)
        modules["wavelet_branch"].wavelet_branch(x, one, x, images=images, height=side, width=side, kernel=3)
        modules["norm_gate"].norm_gate(x, x, one, one, x)
        modules["join"].copy_relu(x, x)
        modules["pool"].mean(x, few, images=images, length=side * side)
        modules["squeeze_excite"].gate(x, few, images=images, length=side * side)
        modules["layout"].to_channels_first(x, x, images=images, pixels=side * side)
        modules["layout"].to_contiguous(Shape(images, 3, side, side), x)
        modules["epilogue"].epilogue(x, None)
        modules["matmul"].matmul(x, x, None, x)
        modules["stem"].stem(x, x, one, Shape(pixels // 4, 48), images=images, height=side, width=side, c_in=48,
                             filter_shape=(3, 3), stride=2, padding=1, relu=True, nchw=False)
        modules["rows"].repeat_rows(x, x)
    found = compile_kernels.kernels(launches)
    assert len(found) == 13
    for name, launched in found.items():
        for grid in launched.grids:
            launch.check_grid(name, grid)


def test_grids_beyond_any_device():
    """Catches the driver's own error, without a remedy, where a grid cannot be launched."""
    for grid in (2**31, (1, 65_536), (1, 1, 65_536), 0, (1, 0)):
        with pytest.raises(ValueProblem, match="smaller batch"):
            launch.check_grid("kernel", grid)
    assert launch.check_grid("kernel", (2**31 - 1, 65_535)) == (2**31 - 1, 65_535, 1)


# ----------------------------------------------------------------------------------- the door to numba.cuda

WITHOUT_ROW_STACK = """
import numpy as np
vars(np).pop("row_stack", None)
np.__all__ = [name for name in np.__all__ if name != "row_stack"]  # SciPy copies all of these
assert not hasattr(np, "row_stack")
from mmref.kernels.cuda import compiler, join
compiler.without_a_device((9, 0))
kernel = compiler.Kernel("mmref.kernels.cuda.join", "copy_relu_kernel", (1,), join.SIGNATURE, 256)
print(compiler.entry_of(compiler.compile_ptx(kernel, (9, 0))))
assert not hasattr(np, "row_stack")
"""
# as where packages lie in a folder on PYTHONPATH, whose .pth files Python does not read
WITHOUT_REDIRECTION = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "NumbaCudaFinder"]
sys.modules.pop("_numba_cuda_redirector", None)
{before}
from mmref.errors import MissingBackend
try:
    from mmref.kernels.cuda.driver import cuda
    print(cuda.__file__)
except MissingBackend as error:
    print(error)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_numpy_without_row_stack():
    """Catches NumPy 2.5, beside which no kernel compiles unless numba-cuda finds the name it registers; and a name left
    behind in everybody's NumPy."""
    assert "copy_relu_kernel" in run(WITHOUT_ROW_STACK)


def test_which_numba_cuda():
    """Catches the unmaintained copy inside numba, taken where numba-cuda's own way of replacing it did not work."""
    assert "numba_cuda" in run(WITHOUT_REDIRECTION.format(before=""))
    said = run(WITHOUT_REDIRECTION.format(before="import numba.cuda"))
    assert "copy inside numba" in said and "pip install" in said
