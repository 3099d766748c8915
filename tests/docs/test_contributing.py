"""The newcomer's ten questions are answered by paths that exist and that hold the answer."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from lmedit.cases.layouts import LAYOUTS
from lmedit.cli import main

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


ANSWERS = {
    "model families": ("core/src/lmedit/models/families.py", "KNOWN"),
    "call a hook": ("core/src/lmedit/pipeline.py", "Editor"),
    "formula of a score": ("core/src/lmedit/metrics/counterfact.py", "harmonic_mean"),
    "add a metric": ("core/src/lmedit/compare/measures.py", "MEASURES"),
    "case format": ("core/src/lmedit/cases/layouts.py", "LAYOUTS"),
    "add a command": ("core/src/lmedit/cli/__init__.py", "main"),
    "add an executor": ("core/src/lmedit/executors/__init__.py", "Executor"),
    "add a chart": ("core/src/lmedit/charts/figures.py", "draw_file"),
    "take a lock": ("core/src/lmedit/storage/locks.py", "lock_folder"),
    "before an edit": ("core/src/lmedit/preparation.py", "find_prepared"),
}
"""Words of a question: a path of its answer, and the name in that file."""


@pytest.mark.parametrize("words", ANSWERS)
def test_the_path_of_an_answer_holds_it(words: str) -> None:
    path, name = ANSWERS[words]
    (answer,) = (answer for question, answer in ROWS if words in question)
    assert path in PATH.findall(answer)
    assert name in top_names(ROOT / path)


def top_names(path: Path) -> set[str]:
    """The names of the classes, functions and values at the top of a file."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        found |= {each.id for each in targets if isinstance(each, ast.Name)}
        found |= {node.name} if isinstance(node, ast.ClassDef | ast.FunctionDef) else set()
    return found


def sources_with(pattern: str) -> set[str]:
    """The files of the core in which *pattern* occurs."""
    core = ROOT / "core" / "src" / "lmedit"
    return {
        path.relative_to(ROOT).as_posix()
        for path in core.rglob("*.py")
        if "template" not in path.parts and re.search(pattern, path.read_text(encoding="utf-8"))
    }


def answer_to(words: str) -> set[str]:
    """All paths in the answer to the question with *words*."""
    return set(PATH.findall(next(answer for question, answer in ROWS if words in question)))


def test_every_call_of_a_hook_is_in_the_answer() -> None:
    callers = sources_with(r"manager\.hook\.edit_|\.hook\.edit_\w+\(")
    told = answer_to("call a hook")
    laws = "core/src/lmedit/laws/"
    assert laws in told
    assert {path for path in callers if not path.startswith(laws)} <= told


def test_every_lock_is_in_the_answer() -> None:
    assert sources_with(r"FileLock\(|\.flock\(|[^_]lock_folder\(") <= answer_to("take a lock")


def test_layouts_and_commands_are_in_the_folders_of_their_answers() -> None:
    layouts = {each.case_from.__module__.rpartition(".")[0] for each in LAYOUTS.values()}
    assert layouts == {"lmedit.cases"}
    assert "core/src/lmedit/cases/zsre.py" in answer_to("case format")
    commands = {
        command.callback.__module__ for command in main.commands.values() if command.callback
    }
    homes = {name.rpartition(".")[0] for name in commands}
    assert homes == {"lmedit.cli"}
    assert "core/src/lmedit/cli/methods.py" in answer_to("add a command")


def test_other_paths_of_the_page_exist() -> None:
    paths = PATH.findall(PAGE)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
