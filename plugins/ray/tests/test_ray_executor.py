"""Ray keeps the laws of executors, also when its actors are killed; nothing secret is sent."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from lmedit.compare.driver import Hands
from lmedit.compare.store import RunStore
from lmedit.errors import OptionError
from lmedit.executors import Crew, Finished, Group, Job, Reply
from lmedit.executors.engine import Engine
from lmedit.testing.executors import (
    Echo,
    ExecutorContract,
    TrialRun,
    begin_trial,
    lasting_rows,
    runs,
)
from lmedit_ray.cluster import Wishes, join_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

KILLS = int(os.environ.get("LMEDIT_RAY_KILLS", "2"))
"""How many actors are killed. The unabridged test has ten: LMEDIT_RAY_KILLS=10."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One cluster of two CPUs for all tests."""
    with join_cluster(Wishes.read(Crew((2, 2)))):
        yield


class TestRay(ExecutorContract):
    name = "ray"


class Variables(Echo):
    """Replies with the variables of its process."""

    def do(self, group: Group) -> Reply:
        told = ",".join(sorted(name for name in os.environ if "LMEDIT_SECRET" in name))
        os.write(1, b"a word for the log")
        return Reply(group, (Finished(group.keys[0], "m", "1", told, None),))


def test_a_variable_is_sent_only_if_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pools, each of one actor, which load at the same time."""
    monkeypatch.setenv("LMEDIT_SECRET", "token")
    monkeypatch.setenv("LMEDIT_SECRET_TOO", "token")
    wanted = {"": (), "LMEDIT_SECRET": (("env", "LMEDIT_SECRET"),)}
    logs = {told: tmp_path / f"logs {told}" for told in wanted}
    with ExitStack() as both:
        pools = {
            told: both.enter_context(
                Engine("ray", (1, 1), options).start(Job(Variables, Echo()), logs[told])
            )
            for told, options in wanted.items()
        }
        for told, pool in pools.items():
            found: list[str] = []
            take = partial(_take_payloads, found)
            pool.run([Group("m", ("a",), ("a",))], take)
            assert found == [told]
            assert "a word for the log" in (logs[told] / "ray-1.log").read_text()


def _take_payloads(found: list[str], reply: Reply) -> None:
    found.extend(each.payload for each in reply.finished)


class Killing:
    """A pool of actors. After random replies it kills the process of an actor."""

    def __init__(self, pool: Any) -> None:
        self.pool, self.killed, self.draw = pool, 0, random.Random(0)

    def run(self, groups: Iterable[Group], take: Callable[[Reply], object]) -> None:
        def take_and_kill(reply: Reply) -> None:
            take(reply)
            if self.killed < KILLS and reply.group is not None and self.draw.random() < 0.5:
                time.sleep(self.draw.uniform(0.0, 0.2))
                self.kill_one()

        self.pool.run(groups, take_and_kill)

    def kill_one(self) -> None:
        names = {seat.actor._actor_id.hex() for seat in self.pool.seats if seat.loading is None}
        found = [each["Pid"] for each in list_actors() if each["ActorID"] in names]
        number = int(self.draw.choice(found))
        if runs(number):
            os.kill(number, signal.SIGKILL)
            self.killed += 1


def list_actors() -> list[dict[str, Any]]:
    """What Ray knows of its actors."""
    from ray._private.state import actors

    return list(actors().values())


def test_actors_that_are_killed_lose_and_double_nothing(tmp_path: Path) -> None:
    given = (begin_trial(tmp_path), ("push", "more"), 40, os.getpid(), 0.01 * KILLS)
    trial = TrialRun(*given)
    plain = TrialRun(*given[:4]).compare("plain")
    worker = trial.worker()
    with Engine("ray", (2, 2)).start(Job(partial(TrialRun.load, *given), worker)) as pool:
        killing = Killing(pool)
        found = trial.compare("run", Hands(worker, killing))
    assert killing.killed == KILLS
    assert lasting_rows(found) == lasting_rows(plain)
    with RunStore(tmp_path / "run") as one, RunStore(tmp_path / "plain") as other:
        assert [(s.key, s.payload) for s in one.all()] == [(s.key, s.payload) for s in other.all()]


def test_wrong_options_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="cpus 'many' is not a number"):
        Wishes.read(Crew(options={"cpus": "many"}))
    monkeypatch.delenv("LMEDIT_SECRET", raising=False)
    with pytest.raises(OptionError, match="env names LMEDIT_SECRET, which is not set"):
        Wishes.read(Crew(options={"env": "LMEDIT_SECRET"}))
    wishes = Wishes.read(Crew((2, 16), {"cpus": "0.5", "gpus": "0.25"}))
    assert (wishes.cpus, wishes.gpus, wishes.runtime_env, wishes.most) == (0.5, 0.25, {}, 16)
