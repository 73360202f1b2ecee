"""The table of a network's layers: output shapes, parameters and multiply-adds, from one forward run."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from mmref.arguments import check_integer
from mmref.models.network import Network, check_numpy_model
from mmref.nn.layer import recording


@dataclass(frozen=True)
class Row:
    """One layer; `parameters` (learned) and `macs` (one picture) include everything inside it. `shape` is that of its
    first result, empty where it gives several or was not called itself."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int


def summarize(model: Network, height: int | None = None, width: int | None = None) -> list[Row]:
    """Every layer in network order, the whole network first, for one picture (default: the training size).

    Multiply-adds are those of convolutions, linear layers and SS2D's projections, as papers count them without the
    elementwise work of scan, norms and wavelet filters. Raises ValueProblem.
    """
    check_numpy_model(model)
    height = model.config.img_size if height is None else check_integer("height", height, 1)
    width = height if width is None else check_integer("width", width, 1)
    shapes, macs = {}, Counter()  # a layer may run several times: a head that serves maps of several sizes

    def see(name, y, layer):
        shapes.setdefault(name, y.shape[1:])
        if ":" not in name:
            macs[name] += layer.macs(y)
    with recording(see):
        model(np.zeros((1, model.config.in_chans, height, width), model.dtype))
    rows = []
    for path, layer in model.walk():
        inside = [name for name, _ in layer.walk(path) if name in shapes]
        if inside:
            rows.append(Row(path, type(layer).__name__, shapes.get(path, ()),
                            sum(math.prod(inner.shapes[name]) for _, inner in layer.walk() for name in inner.shapes
                                if inner.learned(name)), sum(macs[name] for name in inside)))
    return rows
