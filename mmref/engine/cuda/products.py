"""Matrix products whose bits do not depend on how many rows they have.

A row of a product is a picture's pixel, so its bits must not depend on the other rows: not on how many there are, which
is the batch, and not on its place among them. Our own kernel adds up in one order whatever the shape. cuBLAS does not
promise that: it chooses a kernel by shape and card, and some kernels divide the sum.

So cuBLAS is asked, not trusted. For each matrix the right bits are, by definition, those of a call of CANONICAL rows.
When a plan is made, every call it wants is first tried on repeated test rows (`Cublas.keeps`): each must come out
with the canonical bits, wherever it stands. If the call for all rows at once does not pass, shorter ones are tried, in
the end the canonical one, again and again; the last call overlaps the one before it, and a call for fewer rows than it
has is padded (maps are allocated so). If even the canonical call differs from place to place, that matrix is multiplied
by our own kernel, in every plan. `choices` records what was chosen, and the GPU report lists it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import numpy as np

from mmref.engine.cuda.device import load_cupy
from mmref.errors import ValueProblem
from mmref.kernels.cuda.epilogue import epilogue
from mmref.kernels.cuda.matmul import matmul

CANONICAL = 1024  # rows; smaller products are padded to it only if their own calls fail
PROBE_ROWS = 61   # different test rows, repeated: a prime, so that equal rows meet every place of a tile
_BLOCK = 64 * PROBE_ROWS
TF32_MATH, DEFAULT_MATH = 3, 0  # cublasMath_t


def candidates(rows: int, canonical: int = CANONICAL) -> Iterator[int]:
    """Sizes of call to try for a product of `rows`, best first; the last is `canonical`."""
    yield rows
    if rows < canonical:
        size = 64
        while size < canonical:
            if size > rows:
                yield size
            size *= 2
    else:
        size = canonical * 64
        while size > canonical:
            if size < rows:
                yield size
            size //= 4
    if rows != canonical:
        yield canonical


def cover(rows: int, size: int) -> list[tuple[int, int]]:
    """Calls (first row, `size`) that cover `rows`: one that is padded, or several, the last overlapping."""
    if size >= rows:
        return [(0, size)]
    firsts = [*range(0, rows - size, size), rows - size]
    return [(first, size) for first in firsts]


class OwnProducts:
    """Our kernel, bias, residuals and ReLU fused into it."""

    name, least_rows, in_place = "own", 0, True
    choices: dict = {}

    def __init__(self, stream):
        self.stream = stream

    def current(self):
        return nullcontext()

    def calls(self, a, matrix, out, rows, residual, residual2, relu, scratch) -> list[Callable[[], None]]:
        """Calls that compute act(a @ matrix + bias + residuals) into `out`."""
        return [partial(matmul, a=a.rows(rows), weight=matrix.weight, bias=matrix.bias, out=out.rows(rows),
                        residual=residual and residual.rows(rows), residual2=residual2 and residual2.rows(rows),
                        relu=relu, stream=self.stream)]


class Cublas:
    """cuBLAS through CuPy, and an elementwise epilogue behind it."""

    name, least_rows, in_place = "cublas", CANONICAL, False

    def __init__(self, stream, tf32: bool):
        self.cupy, self.cublas = load_cupy()
        self.stream, self.own = stream, OwnProducts(stream)
        self.handle = self.cublas.create()
        weakref.finalize(self, self.cublas.destroy, self.handle)
        self.cublas.setMathMode(self.handle, TF32_MATH if tf32 else DEFAULT_MATH)
        self.one, self.zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        self.choices = {}      # (depth, columns, pitches) -> {rows: calls, or None for our own kernel}
        self._canonical = {}   # the same key -> results of the test rows, None where they depend on their place
        self._kept = {}        # (key, size of call) -> whether its bits are canonical

    def current(self):
        """Context in which CuPy, and so cuBLAS, works on our stream."""
        return self.cupy.cuda.ExternalStream(int(self.stream))

    def call(self, a: int, lda: int, matrix, out: int, ldc: int, rows: int):
        """One product at these addresses; pitches in floats. cuBLAS counts columns first: out^T = weight^T a^T."""
        c = self.cublas
        c.sgemm(self.handle, c.CUBLAS_OP_N, c.CUBLAS_OP_N, matrix.columns, rows, matrix.depth, self.one.ctypes.data,
                address(matrix.weight), matrix.pitch, a, lda, self.zero.ctypes.data, out, ldc)

    def calls(self, a, matrix, out, rows, residual, residual2, relu, scratch) -> list[Callable[[], None]]:
        target = scratch or out
        chosen = self._choose(a, matrix, target, rows)
        if chosen is None:
            return self.own.calls(a, matrix, out, rows, residual, residual2, relu, scratch)
        start_a, start_out = address(a.rows(1)), address(target.rows(1))
        product = [partial(self.call, start_a + 4 * first * a.pitch, a.pitch, matrix,
                           start_out + 4 * first * target.pitch, target.pitch, count) for first, count in chosen]
        if matrix.bias is None and residual is None and not relu and target is out:
            return product
        return [*product, partial(epilogue, x=target.rows(rows), bias=matrix.bias,
                                  residual=residual and residual.rows(rows),
                                  residual2=residual2 and residual2.rows(rows), relu=relu, out=out.rows(rows),
                                  stream=self.stream)]

    # --------------------------------------------------------------------------------- bits

    def _choose(self, a, matrix, out, rows):
        key = matrix.depth, matrix.columns, matrix.pitch, a.pitch, out.pitch
        chosen = self.choices.setdefault(key, {})
        if rows not in chosen:
            with self.current():
                chosen[rows] = self.choose(rows, lambda size: self.keeps(key, a, matrix, out, size))
        return chosen[rows]

    @staticmethod
    def choose(rows: int, keeps: Callable[[int], bool], canonical: int = CANONICAL):
        """Calls for a product of `rows`; None if the canonical call's bits depend on a row's place."""
        if not keeps(canonical):
            return None
        return cover(rows, next(size for size in candidates(rows, canonical) if keeps(size)))

    def keeps(self, key, a, matrix, out, size: int) -> bool:
        """Whether a call of `size` rows gives every test row the canonical bits; overwrites `a` and `out`."""
        if key not in self._canonical:
            results = self._try(a, matrix, out, CANONICAL)
            self._canonical[key] = results[:PROBE_ROWS].copy()
            self._kept[key, CANONICAL] = self._repeats(results, self._canonical[key])
        if (key, size) not in self._kept:
            self._kept[key, size] = self._repeats(self._try(a, matrix, out, size), self._canonical[key])
        return self._kept[key, size]

    def _try(self, a, matrix, out, size):
        cp = self.cupy
        rows, results = cp.asarray(a.rows(size)), cp.asarray(out.rows(size))
        test = cp.asarray(np.random.default_rng(0).standard_normal((PROBE_ROWS, matrix.depth), np.float32))
        block = cp.tile(test, (_BLOCK // PROBE_ROWS, 1))
        for first in range(0, size, _BLOCK):  # in blocks: a product may fill the memory there is
            part = rows[first:first + _BLOCK, :matrix.depth]
            part[...] = block[:len(part)]
        self.call(address(a.rows(1)), a.pitch, matrix, address(out.rows(1)), out.pitch, size)
        return results[:, :matrix.columns]

    def _repeats(self, results, expected) -> bool:
        expected = self.cupy.tile(expected, (_BLOCK // PROBE_ROWS, 1)).view(np.int32)
        return all(bool((part.view(np.int32) == expected[:len(part)]).all())
                   for part in (self.cupy.ascontiguousarray(results[first:first + _BLOCK])
                                for first in range(0, len(results), _BLOCK)))


def address(array) -> int:
    """Of a device array's first element."""
    return array.__cuda_array_interface__["data"][0]


def make_products(matmul: str, tf32: bool, stream):
    """"cublas" (needs CuPy) or "own"."""
    if matmul == "own":
        if tf32:
            raise ValueProblem("tf32 must be False with matmul='own', which multiplies in float32, got True")
        return OwnProducts(stream)
    if matmul == "cublas":
        return Cublas(stream, tf32)
    raise ValueProblem(f"matmul must be 'cublas' or 'own', got {matmul!r}")
