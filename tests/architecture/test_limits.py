"""No test waits for ever: every wait for a process, a thread or a socket has a limit."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    file
    for folder in ("tests", "benchmarks", "docs", *ROOT.glob("plugins/*/tests"))
    for file in (ROOT / folder).rglob("*.py")
)
WITHOUT_ARGUMENTS = frozenset({"join", "wait", "communicate", "waitpid", "acquire"})
"""Calls that wait for ever if they have no argument."""
LAUNCHES = frozenset({"run", "check_output", "check_call", "call"})
LONG = frozenset({"benchmarks/all.py"})
"""Scripts for hours that a person watches."""


def waits(source: str) -> list[str]:
    """The places of calls in *source* that may never end."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        given = node.args or node.keywords
        limited = any(each.arg == "timeout" for each in node.keywords)
        if (name in WITHOUT_ARGUMENTS and not given) or (
            owner == "subprocess" and name in LAUNCHES and not limited
        ):
            found.append(f"line {node.lineno}: {ast.unparse(node)[:60]}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_test_waits_for_ever(file: Path) -> None:
    if file.relative_to(ROOT).as_posix() not in LONG:
        assert waits(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    ["thread.join()", "a.b.wait()", "subprocess.run(['x'], check=True)", "p.communicate()"],
)
def test_a_wait_without_a_limit_is_found(source: str) -> None:
    assert len(waits(source)) == 1
    assert waits("', '.join(names); p.wait(5); subprocess.run(['x'], timeout=5)") == []
