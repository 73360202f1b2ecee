"""A network's constants as the CPU's kernels read them: packed once for a model, shared by all its plans.

Matrices are cut into panels of up to `tile_vectors` vectors of 16 columns, each panel row by row; taps and channelwise
parameters are grouped by vectors of 16 channels. What is left over is zero. What the kernels want folded beyond the
graph's passes is folded here: the 1/2 * 1/2 of Haar's filters into the sub-bands' taps, log2(e) into A (the scan's
decays are powers of two).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmref.engine.memory import Slabs
from mmref.graph.graph import Constant
from mmref.kernels.packing import pack_channels
from mmref.kernels.records import PANEL
from mmref.kernels.target import LANES, TARGET, VECTOR_BYTES, round_up

ALIKE = 1e-6  # relative: what float32 leaves of log, written to a file, and exp


@dataclass(frozen=True)
class Matrix:
    """A packed matrix (depth, columns); addresses of its panel table and bias."""

    depth: int
    columns: int
    panels: int
    panel_table: int
    bias: int


@dataclass(frozen=True)
class Taps:
    """Packed filters of a depthwise convolution; `after` is the address of a second scale and shift, or 0."""

    kernel: int
    channels: int
    weights: int
    bias: int
    after: int = 0


def by_vectors(array: np.ndarray) -> np.ndarray:
    """(C, ...) -> (ceil(C/16), ..., 16) with zeros behind the last channel."""
    return pack_channels(array.reshape(len(array), -1))


def window_matrix(weight: np.ndarray, groups: int = 1) -> np.ndarray:
    """Of a k x k convolution, rows in the order (tap y, tap x, channel); groups lie on the diagonal."""
    if groups > 1:
        out, own = weight.shape[:2]
        whole = np.zeros((out, own * groups, *weight.shape[2:]), weight.dtype)
        for g in range(groups):
            rows = slice(g * out // groups, (g + 1) * out // groups)
            whole[rows, g * own:(g + 1) * own] = weight[rows]
        weight = whole
    return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))


def row_axes(constant: Constant, axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a constant that goes with an array of `shape` whose channels are axis `axis`: the lengths of the axes but for
    those of images and channels; ones where one row of channels is the same for all of them."""
    one = all(size == 1 for i, size in enumerate(constant.shape) if i != axis)
    return tuple(1 if one else size for i, size in enumerate(shape) if i not in (0, axis))


def as_rows(values: np.ndarray, axis: int, others: tuple[int, ...], channels: int) -> np.ndarray:
    """A constant as rows of channels, one for each of an image's `row_axes`."""
    return np.broadcast_to(np.moveaxis(values, axis, -1)[0], (*others, channels)).reshape(-1, channels)


def haar_bands(weight: np.ndarray) -> np.ndarray:
    """A Haar wavelet branch's filters (4*C, 1, k, k) times the filters' 1/2 * 1/2, (C, 4, k * k)."""
    return (weight[:, 0] * np.float32(0.25)).reshape(len(weight) // 4, 4, -1)


class Kept:
    """What is made of constants, once for a model, by their keys."""

    def __init__(self):
        self.made: dict[tuple, object] = {}

    def once(self, form: str, make, *constants: Constant | None, options=()):
        """make(*their values), the first time this form of these constants is asked for."""
        key = form, *(constant and constant.key for constant in constants), options
        if key not in self.made:
            self.made[key] = make(*(None if constant is None else constant.value() for constant in constants))
        return self.made[key]


class Weights(Kept):
    """Packs on demand."""

    def __init__(self, threads: int = 1):
        super().__init__()
        self.threads = threads
        self.slabs = Slabs()  # what the addresses point to

    def put(self, array: np.ndarray) -> int:
        """Address of a copy of `array` (float32, or a table as it is)."""
        return self.slabs.put(array)

    def pack_matrix(self, matrix: np.ndarray, bias: np.ndarray | None, threads: int = 1) -> Matrix:
        """matrix (depth, columns), whose columns `threads` will share."""
        depth, columns = matrix.shape
        vectors = round_up(columns) // LANES
        padded = np.zeros((depth, vectors * LANES), np.float32)
        padded[:, :columns] = matrix
        padded_bias = np.zeros(vectors * LANES, np.float32)
        if bias is not None:
            padded_bias[:columns] = bias
        # as few panels as tiles allow that threads can share evenly: 14 vectors are 2 + 2 + 3 and 2 + 2 + 3 for two
        panels = min(vectors, threads * -(-vectors // (threads * TARGET.tile_vectors)))
        edges = [vectors * p // panels for p in range(panels + 1)]
        table = np.zeros(panels, PANEL)
        data = np.concatenate([padded[:, LANES * a:LANES * b].ravel() for a, b in zip(edges, edges[1:], strict=False)])
        address = self.put(data)
        for p, (a, b) in enumerate(zip(edges, edges[1:], strict=False)):
            table[p] = (a * VECTOR_BYTES, b - a, address + depth * a * VECTOR_BYTES)
        return Matrix(depth, columns, panels, self.put(table), self.put(padded_bias))

    # ---------------------------------------------------------------------------------------- by kernel

    def zero_vector(self) -> int:
        """Address of 16 zeros: what a convolution reads outside a map."""
        return self.zeros(1)

    def zeros(self, vectors: int) -> int:
        """Address of so many vectors of zeros."""
        return self.once("zeros", lambda: self.put(np.zeros(vectors * LANES, np.float32)), options=vectors)

    def matrix(self, weight: Constant, bias: Constant | None) -> Matrix:
        """A 1x1 convolution or linear layer, weight (out, in) or (out, in, 1, 1)."""
        return self.once("matrix", lambda w, b: self.pack_matrix(w.reshape(w.shape[:2]).T, b, self.threads), weight,
                         bias)

    def window(self, weight: Constant, bias: Constant | None, groups: int = 1) -> Matrix:
        return self.once("window", lambda w, b: self.pack_matrix(window_matrix(w, groups), b), weight, bias,
                         options=groups)

    def whole_map(self, weight: Constant, bias: Constant | None, pitch: int) -> Matrix:
        """A convolution as large as its map, whose pixels lie `pitch` floats apart."""
        def make(w, b):
            out, channels, height, width = w.shape
            matrix = np.zeros((height * width, pitch, out), np.float32)
            matrix[:, :channels] = w.transpose(2, 3, 1, 0).reshape(-1, channels, out)
            return self.pack_matrix(matrix.reshape(-1, out), b, self.threads)
        return self.once("whole map", make, weight, bias, options=pitch)

    def tap(self, weight: Constant, bias: Constant | None, i: int, j: int) -> Matrix:
        """One tap of a transposed convolution, weight (in, out, k, k)."""
        return self.once("tap", lambda w, b: self.pack_matrix(w[:, :, i, j], b), weight, bias, options=(i, j))

    def slice_of_projection(self, weight: Constant, direction: int) -> Matrix:
        """One direction's matrix of a `project`."""
        return self.once("project", lambda w: self.pack_matrix(w[direction].T, None, self.threads), weight,
                         options=direction)

    def taps(self, weight: Constant, bias: Constant | None, scale: Constant | None = None,
             shift: Constant | None = None) -> Taps:
        """A depthwise convolution; scale and shift of the 1x1 behind its ReLU."""
        def make(w, b, scale, shift):
            after = 0
            if scale is not None:
                after = self.put(np.concatenate([by_vectors(part).ravel() for part in (scale, shift)]))
            return Taps(w.shape[-1], len(w), self.put(by_vectors(w)),
                        self.put(by_vectors(np.zeros(len(w), np.float32) if b is None else b)), after)
        return self.once("taps", make, weight, bias, scale, shift)

    def bands(self, weight: Constant) -> int:
        """The filters of a Haar wavelet branch's sub-bands, (4*C, 1, k, k)."""
        return self.once("bands", lambda w: self.put(by_vectors(haar_bands(w))), weight)

    def scan(self, dt_weight: Constant, dt_bias: Constant, A: Constant, D: Constant, D_first: bool) -> int:
        """For each vector of channels and direction: R rows of the step-size projection and its bias, then D and A by
        states (`D_first`, state_scan.py) or A and D (scan.py)."""
        def make(weight, bias, A, D):
            A, D = A * np.float32(np.log2(np.e)), D[:, :, None]
            rows = np.concatenate([weight, bias[:, :, None], *((D, A) if D_first else (A, D))], axis=2)
            return self.put(by_vectors(rows.swapaxes(0, 1)))                # (K, D, R + N + 2), by vectors of D
        return self.once("scan", make, dt_weight, dt_bias, A, D, options=D_first)

    def multiples_of_the_first(self, A: Constant) -> bool:
        """Whether state n of every channel fades n times as fast as its first, to ALIKE of each: as training starts."""
        def look(A):
            expected = A[:, :, :1].astype(np.float64) * np.arange(1, A.shape[2] + 1)
            return bool((np.abs(A - expected) <= ALIKE * np.abs(expected)).all())
        return self.once("multiples", look, A)

    def causal_taps(self, weight: Constant, bias: Constant) -> int:
        """weight (K, D, k) and bias (K, D): for each direction k + 1 rows of channels."""
        def make(weight, bias):
            rows = np.concatenate([weight, bias[:, :, None]], axis=2).swapaxes(1, 2)
            padded = np.zeros((*rows.shape[:2], round_up(rows.shape[2])), np.float32)
            padded[..., :rows.shape[2]] = rows
            return self.put(padded)
        return self.once("causal taps", make, weight, bias)

    def channels(self, constant: Constant) -> int:
        """One value a channel, zeros behind the last up to a whole vector."""
        return self.once("channels", lambda values: self.put(by_vectors(values)), constant)

    def layer_norm(self, weight: Constant, bias: Constant) -> int:
        """Address of weight, then bias."""
        return self.once("layer norm", lambda w, b: self.put(np.concatenate([w, b])), weight, bias)

    def array(self, constant: Constant) -> int:
        """The values as they are."""
        return self.once("array", lambda values: self.put(np.ascontiguousarray(values)), constant)

    def rows(self, constant: Constant, axis: int, shape: tuple[int, ...]) -> tuple[int, int]:
        """(address, count) of a constant's rows (`as_rows`)."""
        others, channels = row_axes(constant, axis, shape), shape[axis]

        def make(values):
            values = as_rows(values, axis, others, channels)
            padded = np.zeros((len(values), round_up(channels)), np.float32)
            padded[:, :channels] = values
            return self.put(padded), len(values)
        return self.once("rows", make, constant, options=(axis, channels, others))
