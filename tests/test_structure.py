"""The rooms of docs/structure.md: dependencies point one way."""

from __future__ import annotations

import ast
from pathlib import Path

import mmref
import mmref.kernels
import mmref.weights

ROOT = Path(mmref.__file__).parent
# From the top: a room may use those behind it. Helpers (single files of the package) may be used by everybody.
ROOMS = ("cli", "bench", "evaluate", "explain", "show", "validate", "tasks", "export", "engine", "models", "detection",
         "graph",
         "kernels", "nn", "data", "weights")
FOLDERS = {"kernels": Path(mmref.kernels.__file__).parent, "weights": Path(mmref.weights.__file__).parent}
# The arrows up that are meant, taken at run time only: (from, to).
MEANT = {("nn", "kernels"), ("models", "engine"), ("weights", "models"), ("weights", "data")}


def imports(path):
    """(module, whether the import stands at the top of the file) of every import of mmref in a file."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mmref":
            yield node.module, node in tree.body
        elif isinstance(node, ast.Import):
            yield from ((name.name, node in tree.body) for name in node.names if name.name.startswith("mmref."))


def test_rooms_point_one_way():
    """Catches an import from a room above, which would tie two rooms into one."""
    wrong = []
    for room in ROOMS:
        for path in sorted(FOLDERS.get(room, ROOT / room).rglob("*.py")):
            if "training" in path.parts:
                continue
            for module, at_top in imports(path):
                parts = module.split(".")
                other = parts[1] if len(parts) > 1 else ""
                if other in ROOMS and ROOMS.index(other) < ROOMS.index(room) and not (
                        not at_top and (room, other) in MEANT):
                    wrong.append(f"{path.relative_to(ROOT.parent)}: {module}")
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_the_page():
    """Catches a room that docs/structure.md does not tell of."""
    page = (Path(__file__).parents[1] / "docs" / "structure.md").read_text("utf-8")
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert rooms | {"kernels", "weights"} == set(ROOMS)
    assert not [room for room in ROOMS if f"`{room}/`" not in page]
