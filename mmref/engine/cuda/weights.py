"""A folded network's parameters on the device, as the CUDA kernels want them: uploaded once, shared by all plans.

What is folded beyond batch norms is what mmref.engine.weights folds: the residual of a depthwise convolution into its
centre tap, base_scale into out_proj, the wavelet filters' 1/2 * 1/2 and wavelet_scale into the sub-bands' taps, A_logs
into A. The layout is the plain one: matrices (depth, columns), taps (k*k, C), rows padded to whole vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mmref.engine.weights import check_haar
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
    """A depthwise convolution: weights (k*k, C), bias (C,), after (2, C) or None."""

    kernel: int
    channels: int
    weights: object
    bias: object
    after: object = None


class DeviceWeights:
    """Uploads on demand, by checkpoint name; keeps what it uploaded. The methods are those of `Weights`."""

    def __init__(self, state: Mapping[str, np.ndarray]):
        self.state, self.uploaded, self.bytes = state, {}, 0

    def put(self, array):
        """A device copy, float32, C-contiguous."""
        array = np.ascontiguousarray(array, np.float32)
        self.bytes += array.nbytes
        return cuda.to_device(array)

    def once(self, name, make):
        if name not in self.uploaded:
            self.uploaded[name] = make()
        return self.uploaded[name]

    def matrix(self, matrix: np.ndarray, bias: np.ndarray | None) -> DeviceMatrix:
        depth, columns = matrix.shape
        padded = np.zeros((depth, round_up(columns)), np.float32)
        padded[:, :columns] = matrix
        return DeviceMatrix(depth, columns, padded.shape[1], self.put(padded)[:, :columns],
                            None if bias is None else self.put(bias))

    # ------------------------------------------------------------------------- by checkpoint name

    def pointwise(self, name: str) -> DeviceMatrix:
        def make():
            weight = self.state[f"{name}.weight"]
            return self.matrix(weight.reshape(weight.shape[:2]).T, self.state[f"{name}.bias"])
        return self.once(name, make)

    def stem(self, name: str) -> DeviceMatrix:
        """A 3x3 convolution, rows in the order (tap y, tap x, channel); without padding between the rows."""
        def make():
            weight = self.state[f"{name}.weight"]
            rows = weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
            return DeviceMatrix(*rows.shape, rows.shape[1], self.put(rows), self.put(self.state[f"{name}.bias"]))
        return self.once(name, make)

    def out_projection(self, attention: str, scale: str) -> DeviceMatrix:
        def make():
            scales = self.state[f"{scale}.weight"].reshape(-1)
            weight = self.state[f"{attention}.out_proj.weight"][:, :, 0, 0]
            return self.matrix((weight * scales[:, None]).T, self.state[f"{attention}.out_proj.bias"] * scales)
        return self.once(f"{attention}.out_proj", make)

    def coefficients(self, attention: str) -> DeviceMatrix:
        """x_proj of both directions side by side."""
        def make():
            weight = self.state[f"{attention}.x_proj_weight"]
            return self.matrix(weight.reshape(-1, weight.shape[2]).T, None)
        return self.once(f"{attention}.x_proj", make)

    def depthwise(self, name: str, residual: bool = False) -> DeviceTaps:
        def make():
            weight = self.state[f"{name}.weight"].copy()
            if residual:
                weight[:, 0, weight.shape[2] // 2, weight.shape[3] // 2] += 1
            return DeviceTaps(weight.shape[-1], len(weight), self.put(weight.reshape(len(weight), -1).T),
                              self.put(self.state[f"{name}.bias"]))
        return self.once(name, make)

    def local(self, name: str) -> DeviceTaps:
        """k x k, and the scale and shift of the 1x1 behind the ReLU."""
        def make():
            weight = self.state[f"{name}.0.weight"]
            after = np.stack([self.state[f"{name}.2.weight"].reshape(-1), self.state[f"{name}.2.bias"]])
            return DeviceTaps(weight.shape[-1], len(weight), self.put(weight.reshape(len(weight), -1).T),
                              self.put(self.state[f"{name}.0.bias"]), self.put(after))
        return self.once(name, make)

    def wavelet(self, name: str):
        """(kernel, (4, k*k, C)) of a `global_op`'s sub-band filters."""
        def make():
            check_haar(self.state, name)
            weight, scale = self.state[f"{name}.wavelet_convs.0.weight"], self.state[f"{name}.wavelet_scale.0.weight"]
            taps = weight[:, 0] * (scale.reshape(-1, 1, 1) / 4)                      # (4 * C, k, k), 4 * c + band
            kernel = weight.shape[-1]
            return kernel, self.put(taps.reshape(-1, 4, kernel * kernel).transpose(1, 2, 0))
        return self.once(f"{name}.wavelet", make)

    def scan(self, attention: str) -> dict[str, object]:
        def make():
            state = self.state
            return {"dt_weight": self.put(state[f"{attention}.dt_projs_weight"].swapaxes(1, 2)),   # (2, R, D)
                    "dt_bias": self.put(state[f"{attention}.dt_projs_bias"]),                      # (2, D)
                    "A": self.put(-np.exp(state[f"{attention}.A_logs"]).reshape(2, -1)),
                    "D": self.put(state[f"{attention}.Ds"].reshape(2, -1))}
        return self.once(f"{attention}.scan", make)

    def layer_norm(self, name: str) -> dict[str, object]:
        return self.once(name, lambda: {"weight": self.put(self.state[f"{name}.weight"]),
                                        "bias": self.put(self.state[f"{name}.bias"])})
