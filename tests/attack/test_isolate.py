"""A method with a process of its own reaches no other method, also if its process ends."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from small_world import record, save_model

from lmedit.cli import main
from lmedit.cli.alone import OURS
from lmedit.compare.store import RunStore, Stored

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
TOY = """
import os, torch
from lmedit import Dense, Location, Method, Update, hookimpl

torch.nn.functional.layer_norm = {layer_norm}

@hookimpl
def edit_describe():
    return Method("toy", "none")

@hookimpl
def edit_locate(lm):
    return Location((lm.mlp_out(1),))

@hookimpl
def edit_compute(lm, location, request):
    if "boat" in request.text:
        os._exit(3)
    if "Nobody" in request.text:
        sum(range(10**14))  # it never returns to Python
    print("computed")
    site, = location.sites
    return Update({{site: Dense(0.01 * torch.ones(lm.weight(site).shape))}})
"""
OF_PROCESS = ("seconds_per_edit", "seconds_amortised", "peak_mebibytes", "predicted_mebibytes")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMEDIT_EDIT_TIMEOUT", "0")  # --edit-timeout sets it for the process
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "tiny", seed=0)
    cases = [record(0), record(1, "A small boat"), record(2, "Nobody in the city")]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    return tmp_path


def compare(*more: str) -> dict[str, Any]:
    flags = ["-m", "tiny", "--cases", "cases.json", "--json", "--run", "run", "-o", "ft.layer", "1"]
    done = CliRunner().invoke(main, ["compare", *flags, *more], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rows(found: dict[str, Any]) -> Sequence[dict[str, Any]]:
    return [{n: v for n, v in row.items() if n not in OF_PROCESS} for row in found["rows"]]


@pytest.mark.slow
def test_what_a_method_does_to_its_process_reaches_no_other(place: Path) -> None:
    (place / "toy.py").write_text(TOY.format(layer_norm="lambda *_, **__: 1 / 0"))
    alone = compare("ft", "--isolate", "--run", "alone")
    found = compare("toy", "ft", "--plugin", "toy.py", "--edit-timeout", "1")
    base, toy, ft = found["rows"]
    assert [row["method"] for row in (base, toy, ft)] == ["base", "toy", "ft"]
    assert rows(found)[2] == rows(alone)[1]
    assert (ft["n_failed"], toy["n"]) == (0, 3)
    assert found["rows"][0]["ES"] == toy["ES"]
    (failure,) = toy["failures"]
    assert (toy["n_failed"], toy["keys"]) == (3, [])
    assert failure.startswith("method 'toy': tiny: a pass on text alone fails")


@pytest.mark.slow
def test_a_case_during_which_a_process_ends_is_a_failure_alone(place: Path) -> None:
    (place / "toy.py").write_text(TOY.format(layer_norm="torch.nn.functional.layer_norm"))
    found = compare("toy", "ft", "--plugin", "toy.py", "--edit-timeout", "1")
    _, toy, _ = found["rows"]
    assert (toy["n"], toy["n_failed"]) == (3, 2)
    reasons = sorted(toy["failures"])
    assert "ended with code 1" in reasons[0]
    assert "ended with code 3" in reasons[1]
    assert {d["one"] for d in found["differences"]} == {"toy"}


@pytest.mark.slow
def test_alone_and_together_give_the_same(place: Path) -> None:
    told = [
        compare("ft", "ft-l", flag, "-o", "ft-l.layer", "1", "--random-layer", "ft", "--run", flag)
        for flag in ("--isolate", "--no-isolate")
    ]
    assert rows(told[0]) == rows(told[1])
    assert told[0]["differences"] == told[1]["differences"]


@pytest.mark.parametrize("code", ["import os; os._exit(3)", "import os; os.kill(os.getpid(), 9)"])
def test_a_plugin_that_ends_its_process_at_import_is_one_line(place: Path, code: str) -> None:
    (place / "toy.py").write_text(code)
    flags = ["-m", "tiny", "--cases", "cases.json", "--plugin", "toy.py"]
    done = CliRunner().invoke(main, ["compare", "toy", *flags])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: plugin file toy.py: its process ")
    assert done.stderr.count("\n") == 1


def test_ours_are_the_methods_of_this_project() -> None:
    files = ROOT.glob("plugins/*/pyproject.toml")
    names = {tomllib.loads(file.read_text())["project"]["name"] for file in files}
    assert names - {"lmedit-play", "lmedit-ray"} == OURS


def test_the_task_of_a_process_that_ended_is_known(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        assert not store.left_behind("a")
        assert store.claim("a")
        assert not store.left_behind("a")
        store._database.execute(f"INSERT INTO claims VALUES ('b', '{'0' * 32}')")
        assert store.left_behind("b")
        store.forget_ended()
        assert not store.left_behind("b")
        store.put(Stored("a", "m", "1", "{}", None))
    assert os.listdir(tmp_path / "workers") == []
