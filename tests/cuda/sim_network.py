"""A whole forward by our kernels, in the simulator. Run by test_engine_sim.py.

The simulator runs some hundred threads a second: a network of 24 channels and a picture whose maps have a few pixels.
"""

from __future__ import annotations

import numpy as np
from assertions import assert_close, of_layer, rounding
from strategies import lively, normal

import mmref
from mmref.bench.gpu_worker import TINY
from mmref.kernels.cuda.driver import SIMULATOR


def test_network():
    """Catches a kernel that does not do what the plan takes it to do; results that depend on the batch or the run."""
    assert SIMULATOR
    model = lively(**TINY)
    ours = mmref.create_model("mobilemamba_nano", model.state_dict(), backend="cuda", matmul="own", **TINY)
    x = normal(5, 2, 3, 33, 17)  # maps of 3x2, 2x1 and 1x1
    together = ours(x)
    assert_close(together, *rounding(of_layer(model, x)), dtype=np.float32)
    alone = ours(x[1:])
    assert (alone == together[1:]).all()
    assert (ours(x[1:]) == alone).all()


def test_network_of_plain_kernels():
    """Catches a plain kernel that does not do what the plan takes it to do: paths of several orders, states, a longer
    wavelet of two levels, widths that are no multiple of anything."""
    options = TINY | dict(widths=(21, 24, 24), depths=(1, 0, 0), scan_order="atrous", d_state=2, wavelet="db2",
                          wavelet_levels=2)
    model = lively(**options)
    ours = mmref.create_model("mobilemamba_nano", model.state_dict(), backend="cuda", matmul="own", **options)
    x = normal(5, 2, 3, 17, 33)
    truth, tolerance = rounding(of_layer(model, x))
    together = ours(x)
    assert_close(together, truth, tolerance, dtype=np.float32)
    assert (ours(x[1:]) == together[1:]).all()
    kernels = {operation.kernel for operation in ours.plan(x.shape).operations}
    assert kernels >= {"path_scan", "analysis", "synthesis", "move"}
