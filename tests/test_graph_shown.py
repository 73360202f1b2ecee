"""A graph as a table and as a drawing, and the page that lists the operations."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from strategies import lively

from mmref.cli import main
from mmref.graph.passes import fold_batch_norm, fused
from mmref.graph.table import TITLES, rows
from mmref.graph.trace import trace
from mmref.nn.operation import OPERATIONS

DOCS = Path(__file__).parents[1] / "docs"


def test_table():
    """Catches a row that names another layer, reads another operation or hides where a size comes from."""
    model = lively()
    table = rows(trace(model.forward, model, (1, 3, 64, 64)))
    assert all(len(row) == len(TITLES) for row in table)
    assert table[0][1:3] == ("input", "(input)") and table[1][1:4] == ("conv2d", "patch_embed.0.c", "0")
    merge = next(row for row in table if row[1] == "cross_merge")
    reads = int(merge[3])
    assert table[reads][1] == "selective_scan" and re.search(r"height=height of \d+", merge[5])
    assert len(rows(fused(trace(model.forward, model, (1, 3, 64, 64))))) < len(table) / 2


def test_info_prints_it(capsys):
    """Catches a command that shows another graph than the network's."""
    assert main(["info", "mobilemamba_nano", "--graph"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["#", "operation", "layer"] and "operations" in lines[-1]
    assert main(["info", "mobilemamba_nano", "--graph", "fused", "--json", "--img-size", "40"]) == 0
    found = json.loads(capsys.readouterr().out)["operations"]
    assert {"convolution", "path_scan", "wavelet_branch"} <= {row["operation"] for row in found}
    assert main(["info", "mobilemamba_nano", "--graph", "--plan"]) == 2


def test_drawing(tmp_path, capsys):
    """Catches a network that cannot be drawn (any scan order, a folded one) and a layer that is not there."""
    pytest.importorskip("matplotlib")
    from mmref.models.summary import summarize
    from mmref.show.graph import default_layer, draw_graph, levels_of, operations_of, places
    for model in (lively(), lively(scan_order="cross", wavelet_levels=2).fold_batchnorm()):
        assert default_layer(model, {row.name: row for row in summarize(model)}) == "blocks1.0"
        figure = draw_graph(model, size=64)
        words = {text.get_text() for axes in figure.axes for text in axes.texts}
        assert {"selective_scan", "cross_merge", "conv2d"} <= words
        assert any(word.startswith("blocks2") for word in words)
    graph = fold_batch_norm(trace(model.forward, model, (1, 3, 64, 64)))
    inside = operations_of(graph, "blocks1.0")
    levels = levels_of(inside)
    assert all(levels[source] < levels[node] for node in inside for source in node.sources if source in levels)
    where = sorted(places(inside, levels).values(), key=lambda place: (place[1], place[0]))
    assert all(b[0] - a[0] > 0.99 for a, b in zip(where, where[1:], strict=False) if a[1] == b[1])  # none on another
    path = tmp_path / "net.svg"
    assert main(["show", "--what", "graph", "--layer", "blocks2.1", "-o", str(path)]) == 0
    assert path.stat().st_size > 9999
    for wrong in (["--layer", "nosuch"], ["--sample", "aero"]):
        assert main(["show", "--what", "graph", "-o", str(path), *wrong]) == 2
    assert "mmref: error:" in capsys.readouterr().err


def test_the_page_lists_every_operation():
    """Catches an operation that docs/operations.md does not tell of, and one that it tells of though it is gone."""
    listed = set()
    for line in (DOCS / "operations.md").read_text("utf-8").splitlines():
        if line.startswith("| `"):
            listed |= set(re.findall(r"`(\w+)`", line.split("|")[1]))
    assert listed == set(OPERATIONS)
