"""LocalVim and EfficientVMamba on the compiled engine, in ONNX, and beside PyTorch's LocalVim."""

from __future__ import annotations

import numpy as np
import pytest
import rivals
from assertions import assert_close, of_layer, relative_error, rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import normal, seeds

import mmref
from mmref.engine import CompiledModel
from mmref.engine.weights import Weights
from mmref.graph import passes
from mmref.graph.graph import Constant
from mmref.graph.trace import trace

sizes = st.integers(4, 75)


@given(seeds, rivals.variants(), st.booleans(), st.integers(1, 3), sizes, sizes, st.integers(1, 3))
@settings(max_examples=15)
def test_any_small_network(seed, config, trained, batch, height, width, threads):
    """Catches an order, number of states, width or size that the engine computes otherwise, shared exponentials where
    rates are no multiples, a result that depends on the batch or the threads."""
    model = rivals.alive(config, seed, trained)
    x = normal(seed, batch, config.in_chans, height, width)
    compiled = CompiledModel(model, threads=threads)
    y = compiled(x)
    assert_close(y, *rounding(of_layer(model, x)), dtype=np.float32)
    assert np.array_equal(compiled(x[-1:]), y[-1:])
    assert np.array_equal(CompiledModel(model, threads=4 - threads)(x), y)


@pytest.mark.parametrize("config, kernels", [
    (rivals.localvim(), {"path_conv", "sequence_scan", "norm_mean", "rotary", "rms_norm_channels", "gate"}),
    (rivals.efficientvmamba(), {"path_scan", "norm_mean", "norm_gate", "gate", "pad_to_multiple"})])
def test_every_pass_computes_the_same(config, kernels):
    """Catches a pass, or the text of a fused operation, that computes something else than the network does, and one
    that no longer finds what it was made for."""
    model = rivals.alive(config).astype(np.float64)
    x = normal(8, 2, 3, 41, 57).astype(np.float64)
    graph, expected = trace(model.forward, model, x.shape), model(x)
    for one in passes.PASSES:
        graph = one(graph)
        assert_close(graph.run(x), expected, 1e-11)
    names = {node.name for node in graph}
    assert kernels <= names and not names & {"cross_scan", "cross_merge", "causal_conv", "selective_scan", "softplus"}


def test_when_exponentials_are_shared():
    """Catches rates taken for multiples of the first that are not, by one state of one channel, and untrained ones not
    taken for such, which would only cost time."""
    A = -np.tile(np.arange(1, 17, dtype=np.float32), (2, 5, 1))

    def look(A):
        return Weights().multiples_of_the_first(Constant("A", "A", A.shape, A.dtype, lambda: A))
    assert look(A) and look((A * normal(0, 2, 5, 1) ** 2).astype(np.float32)) and look(-np.exp(np.log(-A)))
    A[1, 3, 9] *= np.float32(1 + 1e-5)
    assert not look(A)


@pytest.mark.parametrize("name", ["localvim_t_1x224x224", "localvim_t_2x200x200", "efficientvmamba_t_2x100x132"])
def test_published_figures(shared_golden, name):
    """Catches an error of the engine that small networks do not show."""
    from test_rivals import load
    figures, model, state, x = load(shared_golden, name)
    y = mmref.create_model(model, state, backend="numba", threads=2)(x)
    assert relative_error(y, figures["logits"]) <= 5e-6


@given(seeds, st.sampled_from(["steps", "all"]), st.integers(1, 3), st.integers(1, 90), st.integers(1, 90))
@settings(max_examples=10)
def test_pytorch_says_the_same(seed, scan, batch, height, width):
    """Catches windows that are padded or laid back otherwise, odd sides, resized tables, a token of another sample:
    two statements of LocalVim, in float64."""
    torch = pytest.importorskip("torch")
    from mmref.bench import torch_localvim
    ways = ("h v_flip w7 w2_flip", "v h_flip w3 w2")
    config = rivals.localvim((("rows", "columns backwards", "windows 7", "windows 2 backwards"),
                              ("columns", "rows backwards", "windows 3", "windows 2")))
    model = rivals.alive(config, seed, trained=True).astype(np.float64)
    module = torch_localvim.LocalVim(config.dim, ways, 7, config.img_size).double().eval()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in model.state_dict().items()})
    x = normal(seed, batch, 3, height, width, dtype=np.float64)
    with torch.no_grad():
        expected = torch_localvim.use_scan(module, scan)(torch.from_numpy(x)).numpy()
    assert_close(model(x), expected, 1e-11)
    assert_close(model(x[-1:]), expected[-1:], 1e-11)


@pytest.mark.parametrize("config, fixed", [(rivals.localvim(), (50, 70)), (rivals.efficientvmamba(), None)])
def test_onnx(config, fixed, tmp_path):
    """Catches an exporter that fits MobileMamba only; EfficientVMamba's graph takes every size, LocalVim's, whose
    tables are made for one, says so."""
    pytest.importorskip("onnx")
    from mmref.errors import NotTraceable
    from mmref.export.onnx import export_onnx
    from mmref.export.verify import verify
    model = rivals.alive(config)
    if fixed:
        with pytest.raises(NotTraceable, match="for one size only"):
            export_onnx(model, tmp_path / "free.onnx")
    export_onnx(model, tmp_path / "small.onnx", fixed=fixed)
    shapes = [(2, 3, *fixed), (1, 3, *fixed)] if fixed else [(2, 3, 50, 70), (1, 3, 33, 64)]
    assert all(found.passed for found in verify(model, tmp_path / "small.onnx", shapes=shapes))
