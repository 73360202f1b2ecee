"""docs/adding_a_network.md, run as it stands: a network of one's own on every backend without a line written for it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from assertions import assert_close, of_layer, rounding
from strategies import enliven

from mmref.engine import CompiledModel
from mmref.export.verify import verify
from mmref.graph.trace import trace

PAGE = Path(__file__).parents[1] / "docs" / "adding_a_network.md"


@pytest.fixture(scope="module")
def page():
    """What the page's code leaves behind."""
    pytest.importorskip("onnx")
    names = {"__name__": "windows"}
    import sys
    import types
    module = sys.modules["windows"] = types.ModuleType("windows")  # dataclasses look their module up
    module.__dict__.update(names)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S):
        exec(compile(block, str(PAGE), "exec"), module.__dict__)
    return module


def test_the_page_runs(page):
    """Catches a page whose code does not run, or needs something written for its network."""
    assert page.logits.shape == (2, 10) and page.logits.dtype == np.float32


def test_backends_agree(page, tmp_path):
    """Catches an engine or exporter that fits published networks only."""
    model = enliven(page.Settings().build().initialise(seed=1))
    truth, tolerance = rounding(of_layer(model, page.x))
    for threads in (1, 2):
        assert_close(CompiledModel(model, threads=threads)(page.x), truth, tolerance, dtype=np.float32)
    path = tmp_path / "windows.onnx"
    path.write_bytes(page.to_onnx(model).SerializeToString())
    assert all(found.passed for found in verify(model, path, shapes=[(2, 3, 50, 70), (1, 3, 64, 33), (3, 3, 1, 1)]))


def test_it_is_one_graph_for_every_size(page):
    """Catches a text in the documents that is traced anew for every size."""
    assert trace(page.model.forward, page.model, (1, 3, 64, 64)).fixed_by is None
