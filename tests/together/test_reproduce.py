"""`lmedit reproduce`: the same run again, and one line for what cannot be reproduced."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from small_world import record, save_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]


@pytest.fixture
def results(lmedit: Run, model: Path, cases: Path, tmp_path: Path) -> Path:
    flags = ("--cases", cases, "-m", model, "-o", "steps", 2, "--limit", 1, "--seed", 3)
    assert lmedit("compare", "ft", *flags, "--run", tmp_path / "old").exit_code == 0
    return tmp_path / "old" / "results.json"


def change(path: Path, work: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads(path.read_text())
    work(found)
    path.write_text(json.dumps(found))


def test_a_run_is_reproduced_and_a_changed_number_is_seen(
    lmedit: Run, results: Path, tmp_path: Path
) -> None:
    done = lmedit("reproduce", results, "--run", tmp_path / "new")
    assert done.exit_code == 0
    old, new = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("old", "new"))
    assert [row["keys"] for row in old["rows"]] == [row["keys"] for row in new["rows"]]
    assert (new["seed"], new["cases"]["n"]) == (3, 1)
    assert old["made_by"] == new["made_by"]
    assert done.stdout.splitlines()[-1].endswith("scores agree")
    assert "were made with" not in done.stderr

    def alter(found: dict[str, Any]) -> None:
        found["rows"][1]["EM"] += 0.3
        found["made_by"]["torch"] = "1.0"

    change(results, alter)
    done = lmedit("reproduce", results.parent, "--run", tmp_path / "new")
    assert done.exit_code == 1
    lines = [line.split() for line in done.stdout.splitlines() if line.endswith("differs")]
    assert [line[:2] for line in lines] == [["ft", "EM"]]
    assert "the results were made with 1.0" in done.stderr


def test_what_cannot_be_reproduced_is_one_line(
    lmedit: Run, results: Path, model: Path, cases: Path, tmp_path: Path
) -> None:
    text = results.read_text()

    def refused(reason: str) -> None:
        done = lmedit("reproduce", results, "--run", tmp_path / "new")
        assert (done.exit_code, done.stdout) == (1, "")
        assert reason in done.stderr.splitlines()[-1]
        assert not (tmp_path / "new").exists()
        results.write_text(text)

    change(results, lambda found: found.pop("made_by"))
    refused("does not say how it was made")
    change(results, lambda found: found["made_by"]["plan"].update(methods=["nobody"]))
    refused("cannot be reproduced: no method 'nobody'")
    change(results, lambda found: found["made_by"]["plan"].update(new=1))
    refused("made_by of the results is damaged")
    other = save_model(tmp_path / "other", seed=5)
    change(results, lambda found: found["made_by"]["plan"].update(model=str(other)))
    refused("the model")
    cases.write_text(json.dumps([record(7)]))
    refused("the cases")
