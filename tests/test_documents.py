"""The documents' examples are run and what they print compared: docs/scan.md, docstrings of the public names."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import mmref

DOCS = Path(__file__).parent.parent / "docs"


def failures(test) -> str:
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    return "".join(said)


def test_the_page_of_the_scan():
    """Catches a page whose numbers are no longer those of the code."""
    text = (DOCS / "scan.md").read_text(encoding="utf-8")
    test = doctest.DocTestParser().get_doctest(text.replace("```", ""), {}, "scan.md", None, 0)
    assert len(test.examples) > 20 and not failures(test)


@pytest.mark.parametrize("name", [name for name in mmref.__all__ if name not in ("__version__", "MmrefError")])
def test_examples_in_docstrings(name):
    """Catches a public name without an example, and an example that no longer says what happens."""
    tests = [test for test in doctest.DocTestFinder(recurse=False).find(getattr(mmref, name), name) if test.examples]
    assert tests, f"mmref.{name} has no example"
    assert not failures(tests[0])
