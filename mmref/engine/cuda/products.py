"""Matrix products whose bits do not depend on how many rows they have.

A row of a product is a picture's pixel, so its bits must not depend on the other rows: not on how many there are, which
is the batch, and not on its place among them. Our own kernel adds up in one order whatever the shape. cuBLAS does not
promise that: it chooses a kernel by shape and card, and some kernels divide the sum. With cublasLt we choose the kernel
ourselves, once for all row counts.

Either way the library is asked, not trusted. For each matrix the right bits are, by definition, those of a call of
CANONICAL rows. When a plan is made, every call it wants is first tried on repeated test rows (`keeps`): each must come
out with the canonical bits, wherever it stands. If the call for all rows at once does not pass, shorter ones are tried,
in the end the canonical one, again and again; a last call for fewer rows than it has is padded (maps are allocated so).
If even the canonical call differs from place to place, that matrix is multiplied by our own kernel, in every plan.
`choices` records what was chosen, and the GPU report lists it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from mmref.arguments import MATMULS, check_choice
from mmref.engine.cuda import cublas
from mmref.errors import ValueProblem
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.cuda.epilogue import epilogue
from mmref.kernels.cuda.launch import address, launching
from mmref.kernels.cuda.matmul import matmul
from mmref.kernels.cuda.rows import compare_rows, repeat_rows

CANONICAL = 1024  # rows; what is left of a product is padded to it only if its own call fails
PROBE_ROWS = 61   # different test rows, repeated: a prime, so that equal rows meet every place of a tile


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


def divide(rows: int, keeps: Callable[[int], bool], canonical: int = CANONICAL) -> list[tuple[int, int]] | None:
    """Calls (first row, size) for a product of `rows`, each of a size that keeps the bits, one behind the other; the
    last may end behind the rows, by less than `canonical`. None if not even the canonical size keeps them.

    Calls do not overlap: a shortcut in the result's place would be added twice."""
    if not keeps(canonical):
        return None
    calls, first = [], 0
    while first < rows:
        size = next(size for size in candidates(rows - first, canonical) if keeps(size))
        count = max((rows - first) // size, 1)
        calls += [(first + i * size, size) for i in range(count)]
        first += count * size
    return calls


class OwnProducts:
    """Our kernel, bias, residuals and ReLU fused into it."""

    name, least_rows, in_place = "own", 0, True
    choices: dict = {}

    def __init__(self, stream):
        self.stream = stream

    def calls(self, a, matrix, out, rows, residual, residual2, relu, scratch) -> list[Callable[[], None]]:
        """Calls that compute act(a @ matrix + bias + residuals) into `out`."""
        return [partial(matmul, a=a.rows(rows), weight=matrix.weight, bias=matrix.bias, out=out.rows(rows),
                        residual=residual and residual.rows(rows), residual2=residual2 and residual2.rows(rows),
                        relu=relu, stream=self.stream)]


class LibraryProducts:
    """Products by a library, in calls that keep the bits. A subclass has

    part(a, matrix, target, residual, relu) -> multiply(first, size)
        puts the product of `size` rows from row `first` on the stream, with what of the epilogue the library takes on;
        None where it has no way to multiply these
    """

    least_rows = CANONICAL

    def __init__(self, stream):
        self.stream, self.own = stream, OwnProducts(stream)
        self.choices = {}      # what is multiplied -> {rows: calls, or None for our own kernel}
        self._canonical = {}   # the same key -> results of the test rows, None where there is no such product
        self._kept = {}        # (key, size of call) -> whether its bits are canonical

    def _chosen(self, key, rows, multiply, a, out, residual=None):
        """Calls (first row, rows) for this product; None for our own kernel."""
        chosen = self.choices.setdefault(key, {})
        if rows not in chosen:
            chosen[rows] = divide(rows, lambda size: self.keeps(key, multiply, a, out, residual, size))
        return chosen[rows]

    def keeps(self, key, multiply, a, out, residual, size: int) -> bool:
        """Whether a call of `size` rows gives every test row the canonical bits; overwrites the maps."""
        if key not in self._canonical:
            self._try(multiply, a, out, residual, CANONICAL)
            self._canonical[key] = expected = cuda.device_array((PROBE_ROWS, out.channels), np.float32)
            repeat_rows(out.rows(PROBE_ROWS), expected, stream=self.stream)
            self._kept[key, CANONICAL] = self._repeats(out.rows(CANONICAL), expected)
        if (key, size) not in self._kept:
            self._try(multiply, a, out, residual, size)
            self._kept[key, size] = self._repeats(out.rows(size), self._canonical[key])
        return self._kept[key, size]

    def _try(self, multiply, a, out, residual, size):
        for a_map, seed in ((a, 0), (residual, 1)):
            if a_map is not None:
                test = np.random.default_rng(seed).standard_normal((PROBE_ROWS, a_map.channels), np.float32)
                repeat_rows(cuda.to_device(test, stream=self.stream), a_map.rows(size), stream=self.stream)
        multiply(0, size)

    def _repeats(self, results, expected) -> bool:
        found = cuda.to_device(np.zeros(1, np.float32), stream=self.stream)
        compare_rows(results, expected, found, stream=self.stream)
        differs = found.copy_to_host(stream=self.stream)
        self.stream.synchronize()
        return differs[0] == 0


class Cublas(LibraryProducts):
    """cuBLAS's plain product, and an elementwise epilogue behind it."""

    name, in_place = "cublas", False

    def __init__(self, stream, tf32: bool):
        super().__init__(stream)
        self.handle = cublas.Handle(stream, tf32)

    def calls(self, a, matrix, out, rows, residual, residual2, relu, scratch) -> list[Callable[[], None]]:
        target = scratch or out
        multiply = partial(self._multiply, address(a.rows(1)), a.pitch, matrix, address(target.rows(1)), target.pitch)
        key = matrix.depth, matrix.columns, matrix.pitch, a.pitch, target.pitch
        chosen = self._chosen(key, rows, multiply, a, target)
        if chosen is None:
            return self.own.calls(a, matrix, out, rows, residual, residual2, relu, scratch)
        product = [partial(multiply, *call) for call in chosen]
        if matrix.bias is None and residual is None and not relu and target is out:
            return product
        return [*product, partial(epilogue, x=target.rows(rows), bias=matrix.bias,
                                  residual=residual and residual.rows(rows),
                                  residual2=residual2 and residual2.rows(rows), relu=relu, out=out.rows(rows),
                                  stream=self.stream)]

    def _multiply(self, a, lda, matrix, out, ldc, first, size):
        if launching():
            self.handle.multiply(a + 4 * first * lda, lda, matrix, out + 4 * first * ldc, ldc, size)


class CublasLt(LibraryProducts):
    """cublasLt's product with bias, one shortcut and ReLU inside it; a second shortcut follows in a pass of its own.

    The order of additions is the library's: product, shortcut, bias."""

    name, in_place = "cublaslt", True

    def __init__(self, stream, tf32: bool):
        super().__init__(stream)
        self.handle = cublas.Fused(stream, tf32)
        self._algorithms = {}  # what is multiplied -> algorithm, None where there is none

    def calls(self, a, matrix, out, rows, residual, residual2, relu, scratch) -> list[Callable[[], None]]:
        if residual2 and address(residual2.rows(1)) == address(out.rows(1)):  # added while it is still there
            residual, residual2 = residual2, residual
        inside = relu and residual2 is None  # nothing may be added behind a ReLU
        pitches = a.pitch, (residual or out).pitch, out.pitch
        addresses = [address(a_map.rows(1)) if a_map else None for a_map in (a, residual, out)]
        alignment = 16 if all(not at or at % 16 == 0 for at in (*addresses, address(matrix.weight))) else 4
        key = (matrix.depth, matrix.columns, matrix.pitch, *pitches, matrix.bias is not None, residual is not None,
               inside, alignment)
        operation = self.handle.describe(matrix, inside, matrix.bias is not None)
        if key not in self._algorithms:
            typical = self.handle.layouts(matrix, self.handle.TYPICAL, *pitches)
            self._algorithms[key] = self.handle.choose(operation, typical, alignment)
        algorithm = self._algorithms[key]
        multiply = partial(self._multiply, operation, {}, algorithm, matrix, pitches, addresses)
        chosen = algorithm and self._chosen(key, rows, multiply, a, out, residual)
        if chosen is None:
            self.choices.setdefault(key, {})[rows] = None
            return self.own.calls(a, matrix, out, rows, residual, residual2, relu, scratch)
        for _, size in chosen:
            self._describe(multiply, size)
        product = [partial(multiply, *call) for call in chosen]
        if residual2 is None:
            return product
        return [*product, partial(epilogue, x=out.rows(rows), bias=None, residual=residual2.rows(rows), relu=relu,
                                  stream=self.stream)]

    def keeps(self, key, multiply, a, out, residual, size: int) -> bool:
        """As for every library; and whether the algorithm takes calls of this size at all."""
        operation, layouts, algorithm, *_ = multiply.args
        self._describe(multiply, size)
        if not self.handle.runs(operation, layouts[size], algorithm):
            self._kept[key, size] = False
            return False
        return super().keeps(key, multiply, a, out, residual, size)

    def _describe(self, multiply, size):
        """Have layouts for calls of this size at hand: they are made before a plan runs."""
        _, layouts, _, matrix, pitches, _ = multiply.args
        if size not in layouts:
            layouts[size] = self.handle.layouts(matrix, size, *pitches)

    def _multiply(self, operation, layouts, algorithm, matrix, pitches, addresses, first, size):
        """`layouts`: by rows of a call."""
        if launching():
            a, shortcut, out = (at if at is None else at + 4 * first * pitch
                                for at, pitch in zip(addresses, pitches, strict=True))
            self.handle.multiply(operation, layouts[size], algorithm, address(matrix.weight), a, shortcut, out)


PRODUCTS = {"cublas": Cublas, "cublaslt": CublasLt}


def make_products(matmul: str, tf32: bool, stream):
    """"cublas", "cublaslt" or "own"; MissingBackend where the library is missing."""
    if check_choice("matmul", matmul, MATMULS) == "own":
        if tf32:
            raise ValueProblem("tf32 must be False with matmul='own', which multiplies in float32, got True")
        return OwnProducts(stream)
    return PRODUCTS[matmul](stream, tf32)
