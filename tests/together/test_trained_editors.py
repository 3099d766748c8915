"""Editors that are trained: prepared once by a command, found again, bound to their base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small_world import FACT, record, save_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

SMALL = {
    "mend": ("-o", "rank", "4"),
    "malmen": ("-o", "rank", "4"),
    "ke": ("-o", "hidden", "4", "-o", "condition", "4"),
}
BRIEF = ("-o", "steps", "4", "-o", "validate_every", "2", "-o", "batch", "4")


def flags(method: str) -> tuple[str, ...]:
    return (*SMALL[method], *BRIEF)


def facts(count: int, first: int = 100) -> list[dict[str, Any]]:
    return [record(n, f"The tower {n}") for n in range(first, first + count)]


@pytest.fixture
def training(tmp_path: Path) -> Path:
    path = tmp_path / "training.json"
    path.write_text(json.dumps(facts(30)), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", ["mend", "ke", "malmen"])
def test_train_then_edit_and_compare(
    lmedit: Run, model: Path, training: Path, cases: Path, method: str, tmp_path: Path
) -> None:
    own = (*flags(method), "-m", model)
    picture = tmp_path / "curve.svg"
    made = json.loads(
        lmedit("prepare", method, *own, "--corpus", training, "--plot", picture, "--json").stdout
    )
    assert made["facts"]["examples"] == 27
    assert made["facts"]["validation_examples"] == 3
    assert [point["step"] for point in made["facts"]["curve"]] == [0, 2, 4]
    assert picture.read_text(encoding="utf-8").startswith("<?xml")
    written = Path(made["path"]).stat().st_mtime_ns
    told = lmedit("edit", method, *FACT, *own, "-O", tmp_path / "patch.safetensors", "--force")
    assert told.exit_code == 0, told.stderr
    done = lmedit("compare", method, *own, "--cases", cases, "--json")
    assert done.exit_code == 0, done.stderr
    rows = {row["method"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows[method]["n_failed"] == 0
    assert rows[method]["prepare_seconds"] == pytest.approx(made["facts"]["seconds"])
    assert Path(made["path"]).stat().st_mtime_ns == written


def test_cases_that_were_trained_on_are_counted(lmedit: Run, model: Path, training: Path) -> None:
    own = (*flags("mend"), "-m", model)
    lmedit("prepare", "mend", *own, "--corpus", training)
    done = lmedit(
        "compare",
        "mend",
        "ft",
        "-m",
        model,
        *SMALL_FOR_MEND,
        "--cases",
        training,
        "--limit",
        "5",
        "--run",
        "run",
        "--json",
    )
    assert json.loads(done.stdout)["trained_on"] == {"mend": 5}
    assert "mend was trained on 5 of these 5 cases" in done.stderr
    page = lmedit("report", "run", "--html", "page.html")
    assert page.exit_code == 0
    assert "mend was trained on 5 of these cases" in Path("page.html").read_text("utf-8")


SMALL_FOR_MEND = tuple(
    part
    for key, value in (("rank", "4"), ("steps", "4"), ("validate_every", "2"), ("batch", "4"))
    for part in ("-o", f"mend.{key}", value)
)


def test_no_editor_is_trained_on_the_way(lmedit: Run, model: Path, training: Path) -> None:
    done = lmedit("edit", "mend", *FACT, "-m", model)
    assert done.exit_code == 1
    assert "mend is not prepared for this model" in done.stderr
    assert f"lmedit prepare mend -m {model} --corpus NAME|FILE\n" in done.stderr
    half = lmedit("edit", "mend", *FACT, "-m", model, "--dtype", "bfloat16")
    assert f"lmedit prepare mend -m {model} --corpus NAME|FILE --dtype bfloat16\n" in half.stderr
    assert "--corpus counterfact, zsre or a file" in lmedit("prepare", "mend", "-m", model).stderr


def test_one_of_several_editors_is_chosen_by_its_corpus(
    lmedit: Run, model: Path, training: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(facts(25, 500)), encoding="utf-8")
    own = (*flags("mend"), "-m", model)
    for corpus in (training, other):
        assert lmedit("prepare", "mend", *own, "--corpus", corpus).exit_code == 0
    edit = ("edit", "mend", *FACT, *own, "-O", tmp_path / "patch.safetensors", "--force")
    several = lmedit(*edit)
    assert several.exit_code == 1
    assert "choose: --corpus mend=NAME" in several.stderr
    assert lmedit(*edit, "--corpus", f"mend={other}").exit_code == 0
    unknown = lmedit(*edit, "--corpus", f"ke={other}")
    assert unknown.exit_code == 1
    assert "no method 'ke'" in unknown.stderr


def test_an_editor_in_the_models_folder_is_used_and_only_there(
    lmedit: Run, model: Path, training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = tmp_path / "own", save_model(tmp_path / "other", seed=5)
    shutil.copytree(model, own)
    small = flags("mend")
    made = json.loads(
        lmedit("prepare", "mend", *small, "-m", own, "--corpus", training, "--json").stdout
    )
    for folder in (own, other):
        (folder / "lmedit-prepared").mkdir()
        shutil.copy(made["path"], folder / "lmedit-prepared" / "mend.safetensors")
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "empty"))
    patch = ("-O", tmp_path / "patch.safetensors", "--force")
    assert lmedit("edit", "mend", *FACT, *small, "-m", own, *patch).exit_code == 0
    # Made with other options it is not the one that was asked for.
    refused = lmedit("edit", "mend", *FACT, "-m", own, *patch).stderr
    assert "not prepared" in refused
    assert "(prepared: " in refused
    assert "steps 4" in refused
    wrong = lmedit("edit", "mend", *FACT, *small, "-m", other, *patch)
    assert wrong.exit_code == 1
    assert f"was prepared for base {own}" in wrong.stderr
    assert f"but {other} is" in wrong.stderr


def test_limit_is_a_flag_of_its_own(lmedit: Run, model: Path, training: Path) -> None:
    own = (*flags("ke"), "-m", model, "--corpus", training, "--limit", "20", "--json")
    made = json.loads(lmedit("prepare", "ke", *own).stdout)
    assert made["facts"]["examples"] + made["facts"]["validation_examples"] == 20
    assert "no option 'limit'" in lmedit("prepare", "rome", "-m", model, "--limit", "20").stderr
