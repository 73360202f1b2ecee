"""Every example runs as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
EXPECTED = {"classify_a_picture.py": "cat", "look_inside_a_block.py": "half of the state is left after",
            "convert_a_checkpoint.py": "bit for bit", "pixels_to_label.py": "cat"}


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example(name, tmp_path):
    """Catches an example that the code has left behind, and one that writes beside itself."""
    done = subprocess.run([sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, cwd=tmp_path,
                          check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert EXPECTED.get(name, "") in done.stdout
