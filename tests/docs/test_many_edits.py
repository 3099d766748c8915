"""The tables of many edits are those of their results files, to which each call adds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmedit.registry import module_of

if TYPE_CHECKING:
    from types import ModuleType

SCRIPT = Path(__file__).parents[2] / "worlds" / "many_edits.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return module_of(SCRIPT)


def curve(entrant: str, S: float, *sizes: int, **settings: Any) -> dict[str, Any]:
    fixed = {"regime": "batch", "limit": None, "batch": None, "sizes": None} | settings
    points = [{"method": entrant, "size": size, "S": S, "collapsed": False} for size in sizes]
    return {"entrant": entrant, "command": "", "machine": {}, "points": points, **fixed}


@pytest.mark.parametrize("world", ["demo", "smollm2"])
def test_the_page_has_the_tables_of_the_results(script: ModuleType, world: str) -> None:
    assert script.section(world) in script.PAGE.read_text(encoding="utf-8")
    assert world in script.WORLDS


def test_every_committed_curve_names_its_command_and_its_machine(script: ModuleType) -> None:
    for world in script.WORLDS:
        for each in script.read_curves(script.results_file(world)):
            assert each["points"], each["command"]
            assert each["machine"]["torch"]
            settings = {name: each[name] for name in ("limit", "batch", "sizes")}
            own = script.command_of(world, each["regime"], settings, each["entrant"])
            assert each["command"] == own


def test_a_call_adds_to_the_file_and_replaces_its_own_curve(
    script: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "curves.json"
    for each in (
        curve("rome", 1.0, 10),
        curve("memit", 2.0, 10),
        curve("rome", 3.0, 10, 100, limit=100),
        curve("rome", 4.0, 10, regime="batched", batch=10),
        curve("memit", 5.0, 10),
    ):
        script.add_curve(path, each)
    found = [(each["entrant"], each["points"][0]["S"]) for each in script.read_curves(path)]
    assert found == [("rome", 1.0), ("rome", 3.0), ("rome", 4.0), ("memit", 5.0)]
    assert script.read_curves(tmp_path / "none.json") == []


def test_the_table_has_the_newest_value_of_each_size(script: ModuleType) -> None:
    curves = [
        curve("rome", 90.0, 10, 30),
        curve("memit", 80.0, 30),
        curve("rome", 20.0, 30, 100, limit=100),
        curve("rome", 70.0, 20, regime="batched", batch=10),
    ]
    lines = script.page_lines("demo", curves)
    rows = [
        line.split(" | ")[:3] for line in lines if line.startswith("| ") and "facts" not in line
    ]
    assert rows == [
        ["| memit", "30", "80.0"],
        ["| rome", "10", "90.0"],
        ["| rome", "30", "20.0"],
        ["| rome", "100", "20.0"],
        ["| rome", "20", "70.0"],
    ]
    assert "S is under 60 % of its first value: rome from 30 facts on." in lines
    assert "### demo, batched, 10 at a time" in lines
    start = "python worlds/many_edits.py demo --run runs/many --regimes batch"
    assert [line for line in lines if line.startswith(start) and "batched" not in line] == [
        f"{start} --only rome memit",
        f"{start} --limit 100 --only rome",
    ]


def test_the_curve_of_an_entrant_is_its_own(script: ModuleType) -> None:
    """FT runs beside the baselines that change no weight; its points are not theirs."""
    results = {
        "curve": [{"method": name, "size": 1} for name in ("ft", "retrieve")],
        "rows": [{"method": name, "n": 4, "keys": []} for name in ("ft", "in-context")],
    }
    assert script.points_of("retrieve", results) == [{"method": "retrieve", "size": 1}]
    own = {"size": 4, "collapsed": False, "computed": "prompt", "method": "in-context", "n": 4}
    assert script.points_of("in-context", results) == [own]
    assert "in-context" in "".join(script.retention_lines([{**own, "S": 50.0}]))
    mine = script.points_of("ft", results)
    assert mine == [{"method": "ft", "size": 1}]
    assert json.loads(json.dumps(mine)) == mine


@pytest.mark.parametrize("words", ["", "demo", "--run x", "demo --run x --only y"])
def test_a_wrong_command_is_refused(
    script: ModuleType, words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["many_edits.py", *words.split()])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err
