"""`mmref check` finds what breaks a callable and makes it small; `mmref selftest` sees a network that is wrong."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import mmref
from mmref.cli import main
from mmref.models import mobilemamba
from mmref.validate.check import check
from mmref.validate.selftest import batch_error, golden_error, report, selftest


@pytest.fixture(scope="module")
def model():
    return mmref.create_model("mobilemamba_nano", pretrained=True)


def run(function, model, **options):
    return check(function, model, **{"examples": 20, "max_side": 24, **options})


def test_a_faithful_callable_passes(model):
    """Catches limits that rounding breaks: folded, and in float64."""
    folded, exact = model.fold_batchnorm(), model.astype(np.float64)
    for function in (folded, lambda x: exact(x.astype(np.float64))):
        failure, tried = run(function, model)
        assert failure is None and tried >= 15


def wrong_for(condition, model):
    return lambda x: model(x) * np.float32(1 + 0.1 * bool(condition(x)))


@pytest.mark.parametrize("condition, smallest", [
    (lambda x: len(x) > 1, {"batch": 2, "height": 1, "width": 1}),
    (lambda x: x.shape[2] > 5, {"batch": 1, "height": 6, "width": 1}),
    (lambda x: x.shape[3] % 2 == 0, {"batch": 1, "height": 1, "width": 2}),
    (lambda x: np.abs(x).mean() > 20, {"magnitude": 30.0})])
def test_failures_are_made_small(model, condition, smallest):
    """Catches a failure that is reported as it was found, or an input that cannot be made again."""
    function = wrong_for(condition, model)
    failure, _ = run(function, model, examples=60)
    assert {key: getattr(failure, key) for key in smallest} == smallest
    x = failure.input()
    assert condition(x) and not np.allclose(function(x), model(x), atol=1e-3)


@pytest.mark.parametrize("function, reason", [
    (lambda x: 1 / 0, "ZeroDivisionError"), (lambda x: np.zeros((1, 3), np.float32), "gave shape"),
    (lambda x: np.full((len(x), 10), np.nan, np.float32), "NaN"), (lambda x: np.zeros((len(x), 10), int), "no floats")])
def test_reasons(model, function, reason):
    """Catches a callable's own error that ends the search, and results that are no answers."""
    assert reason in run(function, model)[0].reason


def test_command(tmp_path, monkeypatch, capsys):
    """Catches an exit status that CI cannot use, and a module in the working folder that is not found."""
    (tmp_path / "my_port.py").write_text("import mmref\nm = mmref.create_model(pretrained=True)\n"
                                         "def right(x): return m(x)\ndef wrong(x): return m(x[::-1])\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_port", raising=False)
    options = ["--examples", "12", "--max-side", "20", "--json"]
    assert main(["check", "my_port:right", *options]) == 0
    assert json.loads(capsys.readouterr().out)["same"]
    assert main(["check", "my_port:wrong", *options]) == 1
    assert json.loads(capsys.readouterr().out)["failure"]["batch"] == 2
    for bad in ("my_port", "my_port:absent", "absent:f", "my_port:m.config"):
        assert main(["check", bad]) == 2 and capsys.readouterr().err.count("\n") == 1


def test_selftest_passes_and_reports(model, capsys):
    """Catches a report that leaves out what a bug report needs."""
    result = selftest(model)
    assert result["passed"] and len(result["checks"]) >= 8
    text = report(result)
    for word in ("mmref", "numpy", "Python", "weights", "published figures", "batch independence", "numba against"):
        assert word in text
    assert max(map(len, text.splitlines())) < 200 and len(text.splitlines()) < 40


def test_selftest_sees_a_wrong_network(model, monkeypatch):
    """Catches a self-test that passes whatever it is given: the published figures and mixed samples must show."""
    from mmref.validate.golden import figures
    golden = figures()["t2_1x7x5"]
    assert golden_error(golden, np.float64) < 1e-12
    monkeypatch.setattr(mobilemamba.Block, "forward", lambda b, x: b.ffn1(b.dw1(b.mixer(b.ffn0(b.dw0(x))))))
    assert golden_error(golden, np.float64) > 1e-3
    monkeypatch.setattr(mobilemamba.Block, "forward", lambda b, x: x + x.mean(0, keepdims=True))
    assert batch_error(model.astype(np.float64)) > 1e-3
