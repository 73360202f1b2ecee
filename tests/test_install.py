"""Where mmref is imported from: a checkout, a wheel, both, in any working folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mmref

ROOT = Path(__file__).parents[1]
IGNORED = shutil.ignore_patterns("__pycache__", ".*", "build", "*.egg-info", "tests", "docs", "training")

# Prints the folders that were taken; -c lays the working folder first on the path, as `python` alone does.
TOUR = """
import mmref, mmref.kernels, mmref.weights
from importlib.resources import files
from pathlib import Path
from mmref.weights.store import manifest
assert all((files("mmref.explain") / f"page.{kind}").is_file() for kind in ("html", "css"))
assert (files("mmref.weights") / "mobilemamba_nano.safetensors").is_file() and manifest()
assert mmref.create_model("mobilemamba_nano", pretrained=True).class_names[0] == "airplane"
from mmref.data.samples import sample_picture
assert mmref.segment(sample_picture("scene1")).labels.any() and mmref.detect(sample_picture("scene2")).labels
from mmref.kernels import target
import mmref.kernels.cuda
print(*(Path(module.__file__).resolve().parent for module in (mmref, mmref.kernels, mmref.weights)), sep="\\n")
"""


def python(code, folder, *path, check=True):
    """Run code in `folder`, with `path` where installed packages lie: behind the working folder, before site-packages
    (where mmref itself may be installed, with a finder that would find it whatever is tested here)."""
    stop_finder = ("import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
                   f"sys.path[:] = [p for p in sys.path if not {str(ROOT)!r} == p]\n")
    done = subprocess.run([sys.executable, "-c", stop_finder + code], cwd=folder, text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


def taken(folder, *path):
    return [Path(line) for line in python(TOUR, folder, *path).stdout.splitlines()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout, elsewhere."""
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("elsewhere") / "checkout", ignore=IGNORED)).resolve()


@pytest.fixture(scope="module")
def installed(checkout, tmp_path_factory):
    """A folder of packages with mmref in it, as `pip install .` leaves it."""
    pytest.importorskip("setuptools", "77")
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(checkout, folder / "source")
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site-packages")
    return (folder / "site-packages").resolve()


def test_checkout_that_is_not_installed(checkout, tmp_path):
    """Catches `No module named mmref.weights` where nothing was installed: in the checkout, and from elsewhere."""
    expected = [checkout / name for name in ("mmref", "kernels", "weights")]
    assert taken(checkout) == taken(tmp_path, checkout) == expected
    (tmp_path / "mmref").symlink_to(checkout / "mmref")
    assert taken(tmp_path) == expected


def test_checkout_before_installed(checkout, installed, tmp_path):
    """Catches the README's tour failing in the folder where its first command was typed, and parts of two copies mixed:
    Python in a checkout takes all of it from there, elsewhere all of it from what is installed."""
    assert taken(checkout, installed) == [checkout / name for name in ("mmref", "kernels", "weights")]
    package = installed / "mmref"
    assert taken(tmp_path, installed) == [package, package / "kernels", package / "weights"]


FOREIGN = {"nothing": None, "another project": '[project]\nname = "other"\n[[tool.vendored]]\nname = "mmref"\n',
           "no project": "[tool.ruff]\nline-length = 99\n", "odd": 'project = "mmref"\n', "broken": '[project\n'}


@pytest.mark.parametrize("project", FOREIGN.values(), ids=FOREIGN)
def test_foreign_folders_beside_the_package(checkout, installed, tmp_path, project):
    """Catches somebody else's `kernels` and `weights` taken for ours: beside an installed mmref, and beside one that
    was copied into another project without them."""
    site, copied = tmp_path / "site", tmp_path / "copied"
    shutil.copytree(installed, site)
    shutil.copytree(checkout / "mmref", copied / "mmref")
    for folder in (site, copied):
        for name in ("kernels", "weights"):
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text("raise SystemExit('foreign')")
        if project is not None:
            (folder / "pyproject.toml").write_text(project)
    assert taken(tmp_path, site) == [site / "mmref", site / "mmref" / "kernels", site / "mmref" / "weights"]
    done = python("import mmref.weights", copied, check=False)
    assert done.returncode == 1 and "No module named 'mmref.weights'" in done.stderr


def test_path_here():
    """Catches a package that is found at two places, or a folder that is looked into twice."""
    assert len(mmref.__path__) == len(set(mmref.__path__)) <= 2
