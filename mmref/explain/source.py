"""The source text that a run came from: every class of layer, with the file it stands in."""

from __future__ import annotations

import inspect
from pathlib import Path

import mmref

MOST_BYTES = 120_000  # of a file; of a longer one the class alone is shown


def kinds(layers: dict) -> tuple[dict, dict]:
    """({class name: {"doc", "file", "line", "end"}}, {file: its text}) of the layers' classes. A class whose text
    is not at hand (typed into an interpreter) has file None."""
    found, files = {}, {}
    for layer in layers.values():
        kind = type(layer)
        name = kind.__name__
        if name in found:
            continue
        found[name] = {"doc": inspect.getdoc(kind) or "", "file": None, "line": 0, "end": 0}
        try:
            path = Path(inspect.getsourcefile(kind))
            lines, start = inspect.getsourcelines(kind)
            text = path.read_text("utf-8")
        except (OSError, TypeError, UnicodeDecodeError):
            continue
        shown = _shown(path)
        if len(text) > MOST_BYTES:
            shown, text, start = f"{shown}: {name}", "".join(lines), 1
        files[shown] = text
        found[name] |= {"file": shown, "line": start, "end": start + len(lines) - 1}
    return found, files


def _shown(path):
    """The file's path as readers know it: within the package, or its bare name."""
    root = Path(mmref.__file__).resolve().parents[1]
    path = path.resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root / "mmref") else path.name
