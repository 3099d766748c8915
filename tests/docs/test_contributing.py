"""The newcomer's ten questions are answered by paths that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## A newcomer's ten questions")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| ([^|]+\?) \| ([^|]+) \|$", SECTION, re.MULTILINE)
PATH = re.compile(r"`([\w./-]+/[\w./-]*)`")


def test_there_are_ten_questions() -> None:
    assert len(ROWS) == 10


@pytest.mark.parametrize(("question", "answer"), ROWS)
def test_an_answer_names_paths_that_exist(question: str, answer: str) -> None:
    paths = PATH.findall(answer)
    assert paths, question
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_other_paths_of_the_page_exist() -> None:
    paths = PATH.findall(PAGE)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
