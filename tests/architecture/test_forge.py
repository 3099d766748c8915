"""The CI files and the checks before a commit run what a developer runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEV = (ROOT / "dev.py").read_text(encoding="utf-8")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def tasks(text: str) -> set[str]:
    """The tasks of dev.py that *text* runs."""
    return set(re.findall(r"python3 dev\.py (\w+)", text))


def test_a_public_forge_runs_the_readmes_two_commands() -> None:
    steps = read(".github/workflows/ci.yml")["jobs"]["test"]["steps"]
    first = README.partition("Try it with two commands")[2].partition("```console")[2]
    both = tasks(first.partition("```")[0])
    assert both == {"demo", "test"}
    assert tasks("\n".join(step.get("run", "") for step in steps)) == both


def test_our_own_ci_runs_the_whole_test() -> None:
    assert tasks((ROOT / ".ci" / "run").read_text(encoding="utf-8")) == {"test"}


def test_the_checks_before_a_commit_are_those_of_ci() -> None:
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    own = {hook["entry"].removeprefix(".venv/bin/") for hook in hooks if "entry" in hook}
    programs = {entry.split()[0] for entry in own}
    body = DEV.partition("def check(")[2].partition("\ndef ")[0]
    assert programs == set(re.findall(r'run\("([\w-]+)"', body)) == {"ruff", "mypy", "lint-imports"}
    assert all({"id", "entry", "language"} <= set(hook) for hook in hooks if "entry" in hook)
    assert all(
        "rev" in repo
        for repo in read(".pre-commit-config.yaml")["repos"]
        if repo["repo"] != "local"
    )
