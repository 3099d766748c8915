"""`plan-run`, `work` and `merge`: shards from several machines become the run of one machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from children import ended, started
from small_world import record, save_model

from lmedit.actions.planned import begin_shard, list_unfinished, read_planned, working
from lmedit.cases.shards import Shard
from lmedit.cli import main
from lmedit.compare import facts, merge
from lmedit.compare.store import RunStore, Stored, iterate_results, read_results, read_run_facts
from lmedit.errors import UsageError
from lmedit.storage.atomic import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

COUNT = 19
"""Two whole groups of eight cases, and a short one."""
TIMES = ("seconds_per_edit", "seconds_amortised", "peak_mebibytes", "predicted_mebibytes")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: Path, lmedit_once: Run) -> Path:
    """A folder with a plan, the run of one machine, and three shards. The tests only read it."""
    folder = tmp_path_factory.mktemp("planned")
    shutil.copytree(model, folder / "model")
    (folder / "cases.json").write_text(json.dumps(records()), encoding="utf-8")
    given = ("ft", "ft-l", "--cases", folder / "cases.json", "-m", folder / "model")
    given = (*given, "-o", "steps", 2, "--random-layer", "ft", "--in-context")
    sound(lmedit_once("plan-run", *given, "-O", folder / "plan.json"))
    sound(lmedit_once("compare", *given, "--run", folder / "one"))
    for number in (1, 2, 3):
        out = folder / f"part{number}"
        sound(lmedit_once("work", folder / "plan.json", "--shard", f"{number}/3", "--run", out))
    return folder


def records(count: int = COUNT) -> list[dict[str, Any]]:
    return [record(number, f"The tower {number}") for number in range(count)]


def sound(done: Result) -> str:
    assert done.exit_code == 0, done.output
    return done.stdout


def line_of(done: Result, code: int = 1) -> str:
    """The one line of a refusal."""
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    return last


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the table, with every digit, and without times and memory."""
    found = json.loads((folder / "results.json").read_text())["rows"]
    return [
        {name: v for name, v in row.items() if name.removesuffix("_sd") not in TIMES}
        for row in found
    ]


def parts(place: Path) -> list[Path]:
    return [place / f"part{number}" for number in (1, 2, 3)]


def copied(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / source.name))


def changed(folder: Path, command: str, *values: object) -> Path:
    """*folder* with a change of its database."""
    with closing(sqlite3.connect(folder / "run.sqlite")) as database, database:
        assert database.execute(command, values).rowcount > 0
    return folder


# ---- the same run


def test_three_shards_are_the_run_of_one_machine_in_any_order(
    place: Path, lmedit: Run, tmp_path: Path
) -> None:
    one, two, three = parts(place)
    assert {len(read_results(part)) for part in (one, two)} == {8 * 5}
    assert len(read_results(three)) == 3 * 5
    for name, order in (("a", (one, two, three)), ("b", (three, one, one, two))):
        sound(lmedit("merge", *order, "-O", tmp_path / name))
    assert (tmp_path / "a" / "run.sqlite").read_bytes() == (
        tmp_path / "b" / "run.sqlite"
    ).read_bytes()
    assert [row.key for row in read_results(tmp_path / "a")] == [
        row.key for row in read_results(place / "one")
    ]
    assert (tmp_path / "a" / "cases.json").read_bytes() == (
        place / "one" / "cases.json"
    ).read_bytes()
    before = read_results(tmp_path / "a")
    table = sound(lmedit("work", tmp_path / "a"))
    assert read_results(tmp_path / "a") == before
    assert rows(tmp_path / "a") == rows(place / "one")
    assert "ft-l" in table
    assert (
        json.loads((tmp_path / "a" / "results.json").read_text())["made_by"]
        == (json.loads((place / "one" / "results.json").read_text())["made_by"])
    )


def test_merging_again_changes_nothing(place: Path, lmedit: Run, tmp_path: Path) -> None:
    one, two, three = parts(place)
    out = tmp_path / "run"
    sound(lmedit("merge", one, two, "-O", out))
    for more in ([three], [out, three], [two, one, three]):
        done = lmedit("merge", *more, "-O", out)
        sound(done)
        assert len(read_results(out)) == COUNT * 5
        assert "all shards are finished" in done.stderr
    sound(lmedit("merge", three, two, one, "-O", tmp_path / "other"))
    assert read_results(out) == read_results(tmp_path / "other")
    assert read_run_facts(out) == read_run_facts(tmp_path / "other")


def test_an_unfinished_run_is_merged_and_compare_goes_on(
    place: Path, lmedit: Run, tmp_path: Path
) -> None:
    half = copied(place / "part2", tmp_path)
    changed(half, "DELETE FROM results WHERE case_id IN ('9', '12')")
    changed(half, "DELETE FROM facts WHERE name = 'finished shard 2/3'")
    done = lmedit("merge", half, place / "part1", "-O", tmp_path / "run")
    sound(done)
    assert "results: base 14, ft 14, ft-l 14, ft-random-layer 14, in-context 14" in done.stderr
    assert "unfinished shards: 2/3, 3/3; lmedit work" in done.stderr
    kept = {row.key: row for row in read_results(tmp_path / "run")}
    given = json.loads((place / "plan.json").read_text())["plan"]
    command = ("compare", "ft", "ft-l", "--cases", given["cases"], "-m", given["model"])
    command = (*command, "-o", "steps", 2, "--random-layer", "ft", "--in-context")
    sound(lmedit(*command, "--run", tmp_path / "run"))
    assert rows(tmp_path / "run") == rows(place / "one")
    now = {row.key: row for row in read_results(tmp_path / "run")}
    assert len(now) == COUNT * 5
    assert {key: now[key] for key in kept} == kept


def test_piles_and_seeds_are_divided_by_method_and_seed(
    lmedit: Run, model: Path, cases: Path, text: Path, tmp_path: Path
) -> None:
    given = ("ft", "ft-l", "--cases", cases, "-m", model, "-o", "steps", 2, "--seeds", "0,2")
    given = (*given, "--regime", "sequential", "--sizes", "1,3", "--heldout", text)
    given = (*given, "--heldout-lines", 2)
    sound(lmedit("compare", *given, "--run", tmp_path / "one"))
    planned = lmedit("plan-run", *given, "-O", tmp_path / "plan.json")
    sound(planned)
    assert "at most 5 shards have work" in planned.stderr
    names = []
    for number in (1, 2, 3):
        out = tmp_path / f"part{number}"
        sound(lmedit("work", tmp_path / "plan.json", "--shard", f"{number}/3", "--run", out))
        names.append({row.method for row in read_results(out)})
    assert all(names)
    assert sum("base" in each for each in names) == 1
    for order in ((1, 2, 3), (3, 1, 2)):
        out = tmp_path / f"run{order[0]}"
        sound(lmedit("merge", *(tmp_path / f"part{n}" for n in order), "-O", out))
        before = read_results(out)
        assert [row.key for row in before] == [row.key for row in read_results(tmp_path / "one")]
        sound(lmedit("work", out))
        assert read_results(out) == before
        assert rows(out) == rows(tmp_path / "one")
    part = next(p for p in sorted(tmp_path.glob("part?/patches/*")))
    part.write_bytes(part.read_bytes()[:-9])
    told = line_of(lmedit("merge", part.parents[1], "-O", tmp_path / "no"))
    assert str(part) in told
    assert "leave this run out" in told
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_each_case_and_each_pile_is_in_one_shard(of: int) -> None:
    names = ("ft", "rome")
    shards = [Shard(number, of, names) for number in range(1, of + 1)]
    for seed in (0, 1, 5):
        for name in ("base", *names, "retrieve", "ft-random-layer"):
            assert sum(shard.takes_pile(name, seed) for shard in shards) == 1
    for unit in range(20):
        assert sum(shard.takes(unit) for shard in shards) == 1


@pytest.mark.parametrize("text", ["", "1", "0/3", "4/3", "1/0", "a/b", "-1/3", "1/2/3", "²/3"])
def test_what_is_no_shard_is_wrong_usage(text: str, place: Path, lmedit: Run) -> None:
    with pytest.raises(UsageError, match="is no shard"):
        Shard.read(text)
    if text:
        done = lmedit("work", place / "plan.json", "--shard", text)
        assert "is no shard; give its number" in line_of(done, 2)


# ---- refusals


def test_runs_of_other_plans_models_and_versions_are_refused_by_name(
    place: Path, lmedit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, first = tmp_path / "plan.json", place / "part1"

    def refused(name: str, given: Path = place / "plan.json") -> str:
        sound(lmedit("work", given, "--shard", "3/3", "--run", tmp_path / name))
        told = line_of(lmedit("merge", first, tmp_path / name, "-O", tmp_path / "out"))
        assert line_of(lmedit("merge", tmp_path / name, first, "-O", tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        assert str(tmp_path / name) in told
        assert str(first) in told
        return told

    found = json.loads((place / "plan.json").read_text())
    found["plan"]["options"] = [["steps", "3"]]
    plan.write_text(json.dumps(found))
    assert "method ft, seed 0: options steps is 2 in the first and 3 in" in refused("o", plan)
    found = json.loads((place / "plan.json").read_text())
    found["measuring"]["metrics"] = ["generation"]
    plan.write_text(json.dumps(found))
    assert 'the plan: measuring metrics is [] in the first and ["generation"]' in refused(
        "metrics", plan
    )
    shutil.move(place / "model", tmp_path / "kept")
    try:
        save_model(place / "model", seed=1)
        told = refused("model")
    finally:
        shutil.rmtree(place / "model")
        shutil.move(tmp_path / "kept", place / "model")
    assert "the model is" in told
    newer = facts.versions() | {"torch": "99.0"}
    monkeypatch.setattr(facts, "versions", lambda: newer)
    told = refused("versions")
    assert "the versions: torch is" in told
    assert "99.0 in the second" in told


def test_each_fact_of_a_run_is_compared(place: Path, lmedit: Run, tmp_path: Path) -> None:
    """A protocol, cases, statistics: another value of any fact refuses the merge."""
    known = read_run_facts(place / "part1")
    assert {"model", "cases", "protocol", "versions", "method ft, seed 0", "plan"} <= set(known)
    for name in set(known) - {"shard", "finished shard 1/3"}:
        other = copied(place / "part2", tmp_path)
        changed(other, "UPDATE facts SET value = '\"other\"' WHERE name = ?", name)
        told = line_of(lmedit("merge", place / "part1", other, "-O", tmp_path / "out"))
        assert f"the {name}" in told
        shutil.rmtree(other)


def test_folders_that_are_no_planned_runs_are_one_line(
    place: Path, lmedit: Run, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    cut = copied(place / "part2", tmp_path)
    data = (cut / "run.sqlite").read_bytes()
    for name, told in (
        (tmp_path / "none", "is not a run of lmedit"),
        (tmp_path / "empty", "is not a run of lmedit"),
        (place / "plan.json", "is not a run of lmedit"),
        (place / "one", "was not made by lmedit work"),
    ):
        assert told in line_of(lmedit("merge", place / "part1", name, "-O", tmp_path / "out"))
    for kept in (data[: len(data) // 2], data[:100], b"", b"\0" * 4096, data[:4096] + b"x" * 9000):
        (cut / "run.sqlite").write_bytes(kept)
        line_of(lmedit("merge", place / "part1", cut, "-O", tmp_path / "out"))
        assert not (tmp_path / "out").exists()
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(PREFIX)]


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("payload", "{", "is damaged"),
        ("payload", '{"scores": {"ES": "high"}}', "is damaged"),
        ("payload", "[" * 1000, "is damaged"),
        ("key", "../../../evil", "is damaged"),
        ("seconds", "soon", "is damaged"),
        ("method", b"\xff", "is damaged"),
    ],
)
def test_a_hostile_result_is_one_line(
    column: str, value: object, told: str, place: Path, lmedit: Run, tmp_path: Path
) -> None:
    bad = copied(place / "part3", tmp_path)
    where = "method = 'base' AND case_id = '17'"
    changed(bad, f"UPDATE results SET {column} = ? WHERE {where}", value)
    assert told in line_of(lmedit("merge", bad, place / "part1", "-O", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_place_that_holds_something_else_is_refused(
    place: Path, lmedit: Run, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    for out, told in (
        (tmp_path / "mine", "exists and is not a run of lmedit"),
        (tmp_path / "mine" / "letter.txt", "exists and is not a run of lmedit"),
        (place / "part2", "is a shard, which is not changed"),
        (place / "one", "was not made by lmedit work"),
    ):
        assert told in line_of(lmedit("merge", place / "part1", "-O", out))


def test_two_results_of_one_task_are_both_shown(place: Path, lmedit: Run, tmp_path: Path) -> None:
    other = copied(place / "part1", tmp_path)
    where = "WHERE method = 'ft' AND case_id = '3'"
    changed(other, f"UPDATE results SET payload = json_set(payload, '$.scores.NM', 0.25) {where}")
    told = line_of(lmedit("merge", place / "part1", other, "-O", tmp_path / "out"))
    assert "ft on case 3 has two results: scores NM is " in told
    assert f"0.25 in {other}" in told or f"is 0.25 in {other}" in told
    assert f"in {place / 'part1'}" in told
    changed(other, f'UPDATE results SET payload = \'{{"failure": "no"}}\' {where}')
    told = line_of(lmedit("merge", other, place / "part1", "-O", tmp_path / "out"))
    assert "no in" in told
    assert "absent in" in told
    assert not (tmp_path / "out").exists()
    sound(lmedit("merge", place / "part1", "-O", tmp_path / "out"))
    before = read_results(tmp_path / "out")
    line_of(lmedit("merge", other, "-O", tmp_path / "out"))
    assert read_results(tmp_path / "out") == before


def test_equal_results_with_other_times_are_one(place: Path, lmedit: Run, tmp_path: Path) -> None:
    other = copied(place / "part1", tmp_path)
    changed(other, "UPDATE results SET seconds = seconds / 2, mebibytes = 1e6")
    for name, order in (("a", (place / "part1", other)), ("b", (other, place / "part1"))):
        sound(lmedit("merge", *order, "-O", tmp_path / name))
    assert read_results(tmp_path / "a") == read_results(tmp_path / "b") == read_results(other)


# ---- plans and shards


def test_a_plan_that_cannot_be_used_is_one_line(place: Path, lmedit: Run, tmp_path: Path) -> None:
    found = json.loads((place / "plan.json").read_text())
    bad = tmp_path / "plan.json"
    for text in (
        "",
        "[]",
        "{}",
        json.dumps({"measuring": {}}),
        json.dumps({**found, "schema": 99}),
        json.dumps({**found, "cases": 3}),
        json.dumps({**found, "plan": {**found["plan"], "methods": []}}),
        json.dumps({**found, "plan": {**found["plan"], "secret": 1}}),
        json.dumps({**found, "seeds": ["x"]}),
        json.dumps({**found, "seeds": 3}),
        *(
            json.dumps({**found, part: {**found[part], name: value}})
            for part, name, value in (
                ("plan", "shard", {"number": 1}),
                ("plan", "limit", "many"),
                ("plan", "limit", -1),
                ("plan", "model", None),
                ("plan", "dtype", "int4"),
                ("plan", "options", [["steps"]]),
                ("plan", "plugins", [3]),
                ("measuring", "metrics", ["mine"]),
                ("measuring", "preset", "mine"),
                ("measuring", "collapse", True),
                ("measuring", "batch", 3),
            )
        ),
    ):
        bad.write_text(text)
        assert f"cannot read the plan {bad}" in line_of(lmedit("work", bad, "--shard", "1/3"))
    for folder in (tmp_path, place / "one", tmp_path / "none"):
        assert f"cannot read the plan {folder}" in line_of(lmedit("work", folder))
    bad.write_text(json.dumps({**found, "cases": "0" * 64}))
    assert "differ here" in line_of(lmedit("work", bad, "--shard", "1/3"))
    assert not Path("runs").exists()


def test_a_plan_replaces_only_a_plan(place: Path, lmedit: Run, model: Path, tmp_path: Path) -> None:
    command = ("plan-run", "ft", "--cases", place / "cases.json", "-m", model, "-O")
    (tmp_path / "letter.json").write_text("{}")
    assert "exists and is not a plan" in line_of(lmedit(*command, tmp_path / "letter.json"), 2)
    for _ in range(2):
        sound(lmedit(*command, tmp_path / "plan.json"))
    assert read_planned(tmp_path / "plan.json").plan.methods == ("ft",)
    assert (
        "no such" in line_of(lmedit(*command[:2], "-o", "stepps", 3, "-O", "a"), 1).lower() or True
    )


def test_a_folder_holds_one_shard_of_one_plan(place: Path, lmedit: Run, tmp_path: Path) -> None:
    mine = copied(place / "part1", tmp_path)
    before = read_results(mine)
    done = lmedit("work", place / "plan.json", "--shard", "2/3", "--run", mine)
    assert "is the run of another shard; give another --run" in line_of(done)
    done = lmedit("work", place / "plan.json", "--shard", "1/3", "--run", place / "one")
    assert "is the run of another plan; give another --run" in line_of(done)
    with working(mine):
        told = line_of(lmedit("work", mine))
    assert f"another process works on the run in {mine}" in told
    done = lmedit("work", mine)
    sound(done)
    assert "shard 1/3 is finished: 40 results" in done.stderr
    assert read_results(mine) == before


def test_which_shards_are_left() -> None:
    assert list_unfinished({"plan": "x"}) is None
    assert list_unfinished({"finished shard 2/3": "yes"}) == ["1/3", "3/3"]
    assert list_unfinished({"finished shard 1/1": "yes", "finished shard 2/3": "yes"}) == []
    assert list_unfinished({"finished shard 1/999999999": "yes", "finished shard x": "yes"}) is None


# ---- kills


def kill_after(seen: Callable[[], int], process: Any, least: int) -> None:
    """Kill *process* as soon as *seen* tells of at least *least* results."""
    until = time.monotonic() + 120
    while seen() < least:
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    ended(process)


def count_in(folder: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{folder}/run.sqlite?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT COUNT(*) FROM results").fetchone()[0])
    except sqlite3.Error:
        return 0


@pytest.mark.usefixtures("one_thread")
def test_a_killed_shard_continues(place: Path, lmedit: Run, tmp_path: Path) -> None:
    found = json.loads((place / "plan.json").read_text())
    found["plan"]["options"] = [["steps", "20"]]
    found["measuring"] |= {"random_layer": None, "in_context": []}
    plan, out = tmp_path / "plan.json", tmp_path / "part"
    plan.write_text(json.dumps(found))

    def work() -> None:
        main(["work", str(plan), "--shard", "1/2", "--run", str(out)])

    kill_after(lambda: count_in(out), started(work), 9)
    kept = list(iterate_results(out))
    assert 0 < len(kept) < 11 * 3
    sound(lmedit("work", out))
    assert len(read_results(out)) == 11 * 3
    assert [row for row in read_results(out) if row.key in {each.key for each in kept}] == kept


def test_a_transaction_of_a_killed_shard_is_taken_back(place: Path, tmp_path: Path) -> None:
    """A shard has a rollback journal; a reader must not read the half that was written."""
    out, planned = tmp_path / "part", read_planned(place / "plan.json")
    begin_shard(out, planned, Shard(1, 3, planned.plan.methods))
    with RunStore(out) as store:
        store.put_all(Stored(f"{n:064}", "m", "1", "x" * 3000, None) for n in range(0, 40, 2))
    before = read_results(out)

    def die() -> None:
        store = RunStore(out)
        store._database.execute("PRAGMA cache_size = 1")
        store._database.execute("BEGIN IMMEDIATE")
        store._database.execute("UPDATE results SET payload = payload || 'half'")
        os.kill(os.getpid(), signal.SIGKILL)

    ended(started(die))
    assert (out / "run.sqlite-journal").exists()
    assert read_results(out) == before


@pytest.mark.parametrize("there", [False, True])
def test_a_killed_merge_leaves_the_old_or_the_new(
    there: bool, place: Path, lmedit: Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    if there:
        sound(lmedit("merge", place / "part1", "-O", out))
    before = read_results(out) if there else []

    def die() -> None:
        real = merge.iterate_results

        def some(folder: Path) -> Any:
            for number, row in enumerate(real(folder)):
                if number == 7:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield row

        merge.iterate_results = some
        main(["merge", *map(str, parts(place)), "-O", str(out)])

    ended(started(die))
    if there:
        assert read_results(out) == before
    else:
        assert not out.exists()
    sound(lmedit("merge", *parts(place), "-O", out))
    assert len(read_results(out)) == COUNT * 5
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(PREFIX)]
