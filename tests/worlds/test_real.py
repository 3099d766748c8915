"""What users do first with the real model: edit one fact, compare methods on its world."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., dict[str, Any]]


@pytest.fixture
def lmedit(real_cache: Path, tmp_path: Path) -> Run:
    """Call the command line in a process of its own; returns what it prints as JSON."""

    def call(*arguments: str) -> dict[str, Any]:
        code = f"from lmedit.cli import main; main({[*arguments, '--json']!r})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "LMEDIT_CACHE": str(real_cache)},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return call


def test_the_first_edit_takes_and_does_no_damage(first_edit: Path) -> None:
    found = json.loads((first_edit / "told.json").read_text(encoding="utf-8"))
    assert found["before"]["writes"].strip().startswith("Paris")
    assert found["verdict"] == "took"
    assert found["after"]["writes"].strip().startswith("Rome")
    assert found["after"]["target_new"] > 0.5 > found["before"]["target_new"]
    assert found["refused"] is None


def test_methods_are_compared_on_facts_that_the_model_knows(lmedit: Run) -> None:
    methods = ("ft", "mend", "rome")
    found = lmedit("compare", *methods, "-m", "smollm2", "--cases", "smollm2", "--limit", "3")
    rows = {row["method"]: row for row in found["rows"]}
    assert set(rows) == {"base", *methods}
    assert rows["base"]["ES"] == 0
    assert rows["base"]["NS"] == 100
    assert rows["rome"]["ES"] == 100
    assert found["trained_on"] == {"mend": 0}
    assert all(row["n_failed"] == 0 for row in rows.values())
