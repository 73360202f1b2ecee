"""The documentation site: `sphinx-build -W --keep-going -b html docs site` (extra `docs`).

The pages are those that are read in the repository, too, as plain Markdown. Figures and the live page of the cat are
made while the site is built, by the commands in `MADE`; none can be older than the code.
"""

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

from docutils.nodes import SkipNode, math_block
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError
from sphinx.util import logging

import mmref

HERE = Path(__file__).parent
MADE = {  # file: the command behind `mmref` that makes it
    "_figures/scan.png": "show --sample cat --what scan -o",
    "_figures/wavelet.png": "show --sample cat --what wavelet -o",
    "_figures/delta.png": "show --sample cat --what delta -o",
    "_figures/features.png": "show --sample cat --what features -o",
    "_figures/erf.png": "show --sample cat --what erf --cells 16 -o",
    "_figures/network.svg": "show --what graph -o",
    "_extra/cat.html": "explain --sample cat -o",
    "_figures/orders_cross.svg": "show --what scan --order cross -o",
    "_figures/orders_windows.svg": "show --what scan --order 'windows 2' 'windows 2 backwards' 'windows 3' -o",
    "_figures/orders_localvim.svg": "show --what scan --model localvim_t --layer layers.0 -o",
    "_figures/orders_atrous.svg": "show --what scan --order atrous -o",
}

for made in MADE:  # before Sphinx looks whether they are there
    (HERE / made).parent.mkdir(exist_ok=True)

project, author, copyright = "mmref", "the mmref authors", "the mmref authors, MIT licence"
version = release = mmref.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_figures", "_extra"]
default_role = "code"  # `name` in a docstring
html_theme, html_title = "furo", "mmref"
html_theme_options = {"navigation_with_keys": True}
html_math_renderer = "mathml"
html_show_search_summary = False  # it is fetched, which browsers forbid to a site opened from the disk
html_extra_path, html_static_path, html_css_files = ["_extra"], ["_static"], ["site.css"]
autodoc_typehints, autodoc_member_order = "none", "bysource"
napoleon_google_docstring = False


def make(app):
    """Run the commands whose files are older than the code."""
    code = max(path.stat().st_mtime for folder in ("mmref", "kernels", "weights")
               for path in (HERE.parent / folder).rglob("*") if path.suffix != ".pyc" and path.is_file())
    for name, command in MADE.items():
        target = HERE / name
        if target.exists() and target.stat().st_mtime > code:
            continue
        made = subprocess.run([sys.executable, "-m", "mmref", *shlex.split(command), str(target)],
                              cwd=HERE.parent, capture_output=True, text=True)
        if made.returncode:
            raise ExtensionError(f"mmref {command}: {made.stderr.strip()}")


def on_the_site(app, page, source):
    """What pages have on the site alone: titles where a link's text is a file, the tables of the glossary as terms
    that others refer to and the search finds, and from every stop of the tour a link into the live page."""
    source[0] = re.sub(r"\[[\w/]+\.md\]\((?=\S+\.md)", "[](", source[0])
    if page == "glossary":
        source[0] = re.sub(r"(?:^\|.*\|\n)+", _terms, source[0], flags=re.M)
    if page == "tour":
        source[0] = re.sub(r"^## (\d+)\. .*\n", r'\g<0>' '\n<a href="cat.html#tour=\\1">Stop \\1 in the page of the cat'
                           "</a>\n", source[0], flags=re.M)


def _terms(table):
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", table[0], re.M)[1:]  # without the head
    return "```{glossary}\n:sorted:\n\n" + "\n".join(f"{term}\n  {meaning}\n" for term, meaning in rows) + "```\n"


def find_terms(app, doctree):
    """Links such as glossary.md#term-state are links to terms."""
    if app.env.docname == "glossary":
        for name in doctree.ids:
            if name.startswith("term-"):
                app.env.get_domain("std").anonlabels[name] = "glossary", name


def plain_docstring(app, what, name, of, options, lines):
    """Docstrings as reStructuredText: stars are stars, tables of names become lists, indented lines stay."""
    if what == "module":
        lines[:] = of.__doc__.split("\n")  # autodoc takes the indentation of examples away
    sections = any(re.fullmatch(r"\s*---+", line) for line in lines)  # NumPy's, which napoleon reads
    result = []
    for paragraph in "\n".join(lines).strip("\n").split("\n\n"):
        if not sections and paragraph.startswith("    "):
            paragraph = _as_it_stands(textwrap.dedent(paragraph))
        elif not sections and re.match(r"\S+(?: \S+)*  +\S", paragraph):
            paragraph = _table(paragraph)
        elif ">>>" not in paragraph:
            paragraph = re.sub(r"``.*?``|`[^`]*`|\*\*[^*]+\*\*|^[\w*, ]+$|(?<!\w)\*",
                               lambda m: "\\*" if m[0] == "*" else m[0], paragraph, flags=re.M)
            paragraph = re.sub(r"(`[^`]+`)(\w?)", lambda m: f"{m[1]}\\ {m[2]}" if m[2] else m[1], paragraph)  # `Node`s
        result += [*paragraph.split("\n"), ""]
    # napoleon takes what stands before a property's first colon for its type
    lines[:] = ["..", "", *result] if what in ("property", "attribute", "data") else result


def _as_it_stands(text):
    try:
        compile(text, "", "exec")
        language = "python"
    except SyntaxError:
        language = "none"
    return f".. code-block:: {language}\n\n{textwrap.indent(text, '    ')}"


def _table(text):
    lines = text.split("\n")
    rows = [re.fullmatch(r"(\S+(?: \S+)*)  +(\S+(?: \S+)*)", line) for line in lines]
    if any(row is None and not line.startswith(" ") for row, line in zip(rows, lines, strict=True)):
        return _as_it_stands(text)
    return "\n".join(f"``{row[1]}``\n    {row[2]}" if row else f"    {line.strip()}"
                     for row, line in zip(rows, lines, strict=True))


def formula(translator, node):
    """As MathML, which browsers set by themselves: the site loads nothing from elsewhere."""
    block = isinstance(node, math_block)
    try:
        made = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
        made = f"<code>{translator.encode(node.astext())}</code>"
    translator.body.append(f'<div class="math">{made}</div>\n' if block else made)
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("builder-inited", make)
    app.connect("source-read", on_the_site)
    app.connect("doctree-read", find_terms)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)
