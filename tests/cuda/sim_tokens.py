"""The kernels of networks that scan rows of tokens, in the simulator: each against the reference, and whole networks.

Run by test_tokens_sim.py. As sim_kernels.py and sim_network.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import rivals
from assertions import assert_close, of_layer, rounding
from sim_kernels import blank, check
from strategies import normal

from mmref.engine import CompiledModel
from mmref.engine.cuda import DeviceModel
from mmref.kernels.cuda import plain
from mmref.kernels.cuda.tokens import norm_mean, path_conv, rms_norm, rotary, row_stats, sequence_scan
from mmref.nn.paths import paths


@pytest.mark.parametrize("order, height, width, taps, channels, active", [
    ("cross", 2, 3, 4, 3, True), (("windows 2", "rows backwards"), 3, 3, 4, 33, False), (("rows",), 1, 1, 1, 1, True)])
def test_path_conv(order, height, width, taps, channels, active):
    """Catches filters back to front, a step that sees the sequence before, pixels of zeros that are somebody's."""
    table, images = paths(order, height, width).astype(np.int32), 2
    K, length = table.shape
    shared = dict(weight=normal(2, K, taps + 1, channels), out=blank(images * K * length, channels), length=length,
                  images=images, active=active)
    check(path_conv, "out", ("table",), x=normal(1, images * height * width, channels), table=table, **shared)
    check(path_conv, "out", x=normal(1, images * K * length, channels), table=None, **shared)


@pytest.mark.parametrize("order, height, width, rank, states, channels, gated", [
    (("windows 2",), 3, 3, 2, 16, 3, True), ("cross", 2, 2, 1, 17, 2, False), (("rows",), 1, 5, 1, 1, 33, True),
    ("bidirectional", 2, 2, 3, 0, 2, False)])
def test_sequence_scan(order, height, width, rank, states, channels, gated):
    """Catches a step laid on another pixel, steps on no pixel that leave the state as it is, states beyond sixteen, a
    direction or picture that starts with another's state."""
    table, images = paths(order, height, width).astype(np.int32), 2
    K, length = table.shape
    check(sequence_scan, "out", ("dt_bias", "D", "table"), u=normal(1, images * K * length, channels),
          coefficients=normal(2, images * K * length, rank + 2 * states),
          dt_weight=normal(3, K, rank, channels, scale=0.3), dt_bias=normal(4, K, channels),
          A=-np.exp(normal(5, K, max(states, 1), channels)), D=normal(6, K, channels), table=table,
          factor=normal(7, images * height * width, channels) if gated else None,
          out=blank(images * height * width, channels), images=images, rank=rank, states=states)


@pytest.mark.parametrize("rows, channels, offset", [(1, 2, 0), (9, 34, 0), (7, 66, 30)])
def test_rows(rows, channels, offset):
    """Catches a variance from squares that cancel, padding in a mean, pairs turned the other way, a row written before
    it is read."""
    x = normal(1, rows, channels) + np.float32(offset)
    weight, epsilon = normal(2, channels), np.float32([0.01])
    check(rms_norm, "out", x=x, weight=weight, epsilon=epsilon, out=blank(rows, channels))
    check(rms_norm, "out", aliases=("x",), x=x, weight=weight, epsilon=epsilon, out=x.copy())
    check(row_stats, "out", x=x, epsilon=epsilon, out=blank(rows, 2))
    check(norm_mean, "out", x=x, stats=normal(3, rows, 2), weight=weight, bias=normal(4, channels),
          out=blank(1, channels), length=rows)
    tables = dict(cos=normal(5, rows, channels), sin=normal(6, rows, channels))
    x = normal(1, 2 * rows, channels)
    check(rotary, "out", x=x, out=blank(2 * rows, channels), **tables)
    check(rotary, "out", aliases=("x",), x=x, out=x.copy(), **tables)


def test_gelu():
    """Catches the tanh approximation, and float64 on the way."""
    check(plain.combine, "out", x=normal(1, 12, 33, scale=3), y=None, out=blank(12, 33), operation="gelu", length=1)


@pytest.mark.parametrize("config, shape", [
    (rivals.localvim((("windows 2", "columns backwards"),), 16, 2, 32), (2, 3, 17, 40)),
    (rivals.efficientvmamba((8, 8, 8, 8), (1, 0, 1, 0), 2), (2, 3, 9, 12))])
def test_networks(config, shape):
    """Catches a kernel that does not do what the plan takes it to do; costs other than the CPU's; results that depend
    on the batch."""
    model, x = rivals.alive(config), normal(5, *shape)
    ours = DeviceModel(model, matmul="own")
    together = ours(x)
    assert_close(together, *rounding(of_layer(model, x)), dtype=np.float32)
    assert (ours(x[1:]) == together[1:]).all()
    plans = ours.plan(shape), CompiledModel(model, threads=1).plan(shape)
    assert sum(op.macs for op in plans[0].operations) == sum(op.macs for op in plans[1].operations)
