"""What users do first with the real model: edit one fact, compare methods on its world."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lmedit import load_patch

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


def test_the_first_edit_takes_and_does_no_damage(first_edit: Path) -> None:
    _, facts = load_patch(first_edit / "rome.safetensors")
    found = facts["metrics"]
    assert found["before"]["writes"].strip().startswith("Paris")
    assert found["verdict"] == "took"
    assert found["after"]["writes"].strip().startswith("Rome")
    assert found["after"]["target_new"] > 0.5 > found["before"]["target_new"]
    assert facts["forced"] is None


def test_methods_are_compared_on_facts_that_the_model_knows(
    lmedit: Run, real_cache: Path, tmp_path: Path
) -> None:
    methods = ("ft", "mend", "rome")
    flags = ("-m", "smollm2", "--cases", "smollm2", "--limit", "2", "--json")
    done = lmedit("compare", *methods, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {row["method"]: row for row in found["rows"]}
    assert set(rows) == {"base", *methods}
    assert rows["base"]["ES"] == 0
    assert rows["base"]["NS"] == 100
    assert rows["rome"]["ES"] == 100
    assert found["trained_on"] == {"mend": 0}
    assert all(row["n_failed"] == 0 for row in rows.values())
