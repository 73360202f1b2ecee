"""The floating-point mode of the kernels: denormals are flushed in them, and nowhere else."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from assertions import assert_close
from numba import njit
from strategies import enliven, normal

import mmref
from mmref.engine import CompiledModel
from mmref.errors import ValueProblem
from mmref.kernels import program, records
from mmref.kernels.float_mode import ARM64_MODE, X86_MODE, float_mode, set_float_mode
from mmref.kernels.target import LANES, TARGET

pytestmark = pytest.mark.skipif(not (TARGET.is_x86 or TARGET.name == "NEON"), reason="the mode is not set there")

# What a caller may have set: flushing, another direction of rounding, flags raised (on ARM64 those lie elsewhere).
if TARGET.is_x86:
    MODES = {"default": 0x1F80, "flushing": X86_MODE, "towards zero": 0x1F80 | 3 << 13, "flags raised": 0x1F80 | 0x3F}
else:
    MODES = {"default": 0, "flushing": ARM64_MODE, "towards zero": 3 << 22, "up": 1 << 22}

get = njit(lambda: float_mode())
put = njit(lambda mode: set_float_mode(mode))


class Means:
    """A plan of one step: the mean of each of some pixels, its own value, which is a sum and may be denormal."""

    def __init__(self, values):
        self.values, self.out = np.asarray(values, np.float32), np.empty_like(values, np.float32)
        self.record = np.zeros(1, records.MEAN)
        self.record["x"], self.record["out"] = self.values.ctypes.data, self.out.ctypes.data
        self.record["images"], self.record["length"], self.record["vectors"] = len(values), 1, 1
        self.record["pitch"] = self.record["out_pitch"] = 4 * LANES
        self.steps = np.zeros(1, records.STEP)
        self.steps[0] = program.addresses()["mean"], self.record.ctypes.data, -1, 1

    def __call__(self, shares=1):
        self.out[:] = np.nan
        program.run(self.steps, shares)
        return self.out


def denormals_live():
    """Whether this thread's NumPy makes denormals and reads them."""
    tiny = np.full(64, 1e-38, np.float32) * np.float32(1e-3)
    return bool((tiny > 0).all() and (tiny * np.float32(1e10) > 0).all())


@pytest.mark.parametrize("shares", [1, 2, 5])
def test_denormals_are_flushed(shares):
    """Catches a thread, the caller's or another, that works on denormals as they are: slow on many processors."""
    denormal, normal_ = np.float32(1e-39), np.float32(1.5e-38)
    means = Means(np.tile([[denormal], [-denormal], [normal_]], (20, LANES)))
    for _ in range(3):
        out = means(shares).reshape(20, 3, LANES)
        assert (out[:, :2] == 0).all() and (out[:, 2] == normal_).all()
    assert denormals_live()


def test_operations_flush_denormals_too():
    """Catches the operations that run outside of a network's plan left out."""
    tiny = np.full((1, 3, 4, 5), 1e-39, np.float32)
    one = np.ones((3, 1, 1, 1), np.float32)
    assert (mmref.depthwise_conv2d(tiny, one) > 0).all()
    assert (mmref.depthwise_conv2d(tiny, one, backend="numba") == 0).all()
    from mmref.nn.recurrence import selective_scan
    u, ones = tiny[:, :1, :, :], np.ones((1, 1, 4, 5), np.float32)
    A, B, D = np.zeros((1, 4, 1), np.float32), np.ones((1, 1, 1, 5), np.float32), np.zeros((1, 4), np.float32)
    assert (selective_scan(u, ones, A, B, B, D) > 0).all()
    assert (selective_scan(u, ones, A, B, B, D, backend="numba") == 0).all() and denormals_live()


def test_callers_keep_their_denormals():
    """Catches a mode left behind: after a forward, after a refused one, in the caller and in threads beside it."""
    compiled = CompiledModel(mmref.create_model("mobilemamba_nano", seed=3), threads=2)
    x, found = normal(0, 3, 3, 20, 30), []
    spoilt = np.where(np.arange(30) == 7, np.float32(np.inf), x)

    def call():
        compiled(x)
        found.append(denormals_live())
        with pytest.raises(ValueProblem, match="finite"):
            compiled(spoilt)
        found.append(denormals_live())
    call()
    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("shares", [1, 2])
def test_callers_mode_is_given_back(name, shares):
    """Catches a caller's own mode replaced by the default one, to the last bit of the register."""
    means, library = Means(np.full((4, LANES), 1.0)), program.library()
    means(2)  # starts workers
    walk, lead, team = library.walk_alone, library.lead, program._workers.address
    steps, mode = means.steps.ctypes.data, MODES[name]

    @njit
    def call():
        before = float_mode()
        set_float_mode(mode)
        if shares == 1:
            walk(steps, 1, 1, 0)
        else:
            lead(team, steps, 1, shares, 0)
        after = float_mode()
        set_float_mode(before)
        return after
    assert call() == mode
    assert (means.out == 1).all()


@pytest.mark.parametrize("name", ["flushing", "towards zero"])
def test_results_do_not_depend_on_the_callers_mode(name):
    """Catches a leader that rounds otherwise than its workers, and answers that change with a library's habits."""
    compiled = CompiledModel(mmref.create_model("mobilemamba_nano", seed=3), threads=2)
    x = normal(0, 3, 3, 20, 30)
    expected, before = compiled(x), get()
    try:
        put(MODES[name])
        got = compiled(x)
        kept = get()
    finally:
        put(before)
    control = ~0x3F if TARGET.is_x86 else ~0  # between the calls Python computes, which raises flags
    assert kept & control == MODES[name] & control and get() & control == before & control
    assert (got == expected).all()


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e4])
def test_scaled_pictures(scale):
    """Catches an answer that flushing changes by more than rounding."""
    model = enliven(mmref.create_model("mobilemamba_nano", seed=3))
    x = (np.float32(scale) * normal(1, 2, 3, 40, 33)).astype(np.float32)
    expected = model.astype(np.float64)(x.astype(np.float64))
    assert_close(CompiledModel(model, threads=2)(x), expected, 2e-5, dtype=np.float32)
