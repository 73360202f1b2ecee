"""Where weights and compiled kernels are kept: one rule, and an error in words where there is no such place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmref.errors import ValueProblem
from mmref.home import cache_folder
from mmref.kernels import cache
from mmref.weights.store import cached


def test_where_the_cache_is(monkeypatch, tmp_path):
    """Catches files strewn over the home folder, or weights and kernels that go by different rules."""
    monkeypatch.delenv("MMREF_CACHE_DIR", raising=False)
    monkeypatch.setenv("MMREF_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" == cache.folders()[0] == cached("mobilemamba_t2")[0].parents[1]
    monkeypatch.setenv("MMREF_HOME", "~/x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert cache_folder() == tmp_path / "x"
    monkeypatch.setenv("MMREF_HOME", "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mmref"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "mmref"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder().parts[-3:] == ("Library", "Caches", "mmref")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    assert cache_folder() == tmp_path / "Local" / "mmref"
    monkeypatch.setenv("MMREF_CACHE_DIR", str(tmp_path / "kernels"))
    assert cache.folders() == [tmp_path / "kernels"] and cached("mobilemamba_t2")[0].parents[1] == cache_folder()


HOMELESS = """
import os, sys
{identity}
os.environ.pop("HOME", None)
os.environ.pop("XDG_CACHE_HOME", None)
from mmref.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="users of another kind")
@pytest.mark.parametrize("command", [["weights", "list"], ["weights", "path"], ["weights", "fetch", "mobilemamba_t2"],
                                     ["classify", "--sample", "cat", "--model", "mobilemamba_t2"]])
@pytest.mark.parametrize("home", [None, "~nosuch-user/x"])
def test_no_home(command, home):
    """Catches a traceback where there is no home folder (a user without an entry, as containers have) or MMREF_HOME
    names one that is not there."""
    if home is None:
        identity = "import pwd\ndef nobody(uid): raise KeyError(uid)\npwd.getpwuid = nobody"
        variables = {}
    else:
        identity, variables = "", {"MMREF_HOME": home}
    environment = {name: value for name, value in os.environ.items() if name != "MMREF_HOME"} | variables
    done = subprocess.run([sys.executable, "-c", HOMELESS.format(identity=identity), *command], capture_output=True,
                          text=True, check=False, env=environment)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.startswith("mmref: error: ") and done.stderr.count("\n") == 1
    assert "set MMREF_HOME to a folder" in done.stderr


def test_kernels_do_without(monkeypatch):
    """Catches an error from the compiled engine where there is nowhere to keep its kernels: it compiles them anew."""
    monkeypatch.delenv("MMREF_CACHE_DIR", raising=False)
    monkeypatch.setenv("MMREF_HOME", "~nosuch-user/x")
    assert cache.folders() == [] and cache.load() is None and not cache.save(b"code")
    with pytest.raises(ValueProblem, match="MMREF_HOME must be a folder, got '~nosuch-user/x'"):
        cache_folder()
    assert not Path("~nosuch-user").exists()
