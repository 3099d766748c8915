"""Pages, help, errors and docstrings are easy to read: short sentences, no literary phrases.

In help, errors and docstrings no sentence has more than 25 words; there, a semicolon
or a colon ends one. A page passes if its sentences have 15 words on average at most, if at most
one sentence in twenty has more than 25 words, and if no phrase of `BANNED` occurs. Code, tables,
headings and formulas are left out; a name in backticks counts as one word.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from lmedit.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
LONG, MEAN, SHARE = 25, 15.0, 0.05
BANNED = (
    "all the same",
    "at hand",
    "by lot",
    "come what may",
    "entrant",
    "entrants",
    "of nothing",
    "if need be",
    "nor do",
    "nor does",
    "nor is",
    "of everything random",
    "shall",
    "so many",
    "that which",
    "to be had",
    "today's answer",
    "upon one another",
    "what is",
    "what it is of",
    "whatever",
    "work out",
    "worked out",
    "works out",
    "works upon",
)
PAGES = [
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("[pw]*/*/README.md")),
]
GENERATED = ("docs/reference/cli.md", "docs/reference/families.md")
"""The commands' help, which is tested as such."""
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("core/src", "plugins/*/src", "worlds/*/src")
    for folder in ROOT.glob(pattern)
    for path in folder.rglob("*.py")
)
STILL_HARD: frozenset[str] = frozenset()
"""Texts that still fail. One that passes must be taken out of this list."""


@dataclass(frozen=True)
class Reading:
    """What makes a text hard: long sentences, and phrases that are out of use."""

    sentences: tuple[str, ...]
    phrases: tuple[str, ...]

    @property
    def mean(self) -> float:
        """Words in a sentence."""
        return sum(map(words, self.sentences)) / max(1, len(self.sentences))

    @property
    def long(self) -> list[str]:
        """The sentences over `LONG` words."""
        return [each for each in self.sentences if words(each) > LONG]

    def check(self, name: str) -> None:
        """Raise where the text is hard to read."""
        assert self.phrases == (), f"{name}: {self.phrases}"
        assert self.mean <= MEAN, f"{name}: {self.mean:.1f} words in a sentence"
        listed = "\n".join(self.long)
        assert len(self.long) <= SHARE * len(self.sentences), f"{name}: long sentences:\n{listed}"


def words(sentence: str) -> int:
    """How many words *sentence* has."""
    return len(re.findall(r"\S*\w\S*", sentence))


def prose(page: str) -> str:
    """A page without code, tables, headings, comments and formulas."""
    page = re.sub(r"^ *```.*?^ *```$", "\n\n", page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL)
    page = re.sub(r"\$\$.*?\$\$", "\n\n", page, flags=re.DOTALL)
    page = re.sub(r"^(?:\||#|!\[).*$", "", page, flags=re.MULTILINE)
    page = re.sub(r"^ *(?:- |\d+\. )", "\n", page, flags=re.MULTILINE)
    page = re.sub(r"`[^`]+`|\$[^$]+\$", "CODE", page)
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", page)


def reading(text: str) -> Reading:
    """The sentences of *text*: paragraphs are apart, and a sentence ends before a blank."""
    text = re.sub(r"\b(?:et al|e\.g|i\.e|eq|cf|vs)\.", "CODE", text)
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    ends = r"(?<=[.!?])[\"')*]*\s+(?=[\"'(*]*(?:[A-Z0-9]|lmedit|peft))"
    found = [each for part in paragraphs for each in re.split(ends, part) if words(each)]
    low = " ".join(paragraphs).lower()
    phrases = [phrase for phrase in BANNED if re.search(rf"\b{re.escape(phrase)}\b", low)]
    return Reading(tuple(found), tuple(phrases))


def listed(name: str, *values: str) -> Any:
    """A text to test; it must fail if it is in the list."""
    marks = pytest.mark.xfail(strict=True, reason="not rewritten yet")
    return pytest.param(*values, id=name, marks=marks if name in STILL_HARD else ())


@pytest.mark.parametrize("page", [listed(page, page) for page in PAGES if page not in GENERATED])
def test_a_page_is_easy_to_read(page: str) -> None:
    reading(prose((ROOT / page).read_text(encoding="utf-8"))).check(page)


def helps(group: click.Group, *before: str) -> Iterator[tuple[str, str]]:
    """Each command with its help and that of its options, each a paragraph."""
    for name in group.list_commands(click.Context(group)):
        command = group.commands[name]
        own = [command.help or "", *(getattr(each, "help", None) or "" for each in command.params)]
        # Option help is a list of remarks: each part up to a semicolon counts as a sentence.
        yield (
            " ".join(("lmedit", *before, name)),
            re.sub(r";\s|\[default", "\n\n", "\n\n".join(own)),
        )
        if isinstance(command, click.Group):
            yield from helps(command, *before, name)


@pytest.mark.parametrize(
    ("command", "text"), [listed(name, name, text) for name, text in helps(main)]
)
def test_help_is_easy_to_read(command: str, text: str) -> None:
    found = reading(text.replace("\b", ""))
    found.check(command)
    assert found.long == []


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """The docstrings of a file, also those of fields and constants."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for part in body if isinstance(body, list) else []:
            if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                yield part.value


def messages(tree: ast.AST) -> Iterator[str]:
    """The texts in the code, without docstrings; each value in braces counts as one word."""
    inside = {id(each) for each in docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node)}
            parts = (getattr(part, "value", "") for part in node.values)
            yield "".join(part if isinstance(part, str) else "CODE" for part in parts)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            yield node.value


@pytest.mark.parametrize("path", SOURCES)
def test_messages_and_docstrings_are_easy_to_read(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for text in messages(tree):
        if "\n" not in text and re.search(r"[a-z]{3} [a-z]", text):  # else it is data
            check_code(text)
    for node in docstrings(tree):
        if isinstance(node.value, str):
            text = re.sub(r"::.*?(?=\n\S|$)", ".\n\n", node.value, flags=re.DOTALL)
            check_code(re.sub(r"`+[^`]+`+|\*\w+\*", "CODE", text))


def check_code(text: str) -> None:
    """Raise if a message or docstring has a long sentence or a phrase that is out of use."""
    found = reading(re.sub(r"[;:](?=\s)", ".\n\n", text))
    assert (found.long, found.phrases) == ([], ()), text


def test_hard_texts_are_seen() -> None:
    long = " ".join(["word"] * 26) + ". Short."
    assert [words(each) for each in reading(long).sentences] == [26, 1]
    with pytest.raises(AssertionError, match="long sentences"):
        reading(long).check("x")
    with pytest.raises(AssertionError, match=r"16\.0 words"):
        reading("a " * 16 + ".").check("x")
    with pytest.raises(AssertionError, match="come what may"):
        reading("It runs, come what may.").check("x")
    page = "# A b\n\nIt is `lmedit edit x`, [here](y).\n\n| a |\n\n```sh\nls\n```\n"
    assert prose(page).split() == ["It", "is", "CODE,", "here."]
