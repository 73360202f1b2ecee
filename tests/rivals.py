"""Small LocalVims and EfficientVMambas for tests: all their parts, few channels."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from strategies import enliven

from mmref.models.efficientvmamba import EfficientVMambaVariant
from mmref.models.localvim import LocalVimVariant

ORDERS = (("rows", "columns backwards", "windows 7", "windows 2 backwards"), ("columns", "rows backwards", "windows 3"),
          ("windows 2",))


def localvim(orders=ORDERS, dim=20, d_state=16, img_size=48, **more):
    return LocalVimVariant("small", img_size, dim, orders, d_state, num_classes=7, **more)


def efficientvmamba(widths=(8, 12, 20, 24), depths=(1, 1, 1, 1), d_state=16, **more):
    return EfficientVMambaVariant("small", 32, widths, depths, d_state, num_classes=7, **more)


def alive(config, seed=0, trained=False):
    """An untrained network fit for comparisons; `trained`: the rates of a channel's states are no longer multiples."""
    model = enliven(config.build().initialise(seed))
    rng = np.random.default_rng(seed)
    for _, layer, name in model.named_parameters():
        if trained and name.startswith("A_log"):
            value = getattr(layer, name)
            setattr(layer, name, value + rng.normal(0, 0.3, value.shape).astype(np.float32))
    return model


@st.composite
def variants(draw):
    """A small network of either family: widths that are no multiples of 16, any orders and numbers of states."""
    states = draw(st.sampled_from((1, 2, 5, 15, 16, 17, 32)))
    if draw(st.booleans()):
        return efficientvmamba(tuple(draw(st.sampled_from((8, 12, 17, 20))) for _ in range(4)), d_state=states,
                               in_chans=draw(st.integers(1, 3)))
    way = st.sampled_from(("rows", "columns", "windows 2", "windows 3", "windows 7", "rows backwards",
                           "columns backwards", "windows 2 backwards", "windows 5 backwards"))
    orders = draw(st.lists(st.lists(way, min_size=1, max_size=4).map(tuple), min_size=1, max_size=2))
    return localvim(tuple(orders), draw(st.sampled_from((16, 20, 36))), states, draw(st.sampled_from((16, 48, 70))),
                    in_chans=draw(st.integers(1, 3)))
