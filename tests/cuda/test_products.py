"""cuBLAS is asked for the same bits at every row count: shown with libraries that do not give them (blas.py)."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from types import SimpleNamespace

import numpy as np
import pytest
from assertions import assert_close, rounding
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "mmref[test-cuda]"')

from blas import SPLITTING, WHOLE, StandIn, Stream, install

from mmref.engine.cuda import cublas as cublas_module
from mmref.engine.cuda import products
from mmref.engine.cuda.plan import KERNELS, View
from mmref.engine.cuda.products import CANONICAL, candidates, divide, make_products
from mmref.errors import MissingBackend, ValueProblem
from mmref.kernels.cuda import twins

LIBRARIES = ("cublas", "cublaslt")


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


@pytest.fixture
def library(monkeypatch):
    """(matmul, product, ...) -> products of that name over a stand-in, which is their `.stand_in`."""
    def make(name, product, **settings):
        stand_in = install(monkeypatch, StandIn(product, **settings))
        monkeypatch.setattr(products, "matmul", our_kernel)
        made = make_products(name, False, Stream())
        made.stand_in = stand_in
        return made
    return make


def aligned(floats):
    """Memory as a device hands it out."""
    memory = np.full(floats + 64, np.nan, np.float32)
    return memory[-memory.ctypes.data % 256 // 4:][:floats]


def multiply(engine, x, weight, bias, shortcut=None, shortcut2=None, relu=False, in_place=True):
    """A product as a plan does it: maps in one block of memory, a column slice of a wider one as the output.

    shortcut: of the result's shape; in the result's place, as for the out-projection, or elsewhere."""
    depth, columns, rows = *weight.shape, len(x)
    allocated = -(-rows // CANONICAL) * CANONICAL
    memory = aligned(allocated * 144)
    a, out = View(memory, 0, 48, depth), View(memory, 48 * allocated + 16, 32, columns)
    elsewhere, second = (View(memory, start * allocated, 16, columns) for start in (96, 112))
    matrix = SimpleNamespace(depth=depth, columns=columns, pitch=columns, weight=weight, bias=bias)
    first = None if shortcut is None else out if in_place else elsewhere
    scratch = View(memory, 128 * allocated, 16, columns) if first is out and not engine.in_place else None
    calls = engine.calls(a, matrix, out, rows, first, None if shortcut2 is None else second, relu, scratch)
    memory[:48 * allocated] = 1e9  # what padded rows hold is nobody's
    a.rows(rows)[...] = x
    if shortcut is not None:
        first.rows(rows)[...] = shortcut
    if shortcut2 is not None:
        second.rows(rows)[...] = shortcut2
    if hasattr(engine, "stand_in"):
        engine.stand_in.calls.clear()
        engine.stand_in.capturing = True  # all that a plan calls may be part of a graph
    for call in calls:
        call()
    if hasattr(engine, "stand_in"):
        engine.stand_in.capturing = False
        assert not engine.stand_in.refused and not engine.stand_in.errors
    return out.rows(rows).copy()


def inputs(rows, depth=37, columns=13):
    rng = np.random.default_rng(depth)
    weight, bias = rng.standard_normal((depth, columns), np.float32), rng.standard_normal(columns, np.float32)
    return np.random.default_rng(1).standard_normal((rows, depth), np.float32), weight, bias


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("product", [honest, by_rows, by_place])
@pytest.mark.parametrize("in_place", [None, False, True])
def test_bits_do_not_depend_on_the_rows(library, name, product, in_place):
    """Catches trusting a library that sums in an order of its own: equal bits alone, among few, among many, also where
    a shortcut is added."""
    x, weight, bias = inputs(5003)
    shortcut = np.random.default_rng(2).standard_normal((5003, 13), np.float32)
    engine = library(name, product)

    def run(rows):
        return multiply(engine, x[rows], weight, bias, None if in_place is None else shortcut[rows],
                        in_place=bool(in_place))
    together = run(slice(None))
    assert_close(together, *rounding(lambda move: move(x) @ move(weight) + move(bias) + (
        0 if in_place is None else move(shortcut))), dtype=np.float32)
    for rows in (1, 61, 599, 1023, 1024, 1025, 3000):
        assert (run(slice(rows)) == together[:rows]).all(), rows
        assert (run(slice(5003 - rows, None)) == together[-rows:]).all(), rows


@pytest.mark.parametrize("name", LIBRARIES)
def test_who_multiplies(library, name):
    """Catches a needless detour: an honest library gets one call for all rows, a moody one the longest that keeps
    the bits, and one whose bits depend on the place none; what is known is not tried again."""
    x, weight, bias = inputs(5003)
    for product, expected in ((honest, [(0, 5003)]), (by_rows, [(0, 4096), (4096, 907)]), (by_place, None)):
        engine = library(name, product)
        multiply(engine, x, weight, bias)
        assert list(engine.choices.values()) == [{5003: expected}]
        assert engine.stand_in.calls == [size for _, size in expected or ()]
    engine = library(name, by_rows)
    multiply(engine, x[:100], weight, bias)
    assert list(engine.choices.values()) == [{100: [(0, CANONICAL)]}]
    before = len(engine._kept)
    multiply(engine, x[:100], weight, bias)
    assert len(engine._kept) == before and engine.stand_in.calls == [CANONICAL]


@pytest.mark.parametrize("name", (*LIBRARIES, "own"))
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("rows", [300, 5003])
def test_epilogue(library, name, in_place, rows):
    """Catches a shortcut overwritten by the product that it is to be added to, or added twice by calls that overlap; a
    bias or a second shortcut forgotten; a ReLU before the last addition."""
    x, weight, bias = inputs(rows)
    first, second = np.random.default_rng(2).standard_normal((2, rows, 13), np.float32)
    for product in (honest, by_rows):
        for with_bias in (bias, None):
            for shortcuts in ((), (first,), (first, second)):
                for relu in (False, True):
                    got = multiply(library(name, product), x, weight, with_bias, *shortcuts, relu=relu,
                                   in_place=in_place)
                    expected = x.astype(np.float64) @ weight + (0 if with_bias is None else bias) + sum(shortcuts)
                    np.testing.assert_allclose(got, np.maximum(expected, 0) if relu else expected, rtol=0, atol=2e-5)


def test_fused_epilogue_is_fused(library, monkeypatch):
    """Catches a second pass over a result whose bias, shortcut and ReLU the library has added, and none where a second
    shortcut is left."""
    x, weight, bias = inputs(300)
    engine = library("cublaslt", honest)
    passes = []
    monkeypatch.setattr(products, "epilogue", lambda **arguments: passes.append(arguments["residual"] is not None)
                        or twins.epilogue(**arguments))
    first, second = np.random.default_rng(2).standard_normal((2, 300, 13), np.float32)
    multiply(engine, x, weight, bias, first, relu=True)
    assert not passes and len(engine.stand_in.calls) == 1
    multiply(engine, x, weight, bias, first, second, relu=True)
    assert passes == [True]


def test_algorithms_that_divide_the_sum(library):
    """Catches an algorithm taken for its place in the heuristic's list alone: what splits a sum is passed over, and
    without another our own kernel multiplies; and an algorithm asked for more rows than it takes."""
    x, weight, bias = inputs(3000)
    engine = library("cublaslt", honest, divided=by_place)
    multiply(engine, x, weight, bias)
    assert engine.stand_in.calls == [3000]
    assert [algorithm.data[0] for algorithm in engine._algorithms.values()] == [WHOLE]
    for only in ((SPLITTING,), ()):
        engine = library("cublaslt", honest, divided=by_place, only=only)
        got = multiply(engine, x, weight, bias)
        assert not engine.stand_in.calls and list(engine.choices.values()) == [{3000: None}]
        np.testing.assert_allclose(got, x @ weight + bias, rtol=0, atol=2e-5)
    engine = library("cublaslt", honest, most_rows=2000)
    multiply(engine, x, weight, bias)
    assert engine.stand_in.calls == [CANONICAL, CANONICAL, 3000 - 2 * CANONICAL]


@pytest.mark.parametrize("name", LIBRARIES)
def test_descriptions_go_with_their_plan(library, name):
    """Catches handles that are never destroyed, one more for every shape, and such as go while a plan needs them."""
    x, weight, bias = inputs(70)
    engine = library(name, honest)
    stand_in = engine.stand_in

    def alive():
        return sum("gone" not in thing for thing in stand_in.things.values())
    multiply(engine, x, weight, bias)
    before = alive()
    for rows in range(1, 60):
        multiply(engine, x[:rows], weight, bias)
    assert alive() == before
    del engine
    assert not alive()


@given(st.integers(1, 300_000), st.sets(st.integers(0, 20)), st.integers(1, 9))
def test_calls_cover_every_row_once(rows, refused, modulus):
    """Catches rows left out or multiplied twice, calls beyond what is allocated or of a size that keeps no bits, and a
    ladder that does not end at the canonical size."""
    sizes = list(candidates(rows))
    assert sizes[0] == rows and sizes[-1] == CANONICAL or rows == CANONICAL and sizes == [rows]

    def keeps(size):
        return size == CANONICAL or (size % modulus == 0 and size.bit_length() not in refused)
    edge = 0
    for first, count in divide(rows, keeps):
        assert first == edge < rows and keeps(count)
        edge = first + count
    assert rows <= edge <= -(-rows // CANONICAL) * CANONICAL
    assert divide(rows, lambda size: size != CANONICAL) is None


def test_settings(library):
    """Catches TF32 switched on by default, settings that contradict."""
    x, weight, bias = inputs(5)
    for name, found in (("cublas", "mode"), ("cublaslt", "compute")):
        for tf32, expected in ((False, {"mode": 2, "compute": 69}), (True, {"mode": 3, "compute": 77})):
            stand_in = library(name, honest).stand_in
            multiply(make_products(name, tf32, Stream()), x, weight, bias)
            values = {thing[found] for thing in stand_in.things.values() if found in thing}
            assert expected[found] in values and (found == "mode" or len(values) == 1)
    with pytest.raises(ValueProblem, match="tf32"):
        make_products("own", True, 0)
    with pytest.raises(ValueProblem, match="cublaslt, own, got 'cutlass'"):
        make_products("cutlass", False, 0)


def test_missing_library(monkeypatch):
    """Catches another kernel taken in cuBLAS's place for want of it, and a loader's error without the remedy."""
    from cuda import pathfinder
    for failure in (RuntimeError("no such library"), OSError("not this one")):
        def fail(name, failure=failure):
            raise failure
        monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", fail)
        cublas_module.library.cache_clear()
        with pytest.raises(MissingBackend, match="cuBLAS.*pip install.*matmul='own'"):
            cublas_module.library()
    monkeypatch.undo()
    cublas_module.library.cache_clear()


def test_the_library_itself():
    """Catches a function that libcublas does not have under this name, where one is installed; without a device it must
    say that it cannot start, in words."""
    cublas_module.library.cache_clear()
    try:
        library = cublas_module.library()
    except MissingBackend:
        pytest.skip("no cuBLAS here")
    handle = cublas_module.c_void_p()
    for create in ("cublasCreate_v2", "cublasLtCreate"):
        with pytest.raises(RuntimeError, match=f"{create}: status 1, not initialized"):
            library.call(create, cublas_module.byref(handle))


def test_twins_take_what_launchers_take():
    """Catches a launcher whose arguments moved on without its NumPy twin (`shape` is for tuning only)."""
    modules = {**{name: module for module, name in KERNELS.values()}, "epilogue": "epilogue", "matmul": "matmul"}
    assert set(modules) == set(twins.LAUNCHERS)
    for name, module in modules.items():
        launcher = signature(getattr(import_module(f"mmref.kernels.cuda.{module}"), name)).parameters
        expected = [(p.name, p.kind, p.default) for p in launcher.values() if p.name != "shape"]
        got = [(p.name, p.kind, p.default) for p in signature(twins.LAUNCHERS[name]).parameters.values()]
        assert sorted(got, key=str) == sorted(expected, key=str), name
