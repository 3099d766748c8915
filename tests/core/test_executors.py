"""The executors of the core keep the laws; the driver stores each result once."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from lmedit.compare.driver import Hands
from lmedit.compare.store import RunStore, Stored
from lmedit.errors import BrokenPluginError, RunError, UnknownNameError, UsageError
from lmedit.executors import Finished, Group, Reply
from lmedit.executors.engine import Engine
from lmedit.executors.finding import describe_executors, find_executor
from lmedit.executors.gathering import finish_each
from lmedit.executors.sharing import OWN_VARIABLES, own_variables, place_files
from lmedit.executors.waiting import TRIES, Waiting
from lmedit.guards.hooks import EDIT_VARIABLE, PREPARE_VARIABLE
from lmedit.registry import BLOCK_VARIABLE
from lmedit.testing.executors import ExecutorContract, TrialRun, begin_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path


class TestLocal(ExecutorContract):
    name, workers, others = "local", (1, 1), False


class TestProcesses(ExecutorContract):
    name = "processes"


def group(*keys: str) -> Group:
    return Group("m", keys, keys)


def test_a_group_whose_workers_end_again_and_again_is_lost() -> None:
    waiting = Waiting([group("a")])
    for _ in range(TRIES - 1):
        one = waiting.next_group()
        assert one is not None
        assert waiting.put_back(one, "killed") is None
        assert waiting.next_group() == one
        assert waiting.put_back(one, "not begun", begun=False) is None
    assert waiting.put_back(group("a"), "killed") == Reply(group("a"), lost="killed")


def test_a_second_result_must_be_the_same(tmp_path: Path) -> None:
    one = Stored("task", "rome", "7", json.dumps({"scores": {"EM": 0.25}}), 1.0)
    with RunStore(tmp_path) as store:
        store.add([one])
        store.add([replace(one, seconds=2.0)])
        other = replace(one, payload=json.dumps({"scores": {"EM": 0.75}}))
        with pytest.raises(RunError, match=r"rome, case 7.*0\.25.*0\.75"):
            store.add([replace(one, key="new"), other])
        assert store.all() == [one]


class Losing:
    """A pool whose workers end during the cases 2 and 3 of the method *push*."""

    def __init__(self, worker: object) -> None:
        self.worker, self.asked = worker, []

    def run(self, groups: Iterable[Group], take: Callable[[Reply], object]) -> None:
        for each in groups:
            self.asked.append(each.wanted)
            bad = {key for key in each.keys if self.worker.tasks[key].case.id in {"2", "3"}}
            if each.method == "push" and bad & set(each.wanted):
                take(Reply(each, lost="its process was ended by SIGSEGV"))
            else:
                take(self.worker.do(each))
        take(self.worker.leave())


def test_tasks_of_a_lost_group_are_tried_alone_and_only_the_guilty_fail(tmp_path: Path) -> None:
    trial = TrialRun(begin_trial(tmp_path), ("push",), 8, 0)
    worker = trial.worker()
    found = trial.compare("run", Hands(worker, Losing(worker)))
    base, push = found.results["rows"]
    assert (base["n_failed"], push["n_failed"]) == (0, 2)
    assert push["failures"] == {"method 'push': its process was ended by SIGSEGV": 2}


class Twice(Engine):
    """Every group is done twice: the second reply is *other*."""

    other: ClassVar[Reply]

    @contextmanager
    def start(self, job: Any, *_: Any, **__: Any) -> Iterator[Any]:
        yield self

    def run(self, groups: Iterable[Group], take: Callable[[Reply], object]) -> None:
        for each in groups:
            take(Reply(each, (Finished(each.keys[0], each.method, "1", "1", None),)))
            take(replace(self.other, group=each))


def finished(payload: str) -> Reply:
    return Reply(None, (Finished("a", "m", "layer 1", payload, None),))


def test_the_driver_keeps_one_result_of_a_task_that_has_no_run_folder() -> None:
    job: Any = None
    Twice.other = finished("1")
    assert finish_each(Twice(), job, {"a": "m"}) == {"a": "1"}
    assert finish_each(Twice(), job, {}) == {}
    told: list[str] = []
    finish_each(Twice(workers=(3, 3)), job, {"a": "m"}, unit="layer", tell=told.append)
    assert told == ["1 layer(s) to do, so no more workers than that"]
    Twice.other = finished("2")
    with pytest.raises(RunError, match="m: two workers have different results for layer 1"):
        finish_each(Twice(), job, {"a": "m"})
    Twice.other = Reply(None, lost="it was killed")
    with pytest.raises(RunError, match="m: it was killed; run the command again"):
        finish_each(Twice(), job, {"a": "m"})
    Twice.other = Reply(None, error=("UsageError", "wrong"))
    with pytest.raises(UsageError, match="wrong"):
        finish_each(Twice(), job, {"a": "m"})


def test_a_crew_is_no_larger_than_its_tasks() -> None:
    assert Engine("ray", (2, 16)).limit(5).workers == (2, 5)
    assert Engine("ray", (2, 16)).limit(1).workers == (1, 1)
    assert Engine("ray", (2, 16)).limit(0).workers == (1, 1)


def test_unknown_executors_and_options_are_one_line() -> None:
    with pytest.raises(UnknownNameError, match="no executor 'lokal' among local, processes"):
        Engine("lokal").check()
    with pytest.raises(UnknownNameError, match="executor 'local': no option 'cpus'"):
        Engine("local", options=(("cpus", "2"),)).check()
    with pytest.raises(UsageError, match="give --executor processes"):
        Engine("local", (2, 2)).check()
    with pytest.raises(UsageError, match="fixed number of workers; give --workers 4"):
        Engine("processes", (2, 4)).check()


def test_an_executor_that_is_not_installed_names_its_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lmedit.executors.finding.entry_points", lambda _: [])
    with pytest.raises(BrokenPluginError, match="run: pip install lmedit-ray"):
        find_executor("ray")
    assert describe_executors()["ray"] == "not installed; run: pip install lmedit-ray"


def test_only_lmedits_own_variables_go_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(OWN_VARIABLES) == {EDIT_VARIABLE, PREPARE_VARIABLE, BLOCK_VARIABLE}
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv(EDIT_VARIABLE, "3")
    assert own_variables()[EDIT_VARIABLE] == "3"
    assert "HF_TOKEN" not in own_variables()


def test_a_preparation_is_placed_once_and_only_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    read: list[str] = []

    def bytes_of(name: str) -> bytes:
        read.append(name)
        return b"tensors"

    assert place_files(["prepared/a"], bytes_of) == ["prepared/a"]
    assert place_files(["prepared/a"], bytes_of) == []
    assert read == ["prepared/a"]
    with pytest.raises(RunError, match="outside the cache"):
        place_files(["../b"], bytes_of)
