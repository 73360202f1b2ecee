"""The base of all layers, and the small ones.

A layer is a callable with a name (its dotted path in a checkpoint), parameters and child layers. Attributes carry
the checkpoints' own names, so that `model.blocks1.children["0"].dw0.m.c.weight` is the parameter
`blocks1.0.dw0.m.c.weight`: `c` is a convolution, `bn` a batch norm, `m` what a residual wraps, `l` the linear layer.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
from collections.abc import Callable, Iterator

import numpy as np

from mmref.arguments import check_array, check_callable, check_vector
from mmref.nn import functional as F
from mmref.nn.operation import Symbol

_recorder: contextvars.ContextVar[Callable | None] = contextvars.ContextVar("recorder", default=None)


@contextlib.contextmanager
def recording(record: Callable[[str, np.ndarray, Layer], None]):
    """Within the block, `record(name, output, layer)` is called for every layer that runs (in this context only).

    Names are the layers' dotted paths; SS2D adds the inside of its scan (`....global_atten:delta` and so on).
    The output must not be written to. Raises ValueProblem where `record` is not callable.
    """
    check_callable("record", record, "a function (name, output, layer)")
    token = _recorder.set(record)
    try:
        yield
    finally:
        _recorder.reset(token)


def is_recording() -> bool:
    """Whether a recorder listens in this context."""
    return _recorder.get() is not None


class Layer:
    """Base class: `declare` parameters and assign child layers in `__init__`, compute in `forward`."""

    name = ""

    def __init__(self):
        self.shapes: dict[str, tuple[int, ...]] = {}

    def declare(self, **shapes: tuple[int, ...]) -> None:
        """Say which parameters this layer has; each becomes an attribute, None until loaded."""
        self.shapes.update(shapes)
        for name in shapes:
            setattr(self, name, None)

    def forward(self, x):
        raise NotImplementedError

    def __call__(self, *inputs):
        if isinstance(inputs[0], Symbol):
            return inputs[0].inside(self, *inputs)
        y = self.forward(*inputs)
        self.record(y)
        return y

    def record(self, y, inside: str = "") -> None:
        """Show `y` to the recorder, if one listens, under this layer's name. Several maps are not shown: those that
        made them have been."""
        record = _recorder.get()
        if record is not None and isinstance(y, np.ndarray):
            record(f"{self.name}:{inside}" if inside else self.name, y, self)

    @property
    def children(self) -> dict[str, Layer]:
        """Child layers by attribute name, in the order of the call."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Layer)}

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """(dotted path, layer) of this layer and everything below it, parents first."""
        yield prefix, self
        for name, child in self.children.items():
            yield from child.walk(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Layer, str]]:
        """(dotted name, layer that holds it, attribute) of every parameter, statistics and filter banks included."""
        for path, layer in self.walk():
            for attribute in layer.shapes:
                yield (f"{path}.{attribute}" if path else attribute), layer, attribute

    def name_layers(self) -> None:
        for path, layer in self.walk():
            layer.name = path

    def fold_batchnorm(self) -> Layer:
        """A copy in which every batch norm is folded into its neighbour; parameters not loaded yet stay so.

        A class with a rule of its own asks `computes_as` first: what a user has changed stays unfolded."""
        folded = copy.copy(self)
        for name, child in self.children.items():
            setattr(folded, name, child.fold_batchnorm())
        return folded

    def initial(self, parameter: str, rng: np.random.Generator) -> np.ndarray:
        """A starting value for an untrained network, float64: here normal(0, 1/fan_in), zeros for a bias."""
        shape = self.shapes[parameter]
        if parameter == "bias":
            return np.zeros(shape)
        return rng.standard_normal(shape) * max(1, np.prod(shape[1:])) ** -0.5

    def learned(self, parameter: str) -> bool:
        """Whether training changes the parameter (running statistics and wavelet filters are not learned)."""
        return True

    def macs(self, y) -> int:
        """Multiply-adds this layer itself, children not counted, spent on one sample with output `y`."""
        return 0


def computes_as(layer, kind: type[Layer]) -> bool:
    """Whether `layer` runs the text of `kind`: nobody exchanged it, or its forward, for another one."""
    return (isinstance(layer, kind) and type(layer).forward is kind.forward and "forward" not in vars(layer)
            and type(layer).__call__ is Layer.__call__)


def foldable(convolution, norm) -> bool:
    """Whether these two are a convolution without bias and the batch norm behind it, as `Conv2d.folded_with` has it."""
    return computes_as(convolution, Conv2d) and convolution.bias is None and computes_as(norm, BatchNorm)


class Sequential(Layer):
    """Layers one after another, named "0", "1", ..."""

    def __init__(self, *layers: Layer):
        super().__init__()
        for i, layer in enumerate(layers):
            setattr(self, str(i), layer)

    def forward(self, x):
        for layer in self.children.values():
            x = layer(x)
        return x


class ReLU(Layer):
    def forward(self, x):
        return F.relu(x)


class Sigmoid(Layer):
    def forward(self, x):
        return F.sigmoid(x)


class Conv2d(Layer):
    """Convolution k x k, "same" padding dilation * (k//2) for odd k. `weight` (c_out, c_in/groups, k, k), `bias`
    (c_out,)."""

    def __init__(self, c_in, c_out, kernel=1, stride=1, groups=1, bias=False, dilation=1):
        super().__init__()
        self.stride, self.groups, self.kernel, self.dilation = stride, groups, kernel, dilation
        self.declare(weight=(c_out, c_in // groups, kernel, kernel))
        self.bias = None
        if bias:
            self.declare(bias=(c_out,))

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.dilation * (self.kernel // 2),
                        groups=self.groups, dilation=self.dilation)

    def macs(self, y):
        return int(np.prod(self.shapes["weight"])) * y.shape[2] * y.shape[3]

    def folded_with(self, bn: BatchNorm) -> Conv2d:
        """This convolution followed by `bn`, as one convolution with bias."""
        folded = copy.copy(self)
        folded.shapes = {"weight": self.shapes["weight"], "bias": bn.shapes["bias"]}
        folded.stands_for = bn.name  # whose output this now computes
        if self.weight is not None:
            check_array(f"{self.name}.weight", self.weight, "out_channels in_channels/groups k_h k_w")
            bn.check_parameters(len(self.weight), self.weight.dtype)
            scale, shift = bn.scale_and_shift()
            folded.weight = (self.weight * scale[:, None, None, None]).astype(self.weight.dtype)
            folded.bias = (shift if self.bias is None else shift + self.bias * scale).astype(self.weight.dtype)
        return folded


class BatchNorm(Layer):
    """Inference batch norm over channels or features; eps 1e-5."""

    eps = 1e-5

    def __init__(self, dim):
        super().__init__()
        self.declare(weight=(dim,), bias=(dim,), running_mean=(dim,), running_var=(dim,))

    def forward(self, x):
        return F.batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, self.eps)

    def check_parameters(self, dim: int, dtype) -> None:
        """Raise ShapeError unless the parameters, which anybody may have replaced, are (dim,) of `dtype`: folding would
        broadcast others."""
        for parameter in self.shapes:
            check_vector(f"{self.name}.{parameter}", getattr(self, parameter), dim, dtype)

    def scale_and_shift(self):
        """float64 (dim,) pair with bn(x) = scale * x + shift."""
        scale = self.weight / np.sqrt(self.running_var.astype(np.float64) + self.eps)
        return scale, self.bias - self.running_mean * scale

    def initial(self, parameter, rng):
        return np.full(self.shapes[parameter], float(parameter in ("weight", "running_var")))

    def learned(self, parameter):
        return not parameter.startswith("running")


class ConvBN(Layer):
    """Convolution without bias (`c`), then batch norm (`bn`); upstream `Conv2d_BN`."""

    def __init__(self, c_in, c_out, kernel=1, stride=1, groups=1):
        super().__init__()
        self.c = Conv2d(c_in, c_out, kernel, stride, groups)
        self.bn = BatchNorm(c_out)

    def forward(self, x):
        return self.bn(self.c(x))

    def fold_batchnorm(self):
        if not (computes_as(self, ConvBN) and foldable(self.c, self.bn)):
            return super().fold_batchnorm()
        return self.c.folded_with(self.bn)


class LayerNorm(Layer):
    """Layer norm over the channels of every pixel; eps 1e-5."""

    def __init__(self, dim):
        super().__init__()
        self.declare(weight=(dim,), bias=(dim,))

    def forward(self, x):
        return F.layer_norm_channels(x, self.weight, self.bias)

    def initial(self, parameter, rng):
        return np.full(self.shapes[parameter], float(parameter == "weight"))


class Scale(Layer):
    """One learned factor per channel, `weight` (1, C, 1, 1); upstream `_ScaleModule`."""

    def __init__(self, dim, start=1.0):
        super().__init__()
        self.start = start
        self.declare(weight=(1, dim, 1, 1))

    def forward(self, x):
        return x * self.weight

    def initial(self, parameter, rng):
        return np.full(self.shapes[parameter], self.start)


class Linear(Layer):
    """`weight` (c_out, c_in), `bias` (c_out,)."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.declare(weight=(c_out, c_in), bias=(c_out,))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)

    def macs(self, y):
        return int(np.prod(self.shapes["weight"]))


class Residual(Layer):
    """x + m(x); upstream `Residual`."""

    def __init__(self, m: Layer):
        super().__init__()
        self.m = m

    def forward(self, x):
        return x + self.m(x)
