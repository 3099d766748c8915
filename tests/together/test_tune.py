"""`lmedit tune`: the best of a sweep, its evidence, and what takes the file it writes."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small_world import FACT, record, save_model

from lmedit import load_lm
from lmedit.compare.tuning import SLACK, rank
from lmedit.edits.patches import load_patch

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

SUBJECTS = (
    "The tower",
    "A small boat",
    "Nobody in the city",
    "The old river",
    "The night",
    "A small home",
)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([record(i, s) for i, s in enumerate(SUBJECTS)]), encoding="utf-8")
    return path


def swept(lmedit: Run, method: str, model: Path, cases: Path, *flags: object) -> dict[str, Any]:
    done = lmedit("tune", method, "-m", model, "--cases", cases, "--run", "sweep", *flags, "--json")
    assert done.exit_code == 0, done.stderr
    entry: dict[str, Any] = json.loads(done.stdout)
    return entry


def test_the_best_setting_wins_and_brings_its_evidence(
    lmedit: Run, model: Path, cases: Path
) -> None:
    entry = swept(lmedit, "ft", model, cases, "-o", "steps", "3")
    lm, evidence = load_lm(str(model)), entry["evidence"]
    assert len(evidence["heat"]) == 4 * lm.n_layers
    assert {row["n"] for row in evidence["heat"]} == {2}
    assert len(evidence["final"]) == 3
    assert {row["n"] for row in evidence["final"]} == {6}
    enough = max(row["ES"] for row in evidence["final"]) - SLACK
    assert evidence["S"] == max(row["S"] for row in evidence["final"] if row["ES"] >= enough)
    winner = next(row for row in evidence["final"] if row["S"] == evidence["S"])
    assert entry["options"] == {"steps": 3, **winner["setting"]}
    assert set(evidence["controls"]) == {"base", "ft-random-layer"}
    assert evidence["controls"]["base"]["n"] == 6
    assert evidence["model_digest"] == lm.digest
    kept = json.loads(Path("ft-tuned.json").read_text(encoding="utf-8"))
    assert kept == {"schema": 1, "ft": entry}


def test_a_setting_that_changes_nothing_does_not_win_by_its_neighbours() -> None:
    """KN on the real model: S 50 for one neuron, where one edit of three changed nothing."""

    def row(name: str, S: float, ES: float) -> dict[str, Any]:
        return {"setting": name, "S": S, "ES": ES}

    rows = [
        row("idle", 50.0, 66.7),
        row("edits", 36.6, 100.0),
        row("edits less", 30.9, 100.0),
        row("nearly all", 40.0, 96.0),
    ]
    found = [each["setting"] for each in rank(rows)]
    assert found == ["nearly all", "edits", "edits less", "idle"]


def test_among_settings_of_one_S_the_one_that_edits_more_is_first() -> None:
    """S is 0 as soon as one of its parts is, which few cases often give."""
    rows = [{"setting": es, "ES": es, "S": 0.0} for es in (0.0, 100.0, 50.0, 60.0)]
    assert [each["setting"] for each in rank(rows)] == [100.0, 60.0, 50.0, 0.0]


def test_the_file_is_taken_by_every_command(
    lmedit: Run, model: Path, cases: Path, text: Path
) -> None:
    flags = ["-m", model, "--corpus", text]
    told = lmedit("tune", "rome", *flags, "--cases", cases, "-o", "steps", "2")
    assert "best: steps=2 layer=" in told.stdout
    assert "base" in told.stdout
    layer = json.loads(Path("rome-tuned.json").read_text("utf-8"))["rome"]["options"]["layer"]
    prepared = lmedit("prepare", "rome", *flags, "-o", "@rome-tuned.json", "--json")
    assert json.loads(prepared.stdout)["facts"]["layer"] == layer
    found = json.loads(
        lmedit("locate", "rome", *FACT, "-m", model, "-o", "@rome-tuned.json", "--json").stdout
    )
    assert (found["evidence"]["layer"], found["evidence"]["layer from"]) == (layer, "given")
    table = lmedit(
        "compare",
        "rome",
        "ft",
        *flags,
        "--cases",
        cases,
        "--limit",
        1,
        "--option",
        "@rome-tuned.json",
        "-o",
        "ft.steps",
        2,
    ).stdout
    assert "ft (untuned)" in table
    assert "rome (untuned)" not in table


def test_options_of_other_weights_are_taken_with_a_remark(lmedit: Run, model: Path) -> None:
    entry = {"options": {"layer": 1}, "evidence": {"model": "elsewhere", "model_digest": "0"}}
    Path("other.json").write_text(json.dumps({"ft": entry}), encoding="utf-8")
    done = lmedit(
        "edit", "ft", *FACT, "-m", model, "-o", "@other.json", "-o", "steps", "2", "--force"
    )
    assert done.exit_code == 0
    assert "other.json: ft was tuned on other weights (elsewhere)" in done.stderr


def test_tuned_options_of_another_method_of_the_name_are_not_used(
    lmedit: Run, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model", seed=0)
    tuned = {"ft": {"options": {"layer": 2, "layers": [1, 2]}, "evidence": {}}}
    (model / "lmedit-tuned.json").write_text(json.dumps(tuned), encoding="utf-8")
    done = lmedit("edit", "ft", *FACT, "-m", model, "--force", "-O", "edit.safetensors")
    assert done.exit_code == 0, done.stderr
    assert "ft: the tuned options of" in done.stderr
    assert "they hold layers, which this method does not have" in done.stderr
    assert load_patch(Path("edit.safetensors"))[1]["options"]["layer"] != 2


def test_untuned_is_said_in_every_table(lmedit: Run, model: Path, cases: Path) -> None:
    done = lmedit(
        "compare",
        "ft",
        "-m",
        model,
        "--cases",
        cases,
        "--limit",
        1,
        "--run",
        "run",
        "-o",
        "steps",
        1,
    )
    assert "ft (untuned)" in done.stdout
    for kind in ("table", "markdown"):
        assert "ft (untuned)" in lmedit("report", "run", "--format", kind).stdout
    lmedit("report", "run", "--html", "page.html")
    assert "ft (untuned)" in Path("page.html").read_text(encoding="utf-8")
    given = lmedit("compare", "ft", "-m", model, "--cases", cases, "--limit", 1, "-o", "layer", 1)
    assert "untuned" not in given.stdout


def test_a_sweep_goes_on_where_it_was_and_keeps_other_methods(
    lmedit: Run, model: Path, cases: Path
) -> None:
    flags = ["-o", "steps", "2", "-o", "learning_rate", "0.01", "-O", "all.json"]
    first = swept(lmedit, "ft", model, cases, *flags)
    with sqlite3.connect("sweep/run.sqlite") as store:
        before = store.execute("select count(*) from results").fetchone()
    assert swept(lmedit, "ft", model, cases, *flags) == first
    with sqlite3.connect("sweep/run.sqlite") as store:
        assert store.execute("select count(*) from results").fetchone() == before
    assert {tuple(row["setting"]) for row in first["evidence"]["heat"]} == {("layer",)}
    swept(lmedit, "ft-l", model, cases, "-o", "steps", "1", "-o", "layer", "0", "-O", "all.json")
    assert set(json.loads(Path("all.json").read_text(encoding="utf-8"))) == {"schema", "ft", "ft-l"}


def test_two_processes_or_ray_share_a_sweep(
    lmedit: Run, model: Path, cases: Path, on_ray: list[str]
) -> None:
    flags = ["-o", "steps", "2", "-o", "learning_rate", "0.01"]
    alone = swept(lmedit, "ft", model, cases, *flags)
    shared = swept(lmedit, "ft", model, cases, *flags, "--run", "other", "--workers", "2")
    assert shared == alone
    through_ray = ("--run", "ray", "--executor", "ray")
    assert swept(lmedit, "ft", model, cases, *flags, *through_ray) == alone
    assert on_ray


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        (["mend"], "mend has nothing to tune"),
        (["ft", "-o", "layer", "0", "-o", "learning_rate", "0.1"], "ft has nothing to tune"),
        (["ft", "-o", "@nowhere.json"], "cannot read options file nowhere.json"),
        (["ft", "-o", "@list.json"], "list.json is not an options file"),
        (["ft", "-o", "@broken.json"], "broken.json is not JSON"),
        (["ft", "-o", "@rome.json"], "holds options of rome, not of ft"),
        (["ft", "-O", "list.json"], "list.json exists and lmedit did not write it"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(
    lmedit: Run, model: Path, cases: Path, flags: list[str], culprit: str
) -> None:
    Path("list.json").write_text("[1]", encoding="utf-8")
    Path("broken.json").write_text("{", encoding="utf-8")
    Path("rome.json").write_text('{"rome": {"options": {}}}', encoding="utf-8")
    done = lmedit("tune", *flags, "-m", model, "--cases", cases)
    assert done.exit_code == 1
    assert culprit in done.stderr
    assert done.stderr.count("\n") == 1
    assert json.loads(Path("list.json").read_text(encoding="utf-8")) == [1]


def test_facts_without_neighbours_have_no_score_to_tune_by(lmedit: Run, model: Path) -> None:
    fact = {"prompt": "{} is in", "subject": "The tower", "target_new": "the sea"}
    Path("facts.jsonl").write_text(f"{json.dumps(fact)}\n", encoding="utf-8")
    done = lmedit("tune", "ft", "-m", model, "--cases", "facts.jsonl", "-o", "steps", "1")
    assert done.exit_code == 1
    assert "these cases have no S" in done.stderr
    assert not Path("ft-tuned.json").exists()
