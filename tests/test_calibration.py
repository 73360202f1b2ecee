"""The ruler beside every figure: nothing is faster than it, and what seems to be is an alarm."""

from __future__ import annotations

import time

import numpy as np
import pytest
from test_kernels import padded, step

import mmref
from mmref.cli import main
from mmref.engine import CompiledModel, beyond_the_peak, plan_table, shares_of_peak
from mmref.engine.lowering import TOGETHER
from mmref.engine.weights import Weights
from mmref.errors import ValueProblem
from mmref.kernels import calibrate, records
from mmref.kernels.calibrate import NOISE, multiply_add_rate
from mmref.kernels.program import tile_table
from mmref.kernels.target import TARGET


def product_rate():
    """GFLOP/s of a matrix product of the network's sizes, on one thread, the fastest of some runs, as the ruler is."""
    rows, depth, columns = 360, 256, 240
    rng = np.random.default_rng(0)
    weights = Weights()  # keeps what it packs
    packed = weights.pack_matrix(rng.standard_normal((depth, columns), np.float32), None)
    x = padded(rng.standard_normal((rows, depth), np.float32))
    out = np.zeros((rows, columns), np.float32)
    best = np.inf
    for _ in range(20):
        start = time.perf_counter()
        step("matmul", records.MATMUL, 1, a=x, pitch=x.strides[0], rows=rows, depth=depth, panels=packed.panels,
             panel_table=packed.panel_table, bias=packed.bias, out=out, out_pitch=out.strides[0], residual=0,
             residual2=0, relu=0, chunk=rows, tiles=tile_table(), tile_rows=TARGET.tile_rows, next=0)
        best = min(best, time.perf_counter() - start)
    return 2e-9 * rows * depth * columns / best


def test_no_kernel_is_faster_than_the_ruler():
    """Catches a calibration that measures something else than multiply-adds, as it did on Intel: every share of the
    peak was two or three times 100 %. The limit is generous because machines change their clock; medians of turns."""
    shares = [product_rate() / multiply_add_rate(1, 0.03) for _ in range(9)]
    assert np.median(shares) < 1.3, shares


@pytest.fixture(scope="module")
def timed():
    """(plan of two threads, times in which every operation takes a millisecond)."""
    plan = CompiledModel(mmref.create_model("mobilemamba_nano", seed=3), threads=2).plan((3, 3, 40, 40))
    return plan, [1e-3] * len(plan.operations)


def test_shares_of_the_peak(timed):
    """Catches a thread's rate beside that of all threads, a rate of multiply-adds that are counted but not done, and
    one over a time that is another operation's."""
    plan, times = timed
    shares = shares_of_peak(plan, times, 1e9)
    assert {op.owner for op in plan.operations} == {0, 1, TOGETHER}
    met = True
    for operation, share in zip(plan.operations, shares, strict=True):
        alone = operation.owner != TOGETHER
        known = operation.kernel in ("matmul", "stem") and (alone or met and operation.barrier)
        assert share == (pytest.approx(2 * operation.macs / 1e6 * (2 if alone else 1)) if known else None)
        met = alone or operation.barrier
    assert any(share is None for op, share in zip(plan.operations, shares, strict=True) if op.kernel == "matmul")


def test_a_share_beyond_the_peak_is_an_alarm(timed):
    """Catches 189 % printed as a figure, and an alarm for what the clock alone makes of a row of a microsecond."""
    plan, times = timed
    shares = [1 + 0.9 * NOISE] * len(times)
    assert not any(beyond_the_peak(times, shares)) and "alarm" not in plan_table(plan, times, shares)
    shares[3], shares[5] = 1 + 1.1 * NOISE, None
    assert np.flatnonzero(beyond_the_peak(times, shares)).tolist() == [3]
    row = plan_table(plan, times, shares).splitlines()[2 + 3]
    assert row.endswith("alarm") and "%" not in row
    assert not any(beyond_the_peak([1e-6] * len(times), [1.2] * len(times)))


@pytest.mark.parametrize("peak, alarm", [(1e-3, True), (1e9, False)])
def test_info_says_so(monkeypatch, capsys, peak, alarm):
    """Catches an alarm that stands in a column of a hundred rows only."""
    monkeypatch.setattr(calibrate, "multiply_add_rate", lambda threads: peak)
    assert main(["info", "mobilemamba_nano", "--img-size", "48", "--plan", "--time", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert ("alarm" in out) == alarm and err.startswith("mmref: alarm: ") == alarm


def test_info_times_settled_norms(monkeypatch, capsys, tmp_path):
    """Catches timing random weights, whose activations grow until decays are denormal; and own weights changed."""
    seen = []

    def look(model, plan):
        seen.append(model.state_dict())
        return [1e-3] * len(plan.operations)
    monkeypatch.setattr(CompiledModel, "time_operations", look)
    order = ["info", "mobilemamba_nano", "--img-size", "48", "--plan", "--time", "--threads", "1"]
    assert main(order) == 0
    own = mmref.create_model("mobilemamba_nano", seed=5)
    path = tmp_path / "own.safetensors"
    from mmref.weights import safetensors_file
    safetensors_file.write(path, own.state_dict())
    assert main([*order, "--weights", str(path)]) == 0
    settled, kept = ({name: array for name, array in state.items() if name.endswith((".pw1.bias", ".m.bias"))}
                     for state in seen)
    assert settled and all(array.any() for array in settled.values())  # means that were met, folded: else zeros
    assert not any(array.any() for array in kept.values())


def test_threads_are_counted():
    """Catches a division by no threads."""
    with pytest.raises(ValueProblem, match="threads"):
        multiply_add_rate(0)
