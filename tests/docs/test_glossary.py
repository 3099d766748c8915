"""The glossary lists a word once, and its words are those of the pages."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "reference" / "glossary.md"
ROW = re.compile(r"^\| (?!word |---)(.+?) \| (.+) \|$", re.M)
ENTRIES = dict(ROW.findall(GLOSSARY.read_text()))
PAGES = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")]
TEXT = "\n".join(page.read_text() for page in PAGES if page != GLOSSARY).lower()


def test_a_word_stands_in_the_glossary_once() -> None:
    found = Counter(word for names, _ in ROW.findall(GLOSSARY.read_text()) for word in split(names))
    assert found.most_common(1)[0][1] == 1, found.most_common(3)


def split(names: str) -> list[str]:
    """The words of one row: "apply, revert" has two."""
    return [name.strip(" `").lower() for name in re.sub(r"\(.*?\)", "", names).split(",")]


@pytest.mark.parametrize("word", sorted({word for names in ENTRIES for word in split(names)}))
def test_a_word_of_the_glossary_is_used_on_a_page(word: str) -> None:
    assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", TEXT), word
