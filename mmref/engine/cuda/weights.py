"""A network's constants as the CUDA kernels read them: uploaded once for a model, shared by all its plans.

The layout is the plain one: matrices (depth, columns), their rows padded to whole vectors; taps (k * k, C); parameters
of a scan with the channels last. Folded beyond the graph's passes are the 1/2 * 1/2 of Haar's filters, as on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmref.engine.weights import Kept, as_rows, haar_bands, row_axes, window_matrix
from mmref.graph.graph import Constant
from mmref.kernels.cuda.driver import cuda
from mmref.kernels.target import round_up


@dataclass(frozen=True)
class DeviceMatrix:
    """weight (depth, columns), its rows `pitch` floats apart; bias (columns,) or None."""

    depth: int
    columns: int
    pitch: int
    weight: object
    bias: object


@dataclass(frozen=True)
class DeviceTaps:
    """A depthwise convolution: weights (k_h * k_w, C), bias (C,), after (2, C) or None."""

    weights: object
    bias: object
    after: object = None


class DeviceWeights(Kept):
    """Uploads on demand."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def put(self, array, dtype=np.float32):
        """A device copy, C-contiguous."""
        array = np.ascontiguousarray(array, dtype)
        self.bytes += array.nbytes
        return cuda.to_device(array)

    def table(self, array: np.ndarray, key, dtype=np.int32):
        """Integers that a kernel looks up; equal keys, equal tables."""
        return self.once("table", lambda: self.put(array, dtype), options=key)

    def _matrix(self, matrix: np.ndarray, bias: np.ndarray | None) -> DeviceMatrix:
        depth, columns = matrix.shape
        padded = np.zeros((depth, round_up(columns)), np.float32)
        padded[:, :columns] = matrix
        return DeviceMatrix(depth, columns, padded.shape[1], self.put(padded)[:, :columns],
                            None if bias is None else self.put(bias))

    # ---------------------------------------------------------------------------------------- by kernel

    def matrix(self, weight: Constant, bias: Constant | None) -> DeviceMatrix:
        """A 1x1 convolution or linear layer, weight (out, in) or (out, in, 1, 1)."""
        return self.once("matrix", lambda w, b: self._matrix(w.reshape(w.shape[:2]).T, b), weight, bias)

    def window(self, weight: Constant, bias: Constant | None, groups: int = 1) -> DeviceMatrix:
        """A k x k convolution's `window_matrix`, without padding between the rows."""
        def make(w, b):
            matrix = window_matrix(w, groups)
            return DeviceMatrix(*matrix.shape, matrix.shape[1], self.put(matrix), None if b is None else self.put(b))
        return self.once("window", make, weight, bias, options=groups)

    def taps(self, weight: Constant, bias: Constant | None, scale: Constant | None = None,
             shift: Constant | None = None) -> DeviceTaps:
        """A depthwise convolution; scale and shift of the 1x1 behind its ReLU."""
        def make(w, b, scale, shift):
            return DeviceTaps(self.put(w.reshape(len(w), -1).T),
                              self.put(np.zeros(len(w), np.float32) if b is None else b),
                              None if scale is None else self.put(np.stack([scale, shift])))
        return self.once("taps", make, weight, bias, scale, shift)

    def bands(self, weight: Constant):
        """(4, k * k, C): the filters of a Haar wavelet branch's sub-bands."""
        return self.once("bands", lambda w: self.put(haar_bands(w).transpose(1, 2, 0)), weight)

    def swapped(self, constant: Constant):
        """(K, D, N) -> (K, N, D); one row of zeros where there are none, because kernels need an array."""
        def make(values):
            values = values.swapaxes(1, 2)
            return self.put(values if values.size else np.zeros((len(values), 1, values.shape[2])))
        return self.once("channels last", make, constant)

    def causal_taps(self, weight: Constant, bias: Constant):
        """(K, D, k) and (K, D) -> (K, k + 1, D), the bias last."""
        return self.once("causal taps", lambda w, b: self.put(np.concatenate([w.swapaxes(1, 2), b[:, None]], axis=1)),
                         weight, bias)

    def array(self, constant: Constant, *shape: int):
        """The values as they are, or in another shape."""
        return self.once("array", lambda values: self.put(values.reshape(shape or values.shape)), constant,
                         options=shape)

    def rows(self, constant: Constant, axis: int, shape: tuple[int, ...]):
        """A constant's rows of channels, (one or more, C)."""
        others, channels = row_axes(constant, axis, shape), shape[axis]
        return self.once("rows", lambda values: self.put(as_rows(values, axis, others, channels)), constant,
                         options=(axis, channels, others))
