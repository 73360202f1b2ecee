"""The recipes of docs/validate.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import mmref
from mmref.validate.compare import compare
from mmref.validate.trace import trace_model
from mmref.validate.trace_file import read_trace

TEXT = (Path(__file__).parents[1] / "docs" / "validate.md").read_text()
RECIPES = dict(re.findall(r"```python recipe=(\w+)\n(.*?)```", TEXT, re.S))


@pytest.fixture(scope="module")
def model():
    return mmref.create_model("mobilemamba_nano", pretrained=True, dtype=np.float64)


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((2, 3, 83, 145)).astype(np.float32)


def run(name, tmp_path, monkeypatch, **names):
    monkeypatch.chdir(tmp_path)
    exec(compile(RECIPES[name], f"recipe {name}", "exec"), names)
    return read_trace("candidate.npz")


def test_torch(model, x, tmp_path, monkeypatch):
    """Catches a hook that keeps a view, or names that no longer match."""
    torch = pytest.importorskip("torch")
    from mmref.bench import torch_network
    network = torch_network.create("nano", 10)
    state = {k: torch.tensor(np.asarray(v, np.float32)) for k, v in model.state_dict().items()}
    network.load_state_dict(state, strict=False)
    candidate = run("torch", tmp_path, monkeypatch, network=network, x=torch.from_numpy(x))
    result = compare(trace_model(model, x), candidate, model=model)
    assert result.same and len(result.rows) > 300, result.first


@pytest.mark.parametrize("kind", ["DataParallel", "a module of one's own", "compiled names"])
def test_torch_in_a_wrapper(model, x, tmp_path, monkeypatch, kind):
    """Catches "SAME" with most of the records unmatched, or an alarm, because a wrapper stands before every name."""
    torch = pytest.importorskip("torch")
    from mmref.bench import torch_network
    network = torch_network.create("nano", 10)
    network.load_state_dict({k: torch.tensor(np.asarray(v, np.float32)) for k, v in model.state_dict().items()},
                            strict=False)

    class Wrapper(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name
            self.add_module(name, network)

        def forward(self, x):
            return getattr(self, self.name)(x)
    wrapped = torch.nn.DataParallel(network) if kind == "DataParallel" else Wrapper(
        "_orig_mod" if kind == "compiled names" else "encoder")
    x = x[:, :, :41, :57].copy()
    candidate = run("torch", tmp_path, monkeypatch, network=wrapped, x=torch.from_numpy(x))
    result = compare(trace_model(model, x), candidate, model=model)
    assert result.same and len(result.rows) > 300 and result.output == "agrees", result.first


def test_onnx_of_torch(model, tmp_path, monkeypatch):
    """Catches values of a graph of torch.onnx that are read as none of the network's, or as wrong ones."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    import warnings

    from mmref.bench import torch_network
    network = torch_network.create("nano", 10)
    network.load_state_dict({k: torch.tensor(np.asarray(v, np.float32)) for k, v in model.state_dict().items()},
                            strict=False)
    x = np.random.default_rng(0).standard_normal((2, 3, 33, 21)).astype(np.float32)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(torch_network.use_scan(network.eval(), "doubling"), (torch.from_numpy(x),),
                          tmp_path / "model.onnx", dynamo=False, opset_version=17)
    candidate = run("onnx", tmp_path, monkeypatch, x=x)
    result = compare(trace_model(model, x), candidate, model=model)
    assert result.same and len(result.rows) > 250 and result.output == "agrees", result.first


def test_onnx(model, x, tmp_path, monkeypatch):
    """Catches names of mmref's own export that the recipe does not turn into layers' names."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from mmref.export.onnx import export_onnx
    export_onnx(model.astype(np.float32), tmp_path / "model.onnx")
    candidate = run("onnx", tmp_path, monkeypatch, x=x)
    result = compare(trace_model(model, x), candidate, model=model)
    assert result.same and len(result.rows) > 80, (result.first, [r for r in result.rows if r.verdict != "same"][:3])


def test_numpy(model, x, tmp_path, monkeypatch):
    """Catches a wrapper that changes the result."""
    single = model.astype(np.float32)
    candidate = run("numpy", tmp_path, monkeypatch, x=x, stem=single.patch_embed, network=lambda x, stem: stem(x))
    result = compare(trace_model(model, x), candidate, model=model)
    assert result.same and {row.candidate for row in result.rows} == {"input", "patch_embed"}
    assert "patch_embed" in [row.name for row in result.rows]  # and the layers inside it that have its value


def test_jax(x, tmp_path, monkeypatch):
    """Catches a recipe that JAX's arrays do not fit."""
    pytest.importorskip("jax")
    assert "relu" in run("jax", tmp_path, monkeypatch, x=x).records
