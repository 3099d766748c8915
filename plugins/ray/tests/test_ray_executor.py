"""Ray keeps the laws of executors, also when its actors are killed; nothing secret is sent."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmedit.compare.driver import Hands
from lmedit.compare.store import FILE, RunStore, read_results
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

KILLS = int(os.environ.get("LMEDIT_RAY_KILLS", "2"))
"""How many actors are killed. The unabridged test has ten: LMEDIT_RAY_KILLS=10."""
DRIVERS = max(1, KILLS // 2)
"""How many drivers are killed."""


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


@pytest.mark.parametrize(
    ("options", "told"), [((), ""), ((("env", "LMEDIT_SECRET"),), "LMEDIT_SECRET")]
)
def test_a_variable_is_sent_only_if_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, told: str
) -> None:
    monkeypatch.setenv("LMEDIT_SECRET", "token")
    found: list[str] = []
    with Engine("ray", (1, 1), options).start(Job(Variables, Echo()), tmp_path / "logs") as pool:
        pool.run(
            [Group("m", ("a",), ("a",))], lambda r: found.extend(f.payload for f in r.finished)
        )
    assert found == [told]
    assert "a word for the log" in (tmp_path / "logs" / "ray-1.log").read_text()


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


DRIVER = """
import os, sys
from functools import partial
from pathlib import Path
from lmedit.compare.driver import Hands
from lmedit.executors import Job
from lmedit.executors.engine import Engine
from lmedit.testing.executors import TrialRun

given = (Path(sys.argv[1]), ("push",), 24, os.getpid(), 0.1)
trial = TrialRun(*given)
worker = trial.worker()
with Engine("ray", (2, 2)).start(Job(partial(TrialRun.load, *given), worker)) as pool:
    trial.compare("run", Hands(worker, pool))
"""


def processes_of_ray() -> set[int]:
    """The numbers of all processes of Ray on this machine."""
    found = set()
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            line = place.read_bytes()
            if line.split(b"\0")[0].endswith((b"raylet", b"gcs_server")):
                found.add(int(place.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_driver_that_is_killed_leaves_no_process_and_its_run_continues(tmp_path: Path) -> None:
    given = (begin_trial(tmp_path), ("push",), 24, os.getpid(), 0.0)
    plain = TrialRun(*given).compare("plain")
    before = processes_of_ray()
    for number in range(1, DRIVERS + 1):
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stderr=-3)
        until = time.monotonic() + 120
        while driver.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
            if (tmp_path / "run" / FILE).is_file() and len(read_results(tmp_path / "run")) > number:
                break
        driver.kill()
        driver.wait(60)
        until = time.monotonic() + 60
        while any(map(runs, processes_of_ray() - before)) and time.monotonic() < until:
            time.sleep(0.2)
        assert not any(map(runs, processes_of_ray() - before))
    kept = read_results(tmp_path / "run")
    assert len(kept) > 0
    found = TrialRun(*given).compare("run")
    assert lasting_rows(found) == lasting_rows(plain)
    whole = read_results(tmp_path / "run")
    assert len(whole) == len({each.key for each in whole}) == 48
    assert {each.key for each in kept} <= {each.key for each in whole}


def test_wrong_options_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="cpus 'many' is not a number"):
        Wishes.read(Crew(options={"cpus": "many"}))
    monkeypatch.delenv("LMEDIT_SECRET", raising=False)
    with pytest.raises(OptionError, match="env names LMEDIT_SECRET, which is not set"):
        Wishes.read(Crew(options={"env": "LMEDIT_SECRET"}))
    wishes = Wishes.read(Crew((2, 16), {"cpus": "0.5", "gpus": "0.25"}))
    assert (wishes.cpus, wishes.gpus, wishes.runtime_env, wishes.most) == (0.5, 0.25, {}, 16)
