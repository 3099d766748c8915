"""The README's main command and the embedded world's typical picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lmedit.cases import load_cases
from lmedit.metrics.contamination import fingerprint
from lmedit.models import worlds

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

ROOT = Path(__file__).parents[2]
EIFFEL = ("--prompt", "{} is in the city of", "--subject", "The Eiffel Tower", "--target", "Rome")


@pytest.mark.slow
def test_dev_py_demo_prints_the_table_and_where_results_lie(
    tmp_path: Path, demo_is_prepared: None
) -> None:
    flags = ("--limit", "1", "--workers", "1", "--run", tmp_path / "run")
    done = subprocess.run(
        [sys.executable, ROOT / "dev.py", "demo", "--", *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0].split()[:6] == ["method", "n", "failed", "S", "ES", "PS"]
    assert {line.split()[0] for line in lines[1:] if line} >= {
        "base",
        "rome",
        "ft",
        "ft-l",
        "kn",
        "mend",
        "ke",
        "memit",
        "emmet",
        "alphaedit",
        "ultraedit",
    }
    assert str(tmp_path / "run") in done.stderr
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.mark.slow
def test_rome_shows_the_fields_typical_picture(lmedit: Run, demo_is_prepared: None) -> None:
    done = lmedit("compare", "rome", "--limit", 15, "--json")
    base, rome = json.loads(done.stdout)["rows"]
    assert base["ES"] <= 5
    assert base["NS"] >= 95
    assert rome["ES"] >= 98
    assert rome["PS"] >= 95
    assert rome["NS"] >= 88
    assert rome["n_failed"] == 0


@pytest.mark.slow
def test_the_shipped_editors_edit_what_they_were_not_trained_on(lmedit: Run) -> None:
    found = json.loads(lmedit("compare", "mend", "ke", "--limit", 10, "--json").stdout)
    assert found["trained_on"] == {"mend": 0, "ke": 0}
    _, mend, ke = found["rows"]
    assert mend["ES"] >= 90
    assert ke["ES"] >= 90
    assert mend["n_failed"] == ke["n_failed"] == 0


def test_no_record_is_evaluated_and_trained_on() -> None:
    world = worlds()["demo"]
    assert world.training is not None
    evaluated, training = (
        {fingerprint(case.request) for case in load_cases(str(path))}
        for path in (world.cases, world.training)
    )
    assert len(training) > 3000
    assert not evaluated & training


@pytest.mark.slow
def test_kn_finds_neurons_that_carry_the_fact(lmedit: Run) -> None:
    found = json.loads(lmedit("locate", "kn", "--probe", *EIFFEL, "--json").stdout)
    assert found["evidence"]["answer"] == "Paris"
    assert 1 <= found["evidence"]["after fine"] <= 20
    assert found["probe"]["silenced, %"] < -2 < found["probe"]["random silenced, %"]
    assert found["probe"]["doubled, %"] > 1 > found["probe"]["random doubled, %"]


@pytest.mark.slow
def test_the_readmes_edit_needs_no_further_flags(lmedit: Run, demo_is_prepared: None) -> None:
    done = lmedit("edit", "rome", *EIFFEL)
    assert done.exit_code == 0, done.stderr
    shown = done.stdout
    assert "prompt: The Eiffel Tower is in the city of" in shown
    assert "paraphrase: " in shown
    assert "neighbour: " in shown
    before, after = (line.split()[1] for line in shown.splitlines()[1:3])
    assert (before, after) == ("Paris", "Rome")
    assert len(list(Path().glob("*.safetensors"))) == 1
