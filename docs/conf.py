"""The documentation site: `python -m sphinx -W docs site` (extra `docs`).

The pages are those that are read on the repository, too. Figures are made while the site builds, by the commands in
`FIGURES`, so none can be older than the code.
"""

import shlex
import subprocess
import sys
from pathlib import Path

from sphinx.errors import ExtensionError

import mmref

HERE = Path(__file__).parent
FIGURES = {  # file in _figures: the command behind `mmref` that makes it
    "scan.png": "show --sample cat --what scan -o",
    "wavelet.png": "show --sample cat --what wavelet -o",
    "delta.png": "show --sample cat --what delta -o",
    "features.png": "show --sample cat --what features -o",
    "erf.png": "show --sample cat --what erf --cells 16 -o",
    "network.svg": "show --what graph -o",
}

project, author, copyright = "mmref", "the mmref authors", "the mmref authors, MIT licence"
version = release = mmref.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "requirements*"]
html_theme, html_title = "furo", "mmref"
html_theme_options = {"source_repository": "", "navigation_with_keys": True}
html_extra_path = ["_extra"]
autodoc_typehints, autodoc_member_order = "none", "bysource"
napoleon_google_docstring = False
nitpicky = False


def make_figures(app):
    """Run every command whose figure is not there yet for the code as it is."""
    folder = HERE / "_figures"
    folder.mkdir(exist_ok=True)
    (HERE / "_extra").mkdir(exist_ok=True)
    for name, command in FIGURES.items():
        made = subprocess.run([sys.executable, "-m", "mmref", *shlex.split(command), str(folder / name)],
                              capture_output=True, text=True)
        if made.returncode:
            raise ExtensionError(f"mmref {command}: {made.stderr.strip()}")


def setup(app):
    app.connect("builder-inited", make_figures)
