"""The compiled engine against the published model's figures and against the NumPy model in float64."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from assertions import assert_close, of_layer, rounding
from golden_files import FILES, load, tolerances
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import lively, normal, seeds

import mmref
from mmref.engine import CompiledModel, plan_table
from mmref.engine.memory import Arena
from mmref.errors import ShapeError, ValueProblem
from mmref.models.parameters import load_parameters
from mmref.models.variants import VARIANTS


@pytest.fixture(scope="module")
def nano():
    """(NumPy model, compiled model on two threads), every branch alive."""
    model = lively()
    return model, CompiledModel(model, threads=2)


@pytest.mark.parametrize("name", FILES)
def test_published_figures(shared_golden, name):
    """Catches any wrong weight, order, border or sum, in every variant: float64 logits of the published structure."""
    figures, config, state, x = load(shared_golden, name)
    assert_close(CompiledModel(load_parameters(config, state), threads=2)(x), figures["logits"],
                 tolerances(shared_golden, name)[""], dtype=np.float32)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_at_odd_sizes(name):
    """Catches channels that do not fill vectors, borders of odd maps, maps of one pixel."""
    model = lively(name, num_classes=10)
    compiled = CompiledModel(model, threads=2)
    for shape in ((1, 3, 33, 47), (2, 3, 16, 130), (1, 3, 1, 1)):
        x = normal(1, *shape)
        assert_close(compiled(x), *rounding(of_layer(model, x)), dtype=np.float32)


@given(seeds, st.integers(0, 9), st.integers(1, 70), st.integers(1, 70))
@settings(max_examples=40)
def test_any_batch_and_size(nano, seed, batch, height, width):
    """Catches shapes nobody tried: batches that threads share unevenly, one pixel, long strips."""
    model, compiled = nano
    x = normal(seed, batch, 3, height, width)
    assert_close(compiled(x), *rounding(of_layer(model, x)), dtype=np.float32)


@given(seeds, st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=10)
def test_a_sample_does_not_see_its_batch(nano, seed, height, width):
    """Catches memory shared between pictures, and sums whose order depends on the batch: equal to the last bit."""
    _, compiled = nano
    x = normal(seed, 5, 3, height, width)
    together = compiled(x)
    assert (np.concatenate([compiled(x[i:i + 1]) for i in range(5)]) == together).all()
    assert (compiled(x[::-1])[::-1] == together).all()
    assert (compiled(np.concatenate([x, 1e6 * x]))[:5] == together).all()


def test_long_batches_go_in_parts(nano):
    """Catches a result written to the wrong rows where a batch is longer than a plan takes."""
    _, compiled = nano
    x = normal(7, 37, 3, 17, 9)
    assert (compiled(x) == np.concatenate([compiled(part) for part in np.split(x, [16, 30])])).all()


def test_memory_between_shapes(nano):
    """Catches borders or padding left over from another picture, and a plan that the cache mixes up."""
    _, compiled = nano
    inputs = [normal(i, 1 + i % 3, 3, 20 + 7 * i, 50 - 6 * i) for i in range(7)]
    first = [compiled(x) for x in inputs]
    compiled(np.full((1, 3, 64, 64), 1e30, np.float32))
    for x, expected in zip(inputs, first, strict=True):
        assert (compiled(x) == expected).all()


@pytest.mark.parametrize("name", ["mobilemamba_b1", "mobilemamba_nano"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_input_that_is_not_finite(name, bad):
    """Catches a value that is not looked at (last of a row, any channel, last picture), and what is left of it in
    memory afterwards: the next answer is the one before, to the last bit."""
    compiled = CompiledModel(mmref.create_model(name, num_classes=10, seed=3), threads=2)
    x = normal(5, 3, 3, 21, 35)
    expected = compiled(x)
    for place in ((0, 0, 0, 0), (1, 2, 20, 34), (2, 1, 7, 15), (2, 0, 3, 32)):
        spoilt = x.copy()
        spoilt[place] = bad
        with pytest.raises(ValueProblem, match="x must be finite"):
            compiled(spoilt)
    assert (compiled(x) == expected).all()


def test_input_is_left_alone_and_may_lie_anyhow(nano):
    """Catches writes to the input, and reading a transposed or strided array as if it were packed."""
    _, compiled = nano
    x = normal(1, 2, 3, 33, 47)
    before = x.copy()
    x.flags.writeable = False
    expected = compiled(x)
    assert (x == before).all()
    wide = np.zeros((2, 6, 66, 94), np.float32)
    wide[:, ::2, ::2, ::2] = x
    assert (compiled(wide[:, ::2, ::2, ::2]) == expected).all() and (compiled(np.asfortranarray(x)) == expected).all()


def test_features_and_intermediates(nano):
    """Catches a map taken at the wrong place, in the wrong order, or overwritten by a later layer."""
    model, compiled = nano
    x = normal(2, 5, 3, 70, 40)
    last, maps = compiled.forward_intermediates(x)
    for i, got in enumerate([*maps, last]):
        expected = of_layer(model, x, lambda model, x, i=i: [*model.forward_intermediates(x)[1],
                                                             model.forward_features(x)][i])
        assert_close(got, *rounding(expected), dtype=np.float32)
    assert compiled.strides == (16, 16, 32, 64)
    assert (compiled.forward_features(x) == last).all()
    assert_close(compiled.forward_head(last), *rounding(of_layer(model, x)), dtype=np.float32)
    assert compiled.forward_head(last, pre_logits=True).shape == (5, 160)
    only = compiled.forward_intermediates(x, indices=[-1, 0, 0], intermediates_only=True)
    assert (only[0] == maps[3]).all() and (only[1] == maps[0]).all() and (only[2] == maps[0]).all()
    assert len(compiled.forward_intermediates(x, indices=2)[1]) == 2
    with pytest.raises(ValueProblem, match="indices"):
        compiled.forward_intermediates(x, indices=[4])


def test_without_head():
    """Catches a head that is looked for where there is none: the result is the pooled features."""
    model = lively(num_classes=0)
    x = normal(3, 3, 3, 40, 40)
    assert_close(CompiledModel(model, threads=2)(x), *rounding(of_layer(model, x)), dtype=np.float32)


def test_pickle_and_state(nano):
    """Catches addresses that travel, and settings that do not."""
    _, compiled = nano
    clone = pickle.loads(pickle.dumps(compiled))
    x = normal(4, 1, 3, 32, 32)
    assert (clone(x) == compiled(x)).all()
    assert (clone.config, clone.threads, clone.transform) == (compiled.config, compiled.threads, compiled.transform)
    state = compiled.state_dict()
    state["head.weight"][:] = 0
    assert (clone(x) == compiled(x)).all() and not (compiled.state_dict()["head.weight"] == 0).any()


def test_refusals(nano):
    """Catches networks and inputs that the kernels would run wrongly."""
    _, compiled = nano
    for threads in (0, -1, 1.5, True):
        with pytest.raises(ValueProblem, match="threads"):
            mmref.create_model("mobilemamba_nano", backend="numba", threads=threads)
    for x, error in ((np.zeros((1, 3, 8, 8)), ShapeError), (np.zeros((1, 4, 8, 8), np.float32), ShapeError),
                     (np.zeros((3, 8, 8), np.float32), ShapeError), (np.zeros((1, 3, 0, 8), np.float32), ShapeError),
                     (np.full((1, 3, 8, 8), np.nan, np.float32), ValueProblem)):
        with pytest.raises(error):
            compiled(x)
    with pytest.raises(ShapeError):
        compiled.plan((1, 3, 0, 5))


@pytest.mark.parametrize("layer, attribute, change", [
    ("patch_embed.0.c", "weight", np.ndarray.tolist), ("patch_embed.0.c", "weight", lambda w: w[:-1]),
    ("patch_embed.0.bn", "bias", lambda b: b[:1]), ("patch_embed.0.bn", "weight", lambda w: w.astype(np.float64)),
    ("head.bn", "running_mean", lambda m: m[:1]), ("head.l", "weight", lambda w: w[:, :-1])])
def test_parameters_that_somebody_replaced(layer, attribute, change):
    """Catches parameters that are no arrays or do not fit computed with after folding, by broadcasting, and errors of
    NumPy that name no layer."""
    from mmref.engine import CompiledModel
    from mmref.export.onnx import to_onnx
    model = mmref.create_model("mobilemamba_nano", pretrained=True)
    changed = dict(model.walk())[layer]
    setattr(changed, attribute, change(getattr(changed, attribute)))
    x = np.zeros((1, 3, 32, 32), np.float32)
    for use in (lambda: model(x), lambda: CompiledModel(model)(x), lambda: model.fold_batchnorm()(x),
                lambda: to_onnx(model)):
        with pytest.raises((ShapeError, ValueProblem)):
            use()


def test_plan(nano):
    """Catches a plan that leaves out work, a table that misses a row: multiply-adds as the NumPy model counts them."""
    from mmref.models.summary import summarize
    model, compiled = nano
    plan = compiled.plan((1, 3, 64, 64))
    counted = sum(op.macs for op in plan.operations if op.kernel != "wavelet_branch")
    wavelet = sum(op.macs for op in plan.operations if op.kernel == "wavelet_branch")
    expected = summarize(model, 64)[0].macs
    local = sum(row.macs for row in summarize(model, 64) if row.name.endswith("dwconv1x1"))  # folded into dwconv3x3
    assert counted + wavelet + local == expected
    times = compiled.time_operations(plan, repeats=2)
    assert len(times) == len(plan.operations) and min(times) >= 0
    for table in (plan_table(plan), plan_table(plan, times)):
        assert len(table.splitlines()) == len(plan.operations) + 5
        assert "blocks1.0.ffn0.m.pw1" in table and "wavelet_branch" in table


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5000)), max_size=60))
def test_arena_never_overlaps(requests):
    """Catches two living maps in one place, and a hole larger than the block."""
    arena, living = Arena(), []
    for give, size in requests:
        if give and living:
            arena.give(*living.pop(size % len(living)))
            continue
        place = arena.take(size)
        assert place.offset % 64 == 0 and place.offset + size <= arena.size
        for other, length in living:
            assert place.offset + size <= other.offset or other.offset + length <= place.offset
        living.append((place, size))
