"""The second bench's faults are of another hand than the diagnoses, and some of them, and some right programs, through
`mmref compare`. All of them: python tests/foreign_bench.py."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mmref

pytest.importorskip("torch")

import foreign_bench
from foreign_faults import FAULTS

GROUPS = ("numerics", "layout", "padding", "weights", "preparation", "batch", "subtle", "several")
SAMPLE = ("eps 0.001 in every batch norm", "gate by GELU", "both directions read forwards",
          "odd maps padded at the left in blocks1.0", "blocks2.1.conv1.c not loaded",
          "a moving average in place of the raw weights", "HWC read as CHW", "blurred", "pooling mixes samples",
          "last channel of the scan lost", "base scale on the sum", "eps and a lost Ds")
EXPORTED = ("Ds zero", "patch_embed.0.c padded (0, 2)", "local branch without ReLU")


def imported(path):
    """Names of modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_faults_are_of_another_hand():
    """Catches faults taken from the list that diagnoses come from, or the other way round."""
    assert not [name for name in imported(foreign_bench.Path(__file__).parent / "foreign_faults.py")
                if name.startswith("mmref.validate")]
    for path in (Path(mmref.__file__).parent / "validate").glob("*.py"):
        assert not [name for name in imported(path) if "foreign" in name]


def test_there_are_enough_of_every_kind():
    """Catches a bench that shrinks, or two faults of one name."""
    assert len(FAULTS) >= 120 and len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert {fault.group for fault in FAULTS} == set(GROUPS)
    assert sum(fault.exportable for fault in FAULTS) >= 120


@pytest.fixture(scope="module")
def bench():
    return foreign_bench.Bench()


@pytest.mark.parametrize("graph, names", [("torch", SAMPLE), ("onnx", EXPORTED)])
def test_faults_of_another_hand(bench, graph, names):
    """Catches a wrong layer named, or a mistake named that was not made."""
    if graph == "onnx":
        pytest.importorskip("onnxruntime")
    chosen = [fault for fault in FAULTS if fault.name in names]
    assert len(chosen) == len(names)
    rows = [bench.judged(fault, graph) for fault in chosen]
    assert [row for row in rows if not row["layer_right"] or row["diagnosis_right"] is False] == []
    assert sum(row["diagnosis_right"] is None for row in rows) <= 0.4 * len(rows)


def test_right_programs_of_every_kind():
    """Catches an accusation of foreign names, left-out layers, another exporter or fewer bits."""
    pytest.importorskip("onnxruntime")
    kinds = len(foreign_bench.KINDS) + 1 + len(foreign_bench.REDUCED)
    rows = list(foreign_bench.run_faithful(kinds, seed=7))
    assert [row for row in rows if not row["same"]] == []
    assert len({row["kind"] for row in rows}) == kinds and len({row["disguise"] for row in rows}) > 3
