"""A run survives being killed, shared, filled up and damaged."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import torch
from children import all_ended, ended, started

from lmedit import Case, Dense, Location, Method, Request, Update, hookimpl
from lmedit.cases import CaseSet
from lmedit.compare.comparison import compare
from lmedit.compare.store import FILE, RunStore, Stored
from lmedit.errors import RunError
from lmedit.pipeline import Editor
from lmedit.registry import register
from lmedit.tiny import tiny_lm
from lmedit.types import Prepared

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.models import Lm


class Steady:
    """A method that moves one matrix a little, and writes down every edit it is asked for."""

    def __init__(self, log: Path | None = None, pause: float = 0.0) -> None:
        self.log, self.pause = log, pause

    @hookimpl
    def edit_describe(self) -> Method:
        return Method("steady", "no paper")

    @hookimpl
    def edit_locate(self, lm: Lm) -> Location:
        return Location((lm.mlp_out(1),))

    @hookimpl
    def edit_compute(self, lm: Lm, request: Request, location: Location) -> Update:
        if self.log:
            with self.log.open("a") as log:
                log.write(f"{request.subject}\n")
        time.sleep(self.pause)
        (site,) = location.sites
        return Update({site: Dense(0.1 * torch.ones_like(lm.weight(site)))})


def editor(lm: Lm, log: Path | None = None, pause: float = 0.0) -> Editor:
    loaded = register(Steady(log, pause), name="steady", distribution="test", version="1")
    return Editor(loaded, lm, loaded.method.options(), Prepared())


def cases(count: int) -> CaseSet:
    made = [
        Case(
            id=str(i),
            request=Request(
                prompt="{} is in the city of",
                subject=f"The tower {i}",
                target_new="the sea",
                target_true="the river",
            ),
            paraphrases=(f"The tower {i} stands by",),
            neighbours=("The boat is in the city of",),
        )
        for i in range(count)
    ]
    return CaseSet("made", "digest", tuple(made))


def rows(results: dict[str, object]) -> list[dict[str, object]]:
    """The rows without what differs from run to run: time."""
    times = {"seconds_per_edit", "seconds_amortised", "peak_mebibytes"}
    return [{k: v for k, v in row.items() if k not in times} for row in results["rows"]]


@pytest.fixture(scope="module")
def lm() -> Lm:
    made = tiny_lm()
    assert made.digest
    return made


def test_a_second_run_does_nothing_again(lm: Lm, tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = compare(lm, cases(4), [editor(lm, log)], tmp_path / "run", 0).finish()
    second = compare(lm, cases(4), [editor(lm, log)], tmp_path / "run", 0).finish()
    assert first == second
    assert len(log.read_text().splitlines()) == 4


def test_more_cases_only_add_work(lm: Lm, tmp_path: Path) -> None:
    log = tmp_path / "log"
    compare(lm, cases(2), [editor(lm, log)], tmp_path / "run", 0)
    compare(lm, cases(5), [editor(lm, log)], tmp_path / "run", 0)
    assert Counter(log.read_text().splitlines()) == {f"The tower {i}": 1 for i in range(5)}


def test_the_same_key_gives_the_same_bytes(lm: Lm, tmp_path: Path) -> None:
    stored = []
    for name in ("one", "two"):
        compare(lm, cases(3), [editor(lm)], tmp_path / name, 0)
        with RunStore(tmp_path / name) as store:
            stored.append([(s.key, s.payload) for s in store.all()])
    assert stored[0] == stored[1]
    assert len(stored[0]) == 6


@pytest.mark.slow
def test_fifty_kills_lose_and_double_nothing(lm: Lm, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    log, folder = tmp_path / "log", tmp_path / "run"
    draw = random.Random(0)

    def work() -> None:
        torch.set_num_threads(1)
        compare(lm, cases(60), [editor(lm, log, 0.01)], folder, 0)
        os._exit(0)

    kills = 0
    while kills < 50:
        process = started(work)
        time.sleep(draw.uniform(0.0, 0.12))
        os.kill(process.pid or 0, signal.SIGKILL)
        ended(process)
        kills += 1
    final = compare(lm, cases(60), [editor(lm, log)], folder, 0).finish()
    undisturbed = compare(lm, cases(60), [editor(lm)], tmp_path / "plain", 0).finish()
    assert rows(final) == rows(undisturbed)
    with RunStore(folder) as store:
        assert Counter(s.method for s in store.all()) == {"base": 60, "steady": 60}


@pytest.mark.slow
def test_two_processes_share_a_run_without_doing_anything_twice(lm: Lm, tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "run"

    def work(number: int) -> None:
        torch.set_num_threads(1)
        results = compare(lm, cases(30), [editor(lm, log, 0.02)], folder, 0).finish()
        (tmp_path / f"{number}.json").write_text(json.dumps(results))
        os._exit(0)

    assert all_ended([started(work, number) for number in range(2)]) == [0, 0]
    done = Counter(log.read_text().splitlines())
    assert done == {f"The tower {i}": 1 for i in range(30)}
    one, two = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert one == two


def test_a_run_is_opened_while_another_process_holds_its_new_database(tmp_path: Path) -> None:
    """SQLite does not wait for others when it switches the journal: it fails at once."""
    other = sqlite3.connect(tmp_path / FILE, check_same_thread=False, isolation_level=None)
    other.executescript("CREATE TABLE other (value); BEGIN IMMEDIATE")
    threading.Timer(0.3, lambda: other.execute("COMMIT")).start()
    began = time.monotonic()
    with RunStore(tmp_path) as store:
        assert time.monotonic() - began > 0.2
        assert store.claim("task")
    other.close()


def test_a_dead_process_claim_is_taken_over_and_a_live_one_is_not(tmp_path: Path) -> None:
    def die() -> None:
        RunStore(tmp_path).claim("task")
        os.kill(os.getpid(), signal.SIGKILL)

    ended(started(die))
    with RunStore(tmp_path) as first, RunStore(tmp_path) as second:
        assert first.claim("task")
        assert not second.claim("task")
        first.put(Stored("task", "m", "1", "{}", None))
        assert not second.claim("task")
        assert second.get("task") == Stored("task", "m", "1", "{}", None)


def test_several_tasks_are_claimed_at_once(tmp_path: Path) -> None:
    with RunStore(tmp_path) as first, RunStore(tmp_path) as second:
        first.put(Stored("done", "m", "1", "{}", None))
        assert second.claim("theirs")
        assert first.claim_all(["done", "mine", "theirs", "free"]) == {"mine", "free"}
        assert second.claim_all(["mine", "free"]) == set()
        assert first.left_of(["done", "mine", "theirs"]) == {"mine", "theirs"}
        many = [f"{number:05}" for number in range(1200)]
        assert first.claim_all(many) == set(many)
        first.add([Stored(key, "m", "1", "{}", None) for key in many])
        assert second.left_of([*many, "more"]) == {"more"}


def test_a_result_waits_for_the_disk_twice_in_a_second_and_a_claim_never(tmp_path: Path) -> None:
    """SQLite's `synchronous`: 2 waits at each commit, 1 leaves it to the next one that waits."""

    def waits(store: RunStore) -> bool:
        return bool(store._database.execute("PRAGMA synchronous").fetchone() == (2,))

    with RunStore(tmp_path / "run") as store:
        store.put(Stored("0", "m", "1", "{}", None))
        assert waits(store)
        store.claim("1")
        assert not waits(store)
        store._wait_at = time.monotonic() + 60
        store.put(Stored("1", "m", "1", "{}", None))
        assert not waits(store)
        store._wait_at = 0.0
        store.put(Stored("2", "m", "1", "{}", None))
        assert waits(store)
    with RunStore(tmp_path / "shard", shard=True) as store:
        store.claim("1")
        assert waits(store)


def test_the_first_result_stays(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        store.put(Stored("task", "m", "1", "first", 1.0))
        store.put(Stored("task", "m", "1", "second", 2.0))
        assert [s.payload for s in store.all()] == ["first"]


def test_a_corrupt_database_is_an_error_that_names_the_way_out(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        for i in range(200):
            store.put(Stored(str(i), "m", "1", "x" * 200, None))
    data = bytearray((tmp_path / FILE).read_bytes())
    data[:64] = b"\0" * 64
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(RunError, match=r"cannot open the run .* give another --run"):
        RunStore(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot open the run"):
        RunStore(tmp_path / "file" / "run")


def test_a_full_disk_keeps_what_was_finished(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        store.put(Stored("kept", "m", "1", "{}", None))
        pages = store._database.execute("PRAGMA page_count").fetchone()[0]
        store._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(RunError, match="full"):
            store.put(Stored("lost", "m", "2", "x" * 100_000, None))
        assert [s.key for s in store.all()] == ["kept"]
    with sqlite3.connect(tmp_path / FILE) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_worker_that_just_began_is_no_other_file(tmp_path: Path) -> None:
    """It has made its lock, and not yet the database. Any other file is not replaced."""
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / f"{32 * 'a'}.lock").touch()
    with RunStore(tmp_path) as store:
        assert store.path.is_file()
    store.path.unlink()
    (tmp_path / "workers" / "list of my workers.txt").touch()
    with pytest.raises(RunError, match="is not a run of lmedit and holds workers"):
        RunStore(tmp_path)
