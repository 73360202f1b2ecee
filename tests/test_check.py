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


@pytest.mark.parametrize("wrap, word", [
    (lambda y: [y, y], "gave a list of 2 arrays"), (lambda y: (y,), "gave a tuple of 1 arrays"),
    (lambda y: {"logits": y}, "gave a dict of 1 (logits)"), (lambda y: {}, "gave an empty dict"),
    (lambda y: None, "gave None"), (lambda y: softmax(y), "gave the softmax of the scores"),
    (lambda y: np.log(softmax(y)), "gave the logarithm of the softmax"),
    (lambda y: 1 / (1 + np.exp(-y)), "gave the sigmoid of the scores"),
    (lambda y: y.astype(np.float16), "computes in float16"), (lambda y: y.T.copy().T[:, :, None], "another shape")])
def test_answers_of_another_kind_are_named(model, wrap, word):
    """Catches a softmax, float16, lists and dicts reported as so many roundings, or as a shape."""
    assert word in run(lambda x: wrap(model(x)), model)[0].reason


def softmax(y):
    e = np.exp(y - y.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_a_callable_that_ends_the_program_is_a_failure(model):
    """Catches sys.exit(0) in a callable that ends the check with status 0 and no word."""
    failure, _ = run(lambda x: sys.exit(0), model)
    assert "SystemExit" in failure.reason and not failure.flaky


def test_flaky_callables_are_called_so(model):
    """Catches a callable that fails now and then, or from some call on, taken for right or for wrong everywhere."""
    calls = []

    def now_and_then(x):
        calls.append(0)
        return model(x) * np.float32(1.5 if len(calls) == 4 else 1)

    def broken_from_then_on(x):
        calls.append(0)
        return model(x) * np.float32(1.5 if len(calls) >= 5 else 1)
    for function in (now_and_then, broken_from_then_on):
        calls.clear()
        failure, _ = run(function, model)
        assert failure is not None and failure.flaky and failure.reason.startswith("flaky: ")
    assert not run(lambda x: model(x) + 1, model)[0].flaky


def test_the_size_and_batch_of_use_are_tried(model):
    """Catches a fault that only shows at the size the network is used with, or in a batch larger than any drawn."""
    size = model.config.img_size
    for condition, found in ((lambda x: x.shape[2:] == (size, size), ("height", size)),
                             (lambda x: len(x) > 4, ("batch", 8))):
        failure, _ = run(wrong_for(condition, model), model)
        assert getattr(failure, found[0]) == found[1]
        assert run(wrong_for(condition, model), model, own_size=False)[0] is None


def test_what_a_callable_prints_stays_out_of_the_answer(tmp_path, monkeypatch, capsys):
    """Catches printing that breaks the JSON."""
    (tmp_path / "talkative.py").write_text(
        "print('importing')\nimport mmref\nmodel = mmref.create_model('mobilemamba_nano', pretrained=True)\n"
        "def predict(x):\n    print('called')\n    return model(x)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "talkative", raising=False)
    assert main(["check", "talkative:predict", "--model", "mobilemamba_nano", "--examples", "4", "--max-side", "9",
                 "--json"]) == 0
    out, error = capsys.readouterr()
    answer = json.loads(out)
    assert answer["same"] and "called" in error and "importing" in error
    assert any("batch 8" in line for line in answer["exercised"])


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
