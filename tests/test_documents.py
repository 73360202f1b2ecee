"""The documents' examples are run and what they print compared: docs/scan.md, docs/families.md, docstrings of the
public names."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import mmref
from mmref.explain.words import TOUR, WORDS

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


def test_the_glossary_and_the_tour_say_what_the_page_says():
    """Catches a term or a stop that was changed in one place only, and a link to a term that is not there."""
    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    assert not [word for word, meaning in WORDS.items() if f"\n| {word} | {meaning} |\n" not in glossary]
    tour = (DOCS / "tour.md").read_text(encoding="utf-8")
    links = re.findall(r"\[([^\]]+)\]\(glossary\.md#term-([^)]+)\)", tour)
    assert len(links) > 20 and {word.replace("\n", " ") for word, _ in links} <= set(WORDS)
    plain = " ".join(re.sub(r"\[([^\]]+)\]\(glossary[^)]+\)", r"[\1]", tour).split())
    for number, stop in enumerate(TOUR, 1):
        assert f"## {number}. {stop['title']} {stop['text']} " in plain, number
