"""The documents' examples are run and what they print compared: docs/scan.md, docs/families.md, docstrings of the
public names."""

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


@pytest.mark.parametrize("page, least", [("scan.md", 20), ("families.md", 12)])
def test_pages_with_examples(page, least):
    """Catches a page whose numbers are no longer those of the code."""
    text = (DOCS / page).read_text(encoding="utf-8")
    test = doctest.DocTestParser().get_doctest(text.replace("```", ""), {}, page, None, 0)
    assert len(test.examples) >= least and not failures(test)


@pytest.mark.parametrize("name", [name for name in mmref.__all__ if name not in ("__version__", "MmrefError")])
def test_examples_in_docstrings(name):
    """Catches a public name without an example, and an example that no longer says what happens."""
    tests = [test for test in doctest.DocTestFinder(recurse=False).find(getattr(mmref, name), name) if test.examples]
    assert tests, f"mmref.{name} has no example"
    assert not failures(tests[0])
