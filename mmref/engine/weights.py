"""A folded network's parameters as the kernels want them: packed once for a model, shared by all its plans.

What is folded here, beyond batch norms:
    residual depthwise  x + conv(x): one is added to the centre tap
    base_scale          into the rows of out_proj and its bias
    wavelet             the filters' 1/2 * 1/2 and wavelet_scale into the taps of the sub-bands' convolution
    A_logs              -exp(A_logs) * log2(e): the scan's decays are powers of two
Matrices are cut into panels of up to `tile_vectors` vectors of 16 columns, each panel row by row; taps and
channelwise parameters are grouped by vectors of 16 channels. What is left over is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmref.engine.memory import Slabs
from mmref.errors import ValueProblem
from mmref.kernels.packing import pack_channels
from mmref.kernels.records import PANEL
from mmref.kernels.target import LANES, TARGET, VECTOR_BYTES, round_up


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


class Weights:
    """Packs on demand, by checkpoint name; keeps what it packed."""

    def __init__(self, state: Mapping[str, np.ndarray], threads: int = 1):
        self.state, self.threads = state, threads
        self.packed: dict[str, Matrix | Taps | int] = {}
        self.slabs = Slabs()  # what the addresses point to

    def put(self, array: np.ndarray) -> int:
        """Address of a copy of `array` (float32, or a table as it is)."""
        return self.slabs.put(array)

    def once(self, name, make):
        if name not in self.packed:
            self.packed[name] = make()
        return self.packed[name]

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

    def zero_vector(self) -> int:
        """Address of 16 zeros: what a convolution reads outside a map."""
        return self.once("zeros", lambda: self.put(np.zeros(LANES, np.float32)))

    # ------------------------------------------------------------------------- by checkpoint name

    def pointwise(self, name: str) -> Matrix:
        """A 1x1 convolution or linear layer."""
        def make():
            weight = self.state[f"{name}.weight"]
            return self.pack_matrix(weight.reshape(weight.shape[:2]).T, self.state[f"{name}.bias"], self.threads)
        return self.once(name, make)

    def stem(self, name: str) -> Matrix:
        """A 3x3 convolution, rows in the order (tap y, tap x, channel)."""
        def make():
            weight = self.state[f"{name}.weight"]
            return self.pack_matrix(weight.transpose(2, 3, 1, 0).reshape(-1, len(weight)), self.state[f"{name}.bias"])
        return self.once(name, make)

    def out_projection(self, attention: str, scale: str) -> Matrix:
        def make():
            scales = self.state[f"{scale}.weight"].reshape(-1)
            weight = self.state[f"{attention}.out_proj.weight"][:, :, 0, 0]
            return self.pack_matrix((weight * scales[:, None]).T, self.state[f"{attention}.out_proj.bias"] * scales,
                                    self.threads)
        return self.once(f"{attention}.out_proj", make)

    def coefficients(self, attention: str) -> Matrix:
        """x_proj of both directions side by side."""
        def make():
            weight = self.state[f"{attention}.x_proj_weight"]
            return self.pack_matrix(weight.reshape(-1, weight.shape[2]).T, None, self.threads)
        return self.once(f"{attention}.x_proj", make)

    def _taps(self, weight, bias, after=None) -> Taps:
        return Taps(weight.shape[-1], len(weight), self.put(by_vectors(weight)), self.put(by_vectors(bias)),
                    0 if after is None else self.put(np.concatenate([by_vectors(part).ravel() for part in after])))

    def depthwise(self, name: str, residual: bool = False) -> Taps:
        def make():
            weight = self.state[f"{name}.weight"].copy()
            if residual:
                weight[:, 0, weight.shape[2] // 2, weight.shape[3] // 2] += 1
            return self._taps(weight, self.state[f"{name}.bias"])
        return self.once(name, make)

    def local(self, name: str) -> Taps:
        """k x k, and the scale and shift of the 1x1 behind the ReLU."""
        return self.once(name, lambda: self._taps(
            self.state[f"{name}.0.weight"], self.state[f"{name}.0.bias"],
            (self.state[f"{name}.2.weight"].reshape(-1), self.state[f"{name}.2.bias"])))

    def wavelet(self, name: str) -> tuple[int, int]:
        """(kernel, address) of a `global_op`'s sub-band filters."""
        def make():
            check_haar(self.state, name)
            weight, scale = self.state[f"{name}.wavelet_convs.0.weight"], self.state[f"{name}.wavelet_scale.0.weight"]
            taps = weight[:, 0] * (scale.reshape(-1, 1, 1) / 4)
            return weight.shape[-1], self.put(by_vectors(taps.reshape(len(taps) // 4, -1)))
        return self.once(f"{name}.wavelet", make)

    def scan(self, attention: str) -> int:
        """Address of: for each vector of channels and direction, `rank` rows of dt_projs, its bias, A * log2(e), D."""
        def make():
            projection = self.state[f"{attention}.dt_projs_weight"]                    # (2, D, R)
            columns = (projection, self.state[f"{attention}.dt_projs_bias"][:, :, None],
                       -np.exp(self.state[f"{attention}.A_logs"]).reshape(2, -1, 1) * np.float32(np.log2(np.e)),
                       self.state[f"{attention}.Ds"].reshape(2, -1, 1))
            rows = np.concatenate(columns, axis=2)                                     # (2, D, R + 3)
            return self.put(by_vectors(rows.swapaxes(0, 1)))
        return self.once(f"{attention}.scan", make)

    def layer_norm(self, name: str) -> int:
        return self.once(name, lambda: self.put(np.concatenate([self.state[f"{name}.weight"],
                                                               self.state[f"{name}.bias"]])))


def check_haar(state, name: str, backend: str = "numba") -> None:
    haar = np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], np.float32) / 2
    for bank in ("wt_filter", "iwt_filter"):
        filters = state[f"{name}.{bank}"]
        if filters.shape[1:] != (1, 2, 2) or not np.array_equal(filters.reshape(-1, 4, 4),
                                                                np.broadcast_to(haar, (len(filters) // 4, 4, 4))):
            raise ValueProblem(f"{name}.{bank} must be the Haar bank for backend {backend!r}, got other filters "
                               f"(backend 'numpy' runs them)")
