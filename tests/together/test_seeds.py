"""`compare --seeds`: one run for all seeds, shared, continued, and joined."""

from __future__ import annotations

import json
import sqlite3
import statistics
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]


def stored(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "run.sqlite")) as database:
        (count,) = database.execute("SELECT COUNT(*) FROM results").fetchone()
    return int(count)


def test_a_run_of_two_seeds_is_two_runs_in_one(
    lmedit: Run, model: Path, cases: Path, tmp_path: Path
) -> None:
    """Each seed's rows are those of a run with `--seed`; what no seed changes is stored once."""
    rest = ("--cases", cases, "-m", model, "-o", "steps", 2, "--json")
    command = ("compare", "ft", *rest, "--run", tmp_path / "run", "--seeds", "3,0")
    found = json.loads(lmedit(*command).stdout)
    assert (found["seed"], found["seeds"]) == (3, [3, 0])
    assert stored(tmp_path / "run") == 3 + 2 * 3  # base once, ft under each seed
    for each in found["by_seed"]:
        alone = json.loads(lmedit("compare", "ft", *rest, "--seed", each["seed"]).stdout)
        assert each["rows"][1]["keys"] == alone["rows"][1]["keys"]
        for name in ("ES", "EM", "NM", "EM_ci"):
            assert each["rows"][1][name] == alone["rows"][1][name]
    several = [each["rows"][1]["NM"] for each in found["by_seed"]]
    assert found["rows"][1]["NM"] == pytest.approx(statistics.fmean(several))
    again = json.loads(lmedit(*command).stdout)
    assert [row["EM"] for row in again["rows"]] == [row["EM"] for row in found["rows"]]
    assert stored(tmp_path / "run") == 9


def test_the_seed_decides_the_order_of_edits_in_one_model(
    lmedit: Run, model: Path, cases: Path, text: Path, tmp_path: Path
) -> None:
    flags = ("--regime", "sequential", "--sizes", "1,3", "--heldout", text, "--heldout-lines", 2)
    few = ("--cases", cases, "-m", model, "-o", "steps", 2, "--run", tmp_path / "run")
    done = lmedit("compare", "ft", *few, *flags, "--seeds", "0,2")
    assert "means over the seeds 0, 2;" in done.stdout
    assert "seed 2, 2 of 2" in done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "run" / "results.json").read_text())
    file, drawn = found["by_seed"]
    assert (file["order"], drawn["order"]) == ("file", "drawn")
    assert file["rows"][1]["keys"] != drawn["rows"][1]["keys"]
    points = [[p["NM"] for p in each["curve"] if p["size"] == 1] for each in (file, drawn)]
    assert points[0] != points[1]  # another case is edited first
    (joined,) = [p["NM"] for p in found["curve"] if p["size"] == 1]
    assert joined == pytest.approx(statistics.fmean([points[0][0], points[1][0]]))


@pytest.mark.parametrize("given", ["", "0", "0,0", "0,x", "0,-1", "0,,1", "0,٣"])
def test_what_are_no_seeds_is_wrong_usage(lmedit: Run, given: str) -> None:
    done = lmedit("compare", "ft", "--seeds", given)
    assert done.exit_code == 2
    assert f"--seeds {given!r} names no two different seeds" in done.stderr


def test_a_seed_and_seeds_are_too_much(lmedit: Run) -> None:
    done = lmedit("compare", "ft", "--seed", 0, "--seeds", "0,2")
    assert done.exit_code == 2
    assert "--seed" in done.stderr
