"""What `mmref explain` writes down: true, small, the same every time; and what it says where it cannot."""

from __future__ import annotations

import base64
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmref
from mmref.cli import main

pytest.importorskip("jinja2")

from mmref.data.picture import to_array
from mmref.data.samples import sample_picture
from mmref.explain.drawing import halvings, untouched
from mmref.explain.formula import FORMULAS, mathml
from mmref.explain.pack import map_record, parameter_record, share
from mmref.explain.page import explain
from mmref.explain.photograph import network_input, photograph
from mmref.explain.run import observe
from mmref.nn.operation import OPERATIONS


@pytest.fixture(scope="module")
def nano():
    return mmref.create_model("mobilemamba_nano", pretrained=True)


@pytest.fixture(scope="module")
def run(nano):
    return observe(nano, to_array(sample_picture("cat"), nano.transform)[None])


def test_what_is_drawn_is_the_run(nano, run):
    """Catches a graph that computes otherwise than the network: the page would show another run."""
    assert (run.output == nano(run.values[run.input])).all()
    assert {name for name in run.layers if name} == set(run.graph.layers) - {""}


def test_facts_are_true(nano, run):
    """Catches a halving or an untouched group that is missed, or found where there is none."""
    assert [(found["from"][0], found["to"][0]) for found in halvings(run)] == [
        (128, 64), (64, 32), (32, 16), (16, 8), (8, 4), (4, 2)]
    assert {found["layer"] for found in untouched(run)} == {
        name for name, layer in nano.walk() if getattr(layer, "split", (0,))[-1] > 0}
    for found in untouched(run):
        split = dict(nano.walk())[found["layer"]].split
        assert (found["from"], found["to"], found["of"]) == (sum(split[:2]), sum(split) - 1, sum(split))


def test_same_run_same_bytes(nano):
    """Catches a time, a path of this machine or an order of a set in the page."""
    pages = [explain(nano, sample_picture("cat"), "cat", "blocks2.3.*", 2) for _ in range(2)]
    assert pages[0] == pages[1] and "/home/" not in pages[0] and mmref.__file__ not in pages[0]


@pytest.mark.parametrize("name, most", [("mobilemamba_nano", 6e6), ("mobilemamba_t2", 12e6), ("mobilemamba_b2", 12e6)])
def test_pages_stay_small(name, most):
    """Catches a page that grows with the network, or says nothing of what it leaves out."""
    model = mmref.create_model(name)
    text = explain(model, sample_picture("cat"), "cat", cells=1)
    assert 1e6 < len(text) < most


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2 ** 32 - 1), st.integers(1, 9), st.integers(1, 150), st.integers(1, 90), st.integers(1, 30_000))
def test_maps_are_kept_to_half_a_level(seed, channels, height, width, limit):
    """Catches levels that overflow, channels under each other's names, a map that takes more than its share."""
    rng = np.random.default_rng(seed)
    value = (rng.standard_normal((1, channels, height, width)) * 10.0 ** rng.integers(-6, 6)).astype(np.float32)
    record = map_record(value, limit)
    kept = range(channels) if record["kept"] is None else record["kept"]
    low, high = (np.frombuffer(base64.b64decode(record[name]), "<f4")[:, None, None] for name in ("low", "high"))
    levels = np.frombuffer(base64.b64decode(record["levels"]), np.uint8).reshape(-1, *record["size"])
    shown = value[0, list(kept), ::record["step"], ::record["step"]]
    assert len(levels) == 1 or levels.size <= limit
    assert max(record["size"]) <= 64 and sum(record["histogram"]) == value.size
    assert (np.abs(low + (high.astype(float) - low) * levels / 255 - shown) <= (high - low) * 0.502 / 255 + 1e-30).all()


def test_budget_is_kept():
    """Catches a share that lets all maps together pass the budget."""
    shapes = [(3, 64, 64), (400, 7, 9), (1, 1, 1), (64, 32, 32)]
    for budget in (10_000, 50_000, 10 ** 6):
        limit = share(shapes, budget)
        assert sum(min(c, max(1, limit // (h * w))) * h * w for c, h, w in shapes) <= budget


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (70, 1, 5, 5), (200, 90), (96, 1), (2, 96, 3), (5,), (1, 30, 1, 1),
                                   (1000, 64, 1, 1)])
def test_parameters_become_small_pictures(shape):
    """Catches a parameter of some rank that has no picture, or one as large as itself."""
    record = parameter_record("weight", np.random.default_rng(0).standard_normal(shape))
    height, width = record["size"]
    assert len(base64.b64decode(record["levels"])) == height * width <= 4096 and record["shape"] == list(shape)


def test_every_operation_has_a_formula():
    """Catches an operation of the networks that the page cannot write, and MathML that is no XML."""
    from mmref.models.registry import models  # all networks' own operations
    assert models() and {"conv2d", "selective_scan"} <= set(FORMULAS) <= set(OPERATIONS)
    for text in FORMULAS.values():
        tree = ElementTree.fromstring(mathml(text))
        plain = "".join(tree.itertext())
        assert "{" not in plain and "_" not in plain and "=" in plain


@pytest.mark.parametrize("arguments, said", [
    ([], "PICTURE or --sample"), (["--sample", "cat", "x.jpg"], "not both"), (["/nowhere.jpg"], "/nowhere.jpg"),
    (["--sample", "cat", "--layers", "nothing"], "--layers must match"),
    (["--sample", "cat", "--cells", "0"], "--cells must be"),
    (["--sample", "cat", "--cells", "999"], "--cells must be"),
    (["--sample", "cat", "-o", "/nowhere/x.html"], "/nowhere/x.html")])
def test_bad_use_is_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    """Catches a traceback, and a file left behind."""
    monkeypatch.chdir(tmp_path)
    assert main(["explain", "-o", "x.html", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mmref: error: ") and error.count("\n") == 1 and said in error
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_finite(nano):
    """Catches a page drawn from NaN, or a warning in place of an error that says which layer."""
    model = nano.astype(np.float32)
    model.blocks2.children["3"].dw0.m.bn.bias[0] = np.inf
    with pytest.raises(mmref.errors.ValueProblem, match=r"blocks2\.3\.dw0\.m\.bn: batch_norm gave NaN or infinity"):
        explain(model, sample_picture("cat"), cells=1)


def test_without_jinja_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    """Catches an ImportError's traceback, and a template engine that every user would have to have."""
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["explain", "--sample", "cat", "-o", str(tmp_path / "x.html")]) == 2
    assert 'pip install "mmref[explain]"' in capsys.readouterr().err


def test_detectors_are_refused_by_name():
    """Catches a page made of one of a detector's maps, or a KeyError in its place."""
    with pytest.raises(mmref.errors.ValueProblem, match="mobilemamba_nano_ssdlite gives 12 maps"):
        explain(mmref.create_model("mobilemamba_nano_ssdlite"), sample_picture("cat"), "cat", cells=2)


@pytest.mark.parametrize("transform", [mmref.Transform(64), mmref.KeepRatio(48), mmref.Frame(48, 96), mmref.Frame(
    48, 96, mean=(0.4,), std=(0.2,))], ids=["square", "whole", "filled", "grey"])
@pytest.mark.parametrize("size", [(90, 60), (60, 130), (900, 5)], ids=str)
def test_the_photograph_covers_what_the_network_sees(transform, size):
    """Catches marks that point beside what they mean: a photograph cut or filled up otherwise than the input."""
    picture = sample_picture("cat").convert("RGB").resize(size)
    x, shown = network_input(picture, transform), photograph(picture, transform)
    height, width = x.shape[1:]
    assert 1 <= max(shown.shape) <= 4 * 384 and shown.min() >= 0 and shown.max() <= 1
    assert abs(shown.shape[1] / shown.shape[0] * height / width - 1) < 0.05          # rounding, on a slender one
    rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), shown.shape[:2], strict=True))
    coarse = shown[rows][:, columns].transpose(2, 0, 1)[:len(x)]
    seen = x * np.reshape(transform.std, (-1, 1, 1)) + np.reshape(transform.mean, (-1, 1, 1))
    assert np.abs(coarse - seen).mean() < 0.06                # a mirrored one is 0.1 and more away
