"""Ray keeps the laws of executors, also when its actors are killed; nothing secret is sent."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from recorded import Recorded, Variables, record

import lmedit_ray.actors
from lmedit.compare.driver import Hands
from lmedit.compare.store import RunStore
from lmedit.errors import OptionError
from lmedit.executors import Crew, Group, Job, Reply
from lmedit.executors.engine import Engine
from lmedit.testing.executors import (
    Echo,
    ExecutorContract,
    TrialRun,
    begin_trial,
    lasting_rows,
    runs,
)
from lmedit_ray.cluster import Wishes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

WHOLE = "LMEDIT_RAY_KILLS" in os.environ
"""Whether the unabridged tests run: actors then load the model, and do not replay results."""
KILLS = int(os.environ.get("LMEDIT_RAY_KILLS", "10"))
"""How many actors are killed."""

pytestmark = pytest.mark.usefixtures("cluster")


class TestRay(ExecutorContract):
    name = "ray"


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
    """A pool of actors. At random moments it kills the process of an actor."""

    def __init__(self, pool: Any, groups: int, pause: float) -> None:
        """There are so many *groups*. One task takes about *pause* seconds."""
        self.pool, self.pause, self.draw = pool, pause, random.Random(0)
        self.moments = set(self.draw.sample(range(2 + 3 * groups // 4), KILLS))
        """After which replies an actor is killed; later if all actors are dead then."""
        self.replies = self.due = self.killed = 0

    def run(self, groups: Iterable[Group], take: Callable[[Reply], object]) -> None:
        def take_and_kill(reply: Reply) -> None:
            take(reply)
            self.due += self.replies in self.moments and reply.group is not None
            self.replies += reply.group is not None
            if self.due:
                time.sleep(self.draw.uniform(0.0, 8 * self.pause))
                self.kill_one()

        self.pool.run(groups, take_and_kill)

    def kill_one(self) -> None:
        names = {seat.actor._actor_id.hex() for seat in self.pool.seats if seat.loading is None}
        found = [int(each["Pid"]) for each in list_actors() if each["ActorID"] in names]
        alive = [each for each in found if runs(each)]
        if alive:
            os.kill(self.draw.choice(alive), signal.SIGKILL)
            self.killed += 1
            self.due -= 1


def list_actors() -> list[dict[str, Any]]:
    """What Ray knows of its actors."""
    from ray._private.state import actors

    return list(actors().values())


def test_actors_that_are_killed_lose_and_double_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An actor that starts again gets the preparations again, and Ray prints nothing."""
    kinds = ("push", *(f"push-{n}" for n in range(6 if WHOLE else 1)))
    given = (begin_trial(tmp_path), kinds, 40, os.getpid(), 0.01)
    trial = TrialRun(*given)
    plain = TrialRun(*given[:4]).compare("plain")
    worker = trial.worker()
    light = partial(Recorded, record(tmp_path / "plain", tmp_path / "plain.json"), 0.01)
    load = partial(TrialRun.load, *given) if WHOLE else light
    prepared = tmp_path / "prepared"
    prepared.write_bytes(b"tensors")
    capfd.readouterr()
    notes = list[str]()
    job = Job(load, worker, {"prepared/for-actors": prepared})
    with Engine("ray", (2, 2)).start(job, tmp_path / "logs", notes.append) as pool:
        killing = Killing(pool, 5 * (1 + len(kinds)), 0.01)
        found = trial.compare("run", Hands(worker, killing))
    assert killing.killed == KILLS
    assert len(notes) >= KILLS // 2
    assert set(notes) <= {
        f"worker {n} stopped; its work is repeated: its actor ended" for n in (1, 2)
    }
    assert "ray" not in "".join(capfd.readouterr()).lower()
    assert lasting_rows(found) == lasting_rows(plain)
    with RunStore(tmp_path / "run") as one, RunStore(tmp_path / "plain") as other:
        assert [(s.key, s.payload) for s in one.all()] == [(s.key, s.payload) for s in other.all()]


class Growing:
    """Groups without end, while the cluster gets a node and loses it again."""

    def __init__(self, cluster: Any) -> None:
        """*cluster* has two CPUs."""
        self.cluster, self.node = cluster, None
        self.notes: list[str] = []
        self.seen: list[int] = []
        self.before: set[int] = set()
        """The workers when there were three."""
        self.left = 20
        """How many replies are awaited after the user was told of the loss."""

    def groups(self) -> Iterator[Group]:
        number = 0
        while self.left:
            number += 1
            assert number < 10_000, "no worker comes, or none goes"
            yield Group("m", (str(number),), (str(number),))

    def take(self, reply: Reply) -> None:
        self.seen += [json.loads(each.payload)["process"] for each in reply.finished]
        if self.node is None and len(set(self.seen)) == 2:
            self.node = self.cluster.add_node(num_cpus=1)
        elif not self.before and len(set(self.seen)) == 3:
            self.before = set(self.seen)
            self.cluster.remove_node(self.node, allow_graceful=False)
        elif self.before and len(self.notes) > 1 and self.left:
            self.left -= 1


def test_workers_come_with_a_node_and_go_with_it(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--workers 3:4` on a cluster that has room for two, then for three, then for two."""
    monkeypatch.setattr(lmedit_ray.actors, "PATIENCE_SECONDS", 0.0)
    growing = Growing(cluster)
    with Engine("ray", (3, 4)).start(Job(Echo, Echo()), tmp_path, growing.notes.append) as pool:
        pool.run(growing.groups(), growing.take)
    assert len(growing.before) == 3
    assert len(set(growing.seen[-10:])) == 2
    assert set(growing.seen[-10:]) < growing.before
    few, stopped = growing.notes
    assert few == (
        "only 2 of at least 3 workers can start: each needs 1 CPU, and the cluster has 2; give "
        "smaller --executor-option values, or add nodes"
    )
    assert re.fullmatch(r"worker \d stopped; its work is repeated: its actor ended", stopped)


def test_wrong_options_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="cpus 'many' is not a number"):
        Wishes.read(Crew(options={"cpus": "many"}))
    monkeypatch.delenv("LMEDIT_SECRET", raising=False)
    with pytest.raises(OptionError, match="env names LMEDIT_SECRET, which is not set"):
        Wishes.read(Crew(options={"env": "LMEDIT_SECRET"}))
    wishes = Wishes.read(Crew((2, 16), {"cpus": "0.5", "gpus": "0.25"}))
    assert (wishes.cpus, wishes.gpus, wishes.runtime_env, wishes.most) == (0.5, 0.25, {}, 16)
