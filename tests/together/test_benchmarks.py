"""The benchmarks compare equal things, and their table shows every ratio."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from small_world import record

from lmedit import Editor, Prepared, build_options, load
from lmedit.cases import load_cases
from lmedit.replay.unmerged import States
from lmedit.tiny import byte_tokenizer, tiny_family, tiny_lm

if TYPE_CHECKING:
    from types import ModuleType

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> object:
    """A function that imports a script of benchmarks/."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in ("paired", "rome_edit", "hyper_training", "plain"):
        sys.modules.pop(name, None)


def test_both_ways_to_score_give_the_same_with_fewer_operations(
    script: object, tmp_path: Path
) -> None:

    evaluation, lm = script("evaluation"), tiny_lm(2)  # type: ignore[operator]
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([record(n, f"The tower {n}") for n in range(9)]))
    pairs = [evaluation.pairs_of(case) for case in load_cases(str(file)).good]
    updates = [evaluation.update_of(lm, 2, n) for n in range(len(pairs))]
    found = evaluation.ours(lm, pairs, updates, States(lm))
    assert found == pytest.approx(evaluation.plain(lm, pairs, updates), abs=1e-6)
    row = evaluation.compare(
        lambda: evaluation.plain(lm, pairs, updates),
        lambda: evaluation.ours(lm, pairs, updates, States(lm)),
        1,
    )
    assert row["times_fewer_flops"] > 2


def test_the_table_has_every_row_and_no_number_that_was_not_measured(script: object) -> None:
    collected = script("all")  # type: ignore[operator]
    rows = [
        {"benchmark": "one", "shape": "gpt2", "times_faster": 2.0, "our_seconds": 0.5},
        {"benchmark": "two", "what": "again", "times_faster": 12.345, "plain_seconds": 3.0},
    ]
    first, *lines = collected.table(rows, collected.RATIOS).splitlines()
    assert first.split() == ["what", *collected.RATIOS]
    assert [line.split() for line in lines] == [
        ["one", "shape=gpt2", "2", "-", "-", "0.5", "-", "-", "-"],
        ["two", "what=again", "12.3", "-", "3", "-", "-", "-", "-"],
    ]


def test_the_short_runs_are_of_scripts_that_are_there(script: object) -> None:
    collected = script("all")  # type: ignore[operator]
    names = {*collected.SCRIPTS, *collected.COSTS}
    for name in names:
        assert (FOLDER / f"{name}.py").is_file()
    assert set(collected.WITH_XL) <= names


def test_an_edit_by_each_method_takes_time_and_operations(script: object) -> None:
    costs, lm = script("edit_seconds"), tiny_family("gpt2", torch.float32)  # type: ignore[operator]
    lm.tokenizer = byte_tokenizer()
    rows = [costs.measure(lm, method, 1) for method in ("ft", "kn", "mend", "ke")]
    assert [row["method"] for row in rows] == ["ft", "kn", "mend", "ke"]
    assert all(row["seconds"] > 0 and row["gflop"] > 0 for row in rows)
    assert lm.weights_digest() == lm.digest


def test_growth_has_a_row_for_each_size(script: object) -> None:
    growth, lm = script("growth"), tiny_lm()  # type: ignore[operator]
    loaded = load("ft")
    editor = Editor(loaded, lm, build_options(loaded.method, {"steps": 2}, lm), Prepared())
    rows = growth.by_edits(editor, [1, 3])
    assert [row["edits"] for row in rows] == [1, 3]
    assert all(row["seconds_single"] > 0 and row["seconds_batch"] > 0 for row in rows)
