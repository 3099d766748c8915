"""`lmedit plan`: from a config alone, for every method; what was predicted beside what was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lmedit.actions import estimate as planning

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

METHODS = (
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
    "malmen",
)


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Path:
    """A folder with a model's config and nothing else."""
    folder = tmp_path / "config"
    folder.mkdir()
    shutil.copy(model / "config.json", folder)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_planned_from_the_config(lmedit: Run, config: Path, method: str) -> None:
    found = json.loads(lmedit("plan", method, "-m", config, "--json").stdout)
    assert found["fits"] is True
    assert ("prepare" in found["parts"]) == (method not in {"ft", "ft-l", "kn", "ultraedit"})
    for part in found["parts"].values():
        assert part["total"] > sum(part["memory"].values()) > 0
        assert part["flops"] > 0
    text = lmedit("plan", method, "-m", config).stdout
    assert "it fits" in text
    assert "edit, beside that" in text


def test_what_takes_more_takes_more_in_the_plan(lmedit: Run, config: Path) -> None:
    def edit(method: str, *flags: object) -> dict[str, float]:
        found = json.loads(lmedit("plan", method, "-m", config, *flags, "--json").stdout)
        part: dict[str, float] = found["parts"]["edit"]
        return part

    few, many = (edit("rome", "-o", "prefixes", f"[[5, {n}]]") for n in (2, 50))
    assert few["flops"] < many["flops"]
    assert few["total"] < many["total"]
    low, high = (edit("rome", "-o", "layer", layer) for layer in (0, 3))
    assert high["flops"] < low["flops"]
    assert edit("ft", "-o", "steps", "50")["flops"] == 2 * edit("ft")["flops"]


def test_what_does_not_fit_is_said_with_a_way_out(
    lmedit: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "free", lambda _: -1e12)
    done = lmedit("plan", "rome", "-m", config)
    assert done.exit_code == 1
    assert "it does not fit; try --dtype bfloat16" in done.stdout
    assert "--dtype" not in lmedit("plan", "rome", "-m", config, "--dtype", "bfloat16").stdout


def test_no_model_is_one_line(lmedit: Run) -> None:
    done = lmedit("plan", "rome", "-m", "nowhere")
    assert done.exit_code == 1
    assert "no world, folder or downloaded model 'nowhere'" in done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells memory")
def test_runs_report_the_predicted_beside_the_measured(
    lmedit: Run, model: Path, cases: Path
) -> None:
    done = lmedit("compare", "ft", "-m", model, "--cases", cases, "--json")
    base, row = json.loads(done.stdout)["rows"]
    assert base["predicted_mebibytes"] is None
    assert 0.5 < row["predicted_mebibytes"] / row["peak_mebibytes"] < 2
