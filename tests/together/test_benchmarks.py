"""The benchmarks compare equal things, and their table shows every ratio."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_world import record

from lmedit import Editor, Prepared, build_options, load
from lmedit.cases import load_cases
from lmedit.compare.store import RunStore, read_results
from lmedit.executors.engine import Engine
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
        monkeypatch.setitem(sys.modules, spec.name, module)  # a dataclass looks its module up
        spec.loader.exec_module(module)
        return module

    yield load
    names = ("rome_edit", "hyper_training", "edit_seconds", "arithmetic", "reference", "plain")
    for name in ("paired", *names):
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


def test_ways_are_measured_in_turns_and_counted_only_if_asked(script: object) -> None:
    paired, seen = script("paired"), []  # type: ignore[operator]
    x = torch.ones(8, 8)
    ways = {name: lambda name=name: seen.append(name) or x @ x for name in ("a", "b", "c")}
    row = paired.Measured(ways, 3, count=False).row("a", "c")
    assert seen == [*"abc"] * 3
    assert row["pairs"] == 3
    assert "plain_gflop" not in row
    counted = paired.Measured(ways, 1).row("a", "b")
    assert counted["plain_gflop"] == 2 * 8**3 / 1e9
    assert counted["times_fewer_flops"] == 1


def test_two_ways_of_a_method_are_compared_fact_by_fact(script: object, tmp_path: Path) -> None:
    arithmetic = script("arithmetic")  # type: ignore[operator]
    lm, loaded = tiny_lm(2), load("ft")
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([record(n, f"The tower {n}") for n in range(3)]))
    editors = {
        name: Editor(loaded, lm, build_options(loaded.method, {"steps": steps}, lm), Prepared())
        for name, steps in (("one", 3), ("two", 2))
    }
    row = arithmetic.two_ways(editors, load_cases(str(file)), 2, tmp_path / "run")
    assert (row["cases"], row["timed"]) == (3, 2)
    assert 0.5 < row["cosine"] < 1
    assert set(row["difference"]) == {"S", "ES", "PS", "NS"} == set(row["one"])
    for score, (estimate, low, high) in row["difference"].items():
        assert low <= estimate <= high
        assert estimate == pytest.approx(row["two"][score] - row["one"][score])


def test_the_page_has_the_tables_of_the_results(script: object) -> None:
    tables = script("tables")  # type: ignore[operator]
    text = tables.PAGE.read_text(encoding="utf-8")
    for name, table in tables.TABLES.items():
        assert f"<!-- {name} -->\n{table()}\n<!-- /{name} -->" in text


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


def test_a_step_of_a_search_grows_with_its_tokens(script: object) -> None:
    growth, lm = script("growth"), tiny_lm(2)  # type: ignore[operator]
    rows = growth.by_tokens(lm, [1, 3], [1, 2], 1)
    assert [(row["words"], row["answer_tokens"]) for row in rows] == [(1, 1), (3, 1), (4, 2)]
    assert rows[0]["tokens_a_step"] < rows[1]["tokens_a_step"]
    assert rows[0]["gflop"] < rows[1]["gflop"]
    assert growth.one_long_among_short(lm, 8, 1)["times_fewer_flops"] >= 1


def test_growth_has_a_row_for_each_size(script: object) -> None:
    growth, lm = script("growth"), tiny_lm()  # type: ignore[operator]
    loaded = load("ft")
    editor = Editor(loaded, lm, build_options(loaded.method, {"steps": 2}, lm), Prepared())
    rows = growth.by_edits(editor, [1, 3])
    assert [row["edits"] for row in rows] == [1, 3]
    assert all(row["seconds_single"] > 0 and row["seconds_batch"] > 0 for row in rows)


def test_the_paper_plan_is_what_the_script_computes(script: object) -> None:
    scale = script("scale")  # type: ignore[operator]
    text = scale.PAGE.read_text(encoding="utf-8")
    for name, tables in (("scale", scale.page()), ("store", scale.store_table())):
        assert f"<!-- {name} -->\n{tables}\n<!-- /{name} -->" in text


def test_every_constant_of_the_paper_plan_names_its_source(script: object) -> None:
    scale = script("scale")  # type: ignore[operator]
    for constant in scale.constants().values():
        file = re.search(r"(\w+)\.(json|py)", constant.source)
        known = constant.source.startswith(("published", "assumed", "computed"))
        assert known or file is not None, constant
        if file is not None:
            folder = FOLDER / "results" if file[2] == "json" else FOLDER
            assert (folder / file[0]).is_file()


def test_more_accelerators_need_less_time_until_the_server_is_full(script: object) -> None:
    scale = script("scale")  # type: ignore[operator]
    known = scale.constants()
    plan = scale.Paper({"rome": 6.0}, 0.2, 100.0, 12e9, 4e9)
    hours = [scale.day(plan, count, known).seconds for count in (1, 8, 64)]
    assert hours[0] > 7 * hours[1] > 14 * hours[2]
    full = scale.full_first(plan, known)
    most = full["the file server, at the start: half of the time"]
    at_most = scale.day(plan, round(most), known)
    assert at_most.start == pytest.approx(at_most.work, rel=0.05)


def test_the_driver_stores_the_results_of_many_workers(
    script: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost or doubled; a group of eight costs two transactions, and not one a task."""
    driver_store = script("driver_store")  # type: ignore[operator]
    begun = []
    real = RunStore._transaction

    def counted(self: RunStore, **how: Any) -> Any:
        begun.append(how)
        return real(self, **how)

    monkeypatch.setattr(RunStore, "_transaction", counted)
    found = driver_store.simulate(2000, 100, 900, tmp_path / "run")
    assert found["rows"] == 2000
    assert found["groups_at_once"] == 100
    groups = driver_store.METHODS * -(-2000 // driver_store.METHODS // 8)
    assert len(begun) <= 2 * groups
    rows = read_results(tmp_path / "run")
    assert {row.payload for row in rows} == {driver_store.payload_of(900)}
    assert {row.key for row in rows} == {task.key for task in driver_store.tasks_of(2000)}


def test_executors_do_the_same_cases_and_the_page_has_the_figures(
    script: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here without other processes; the script itself starts them."""
    executors = script("executors")  # type: ignore[operator]
    work = executors.Work("ft", 2, 1)
    threads = torch.get_num_threads()
    row = executors.measure(Engine("local"), work)
    assert torch.get_num_threads() == threads
    assert row["same_to_the_last_digit"]
    assert min(row["load_seconds"], row["method_seconds_per_case"], row["times_local"]) > 0
    parts = row["method_seconds_per_case"] + row["executor_seconds_per_case"]
    assert parts == pytest.approx(row["seconds_per_case"])
    assert row["start_of_executor"] == 0
    written = json.loads((FOLDER / "results" / "executors.json").read_text(encoding="utf-8"))
    text = (FOLDER.parent / "docs" / "explanation" / "scale.md").read_text(encoding="utf-8")
    assert f"<!-- executors -->\n{executors.page(written)}\n<!-- /executors -->" in text
    assert executors.growth(written["rows"]) == written["growth"]
    assert {name for name, *_ in executors.CHOICES} == {r["executor"] for r in written["rows"]}
    assert not executors.agree({"a": [1.0]}, {"a": [1.1]})
    monkeypatch.setattr(executors, "time_rounds", lambda *_: ([1.0], [1.0], False, False))
    with pytest.raises(SystemExit, match="has other results"):
        executors.measure(Engine("local"), work)


RATIOS = {"a": 4.0, "b": 2.0}


def test_a_ratio_fails_when_it_falls_twice_in_a_row(script: object, tmp_path: Path) -> None:
    """Once is a warning. A recovery in between, and a fall of a quarter at most, are neither."""
    reference, file = script("reference"), tmp_path / "reference.json"  # type: ignore[operator]
    here = {"device": "x86_64", "cores": 2}

    def run(**ratios: float) -> tuple[Any, Any]:
        once, again = reference.hold(here, RATIOS | ratios, file)
        return [each.partition(":")[0] for each in once], [each.partition(":")[0] for each in again]

    assert run() == ([], [])
    assert run(a=3.0, b=9.0) == ([], [])
    assert run(a=2.9) == (["a"], [])
    assert run(b=1.0) == (["b"], [])  # a recovered
    assert run(a=2.9, b=1.0) == (["a"], ["b"])
    assert reference.hold(here, {"a": 2.0}, file)[1] == ["a: 4 fell to 2"]
    assert run(b=1.4) == ([], ["b"])  # b was not measured in between
    assert reference.hold({**here, "cores": 4}, {"a": 1.0}, file) == ([], [])
    assert reference.hold(here, {"a": 1.0}, file, anew=True) == ([], [])
    assert reference.hold(here, {"a": 1.0}, file) == ([], [])


def test_the_bench_ends_with_one_line_for_a_ratio_that_fell_again(
    script: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collected = script("all")  # type: ignore[operator]
    row = {"benchmark": "one", "shape": "gpt2", "times_faster": 4.0, "times_fewer_flops": 8.0}
    file = tmp_path / "reference.json"
    collected.hold_to_reference([row], file)
    slower = {**row, "times_faster": 2.0}
    collected.hold_to_reference([slower], file)
    assert "warning: one shape=gpt2 times_faster: 4 fell to 2" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        collected.hold_to_reference([slower], file)
    assert ended.value.code == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "one shape=gpt2 times_faster: 4 fell to 2" in told[0]


def test_the_run_for_an_accelerator_tells_each_edit_or_why_not(script: object) -> None:
    """At a small size on the processor: with little time, rows tell that there was none left."""
    accelerator = script("accelerator")  # type: ignore[operator]
    paired = sys.modules["paired"]
    small = {"n_layer": 4, "n_embd": 32, "n_head": 2, "vocab_size": 6144}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 6144}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, **heads}
    models = {
        "gpt2": lambda: paired.with_words(small),
        "llama": lambda: accelerator.llama(accelerator.LLAMA | sizes, "cpu"),
    }
    flags = {"minutes": 5, "methods": accelerator.METHODS, "modes": ["eager"]}
    asked = argparse.Namespace(**flags, facts=2, samples=20)
    rows = list(accelerator.rows_of(models, asked))
    assert [(row["shape"], row["method"]) for row in rows] == [
        (shape, method) for shape in models for method in accelerator.METHODS
    ]
    assert [row.get("why") for row in rows] == [None] * len(rows)
    assert all(row["seconds"] > 0 for row in rows)
    asked.minutes = 0
    (row, *_) = accelerator.rows_of(models, asked)
    assert row["why"] == "TimeoutError: no time left"
    assert "seconds" not in row
