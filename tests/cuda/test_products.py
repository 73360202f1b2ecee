"""cuBLAS is asked for the same bits at every row count: shown with BLAS libraries that do not give them."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from importlib import import_module
from inspect import signature
from types import SimpleNamespace

import numpy as np
import pytest
from assertions import assert_close, rounding
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "mmref[test-cuda]"')

from mmref.engine.cuda import device, products
from mmref.engine.cuda.plan import KERNELS, View
from mmref.engine.cuda.products import CANONICAL, candidates, cover, make_products
from mmref.errors import MissingBackend, ValueProblem
from mmref.kernels.cuda import twins


def array_at(pointer, rows, columns, pitch):
    flat = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (rows * pitch,))
    return flat.reshape(rows, pitch)[:, :columns]


def in_order(a, b, first=0):
    """Sum over k from the `first` on and round again: another order, other bits."""
    total = np.zeros((len(a), b.shape[1]), np.float32)
    for k in np.roll(np.arange(len(b)), -first):
        total += a[:, k:k + 1] * b[k]
    return total


def honest(a, b):
    return in_order(a, b)


def by_rows(a, b):
    """Another order for few rows, and for many: what split sums do."""
    return in_order(a, b, 0 if 600 <= len(a) < 5000 else 3)


def by_place(a, b):
    """The last rows in another order: what happens where a grid of tiles does not divide evenly."""
    y = in_order(a, b)
    y[len(a) * 2 // 3:] = in_order(a[len(a) * 2 // 3:], b, 3)
    return y


def our_kernel(a, weight, bias, out, *, residual=None, residual2=None, relu=False, stream=0):
    twins.epilogue(in_order(a, weight), bias, residual=residual, residual2=residual2, relu=relu, out=out)


class FakeBlas:
    CUBLAS_OP_N = 0

    def __init__(self, product):
        self.product, self.row_counts = product, []

    def create(self):
        return 1

    def destroy(self, handle):
        pass

    def setMathMode(self, handle, mode):
        self.mode = mode

    def sgemm(self, handle, ta, tb, m, n, k, one, b, ldb, a, lda, zero, c, ldc):
        self.row_counts.append(n)
        assert array_at(one, 1, 1, 1) == 1 and array_at(zero, 1, 1, 1) == 0
        array_at(c, n, m, ldc)[...] = self.product(array_at(a, n, k, lda), array_at(b, k, m, ldb))


@pytest.fixture
def cublas(monkeypatch):
    """product -> a Cublas that multiplies NumPy arrays with it."""
    def make(product):
        cupy = SimpleNamespace(asarray=np.asarray, tile=np.tile, ascontiguousarray=np.ascontiguousarray,
                               cuda=SimpleNamespace(ExternalStream=lambda pointer: nullcontext()))
        monkeypatch.setattr(products, "load_cupy", lambda: (cupy, FakeBlas(product)))
        monkeypatch.setattr(products, "address", lambda array: array.ctypes.data)
        monkeypatch.setattr(products, "matmul", our_kernel)
        monkeypatch.setattr(products, "epilogue", twins.epilogue)
        return make_products("cublas", False, 0)
    return make


def multiply(cublas, x, weight, bias, residual=None, relu=False, place=0):
    """A product as a plan does it: maps in one block of memory, a column slice of a wider one as the output."""
    depth, columns, rows = *weight.shape, len(x)
    allocated = max(rows, CANONICAL)
    memory = np.full(allocated * 96 + 1024, np.nan, np.float32)
    a, out = View(memory, 0, 48, depth), View(memory, 48 * allocated + 16, 32, columns)
    matrix = SimpleNamespace(depth=depth, columns=columns, pitch=columns, weight=weight, bias=bias)
    residual_view = scratch = None
    if residual is not None:  # in place, as the out-projection
        residual_view, scratch = out, View(memory, 80 * allocated + 16, 16, columns)
    calls = cublas.calls(a, matrix, out, rows, residual_view, None, relu, scratch)
    a.rows(rows)[...] = x
    if residual is not None:
        out.rows(rows)[...] = residual
    for call in calls:
        call()
    return out.rows(rows).copy()


def inputs(rows, depth=37, columns=13):
    rng = np.random.default_rng(depth)
    weight, bias = rng.standard_normal((depth, columns), np.float32), rng.standard_normal(columns, np.float32)
    return np.random.default_rng(1).standard_normal((rows, depth), np.float32), weight, bias


@pytest.mark.parametrize("product", [honest, by_rows, by_place])
def test_bits_do_not_depend_on_the_rows(cublas, product):
    """Catches trusting a library that sums in an order of its own: equal bits alone, among few, among many."""
    x, weight, bias = inputs(5003)
    engine = cublas(product)
    together = multiply(engine, x, weight, bias)
    assert_close(together, *rounding(lambda move: move(x) @ move(weight) + move(bias)), dtype=np.float32)
    for rows in (1, 61, 599, 1023, 1024, 1025, 3000):
        assert (multiply(engine, x[:rows], weight, bias) == together[:rows]).all(), rows
        assert (multiply(engine, x[-rows:], weight, bias) == together[-rows:]).all(), rows


def test_who_multiplies(cublas):
    """Catches a needless detour: an honest library gets one call for all rows, a moody one the longest that keeps
    the bits, and one whose bits depend on the place none."""
    x, weight, bias = inputs(5003)
    for product, expected in ((honest, [(0, 5003)]), (by_rows, cover(5003, 4096)), (by_place, None)):
        engine = cublas(product)
        multiply(engine, x, weight, bias)
        assert list(engine.choices.values()) == [{5003: expected}]
    engine = cublas(by_rows)
    multiply(engine, x[:100], weight, bias)
    assert list(engine.choices.values()) == [{100: [(0, CANONICAL)]}]
    before = len(engine.cublas.row_counts)
    multiply(engine, x[:100], weight, bias)
    assert len(engine.cublas.row_counts) == before + 1  # what is known is not tried again


def test_epilogue_in_place(cublas):
    """Catches a residual overwritten by the product that it is to be added to, and a bias forgotten."""
    x, weight, bias = inputs(300)
    residual = np.random.default_rng(2).standard_normal((300, 13), np.float32)
    got = multiply(cublas(honest), x, weight, bias, residual, relu=True)
    assert_close(got, *rounding(lambda move: np.maximum(move(x) @ move(weight) + move(bias) + move(residual), 0)),
                 dtype=np.float32)
    bare = multiply(cublas(honest), x, weight, None)
    assert_close(bare, *rounding(lambda move: move(x) @ move(weight)), dtype=np.float32)


@given(st.integers(1, 300_000))
def test_calls_cover_every_row_once_at_least(rows):
    """Catches rows left out, calls beyond what is allocated, and a ladder that does not end at the canonical size."""
    sizes = list(candidates(rows))
    assert sizes[0] == rows and sizes[-1] == CANONICAL or rows == CANONICAL and sizes == [rows]
    for size in sizes:
        calls = cover(rows, size)
        edge = 0
        for first, count in calls:
            assert count == size and 0 <= first <= edge
            edge = first + count
        assert edge == max(rows, size) <= max(rows, CANONICAL)


def test_settings(cublas, monkeypatch):
    """Catches TF32 switched on by default, settings that contradict, and a missing CuPy that is passed over."""
    assert cublas(honest).cublas.mode == 0 and make_products("cublas", True, 0).cublas.mode == 3
    with pytest.raises(ValueProblem, match="tf32"):
        make_products("own", True, 0)
    with pytest.raises(ValueProblem, match="matmul"):
        make_products("cutlass", False, 0)
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    with pytest.raises(MissingBackend, match="pip install"):
        device.load_cupy()


def test_twins_take_what_launchers_take():
    """Catches a launcher whose arguments moved on without its NumPy twin (`shape` is for tuning only)."""
    modules = {**{name: module for module, name in KERNELS.values()}, "epilogue": "epilogue", "matmul": "matmul"}
    assert set(modules) == set(twins.LAUNCHERS)
    for name, module in modules.items():
        launcher = signature(getattr(import_module(f"mmref.kernels.cuda.{module}"), name)).parameters
        expected = [(p.name, p.kind, p.default) for p in launcher.values() if p.name != "shape"]
        got = [(p.name, p.kind, p.default) for p in signature(twins.LAUNCHERS[name]).parameters.values()]
        assert sorted(got, key=str) == sorted(expected, key=str), name
