"""`ExecutorContract`: the laws of `lmedit.executors` as pytest tests, for authors of an executor.

In a plugin's tests::

    class TestContract(ExecutorContract):
        name = "queue"            # the name of its entry point

The tests run a comparison of tiny methods on a tiny model. One method ends the process of a worker,
and another one changes the model.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit.cases import CaseSet
from lmedit.compare.candidates import BASE, Candidate, of_editor
from lmedit.compare.case_scores import Scoring
from lmedit.compare.comparison import compare, tasks_of_run
from lmedit.compare.driver import Hands, one_pair
from lmedit.compare.run_folder import LOGS
from lmedit.compare.store import RunStore
from lmedit.compare.worker import Worker
from lmedit.errors import RunError
from lmedit.executors import Finished, Group, Job, Reply, error_from_text
from lmedit.executors.engine import Engine
from lmedit.hookspecs import hookimpl
from lmedit.models import load_lm
from lmedit.options import Method
from lmedit.pipeline import Editor
from lmedit.registry import register
from lmedit.testing import Records
from lmedit.tiny import tiny_lm
from lmedit.types import Dense, Location, Prepared, Update

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmedit.compare.comparison import Compared
    from lmedit.executors import Bench
    from lmedit.models import Lm
    from lmedit.types import Request

LOADED, ENDED = "loaded", "ended"
"""Files of a trial: another process has loaded; one of them has ended."""
VARIES = {"seconds_per_edit", "seconds_amortised", "peak_mebibytes", "predicted_mebibytes"}
"""Columns that differ from run to run."""


class Pushing:
    """A method that moves one matrix a little; *kind* says what else it does."""

    def __init__(self, kind: str, folder: Path, driver: int, pause: float = 0.0) -> None:
        """*driver* is the number of the driver's process; *pause* is for each edit, in seconds."""
        self.kind, self.folder, self.driver, self.pause = kind, folder, driver, pause

    @hookimpl
    def edit_describe(self) -> Method:
        """The method is named by what it does."""
        return Method(self.kind, "no paper")

    @hookimpl
    def edit_locate(self, lm: Lm) -> Location:
        """One matrix."""
        return Location((lm.mlp_out(1),))

    @hookimpl
    def edit_compute(self, lm: Lm, request: Request, location: Location) -> Update:
        """Add a number that depends on the fact."""
        time.sleep(self.pause)
        (site,) = location.sites
        if self.kind == "ends":
            self._end_once()
        if self.kind == "breaks":
            lm.weight(site).detach().numpy()[0, 0] += 1.0
        size = 0.01 * (1 + len(request.subject or "") + request.target_new.count("r"))
        return Update({site: Dense(size * torch.ones_like(lm.weight(site)))})

    def _end_once(self) -> None:
        """End the process, if it is the first one beside the driver. The driver is slower."""
        marker = self.folder / ENDED
        if os.getpid() != self.driver and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if (self.folder / LOADED).exists() and not marker.exists():
            time.sleep(0.2)


@dataclass
class Patient:
    """The driver's bench, which begins only when another process has loaded."""

    bench: Bench
    marker: Path
    begun: bool = False

    def do(self, group: Group) -> Reply:
        """What the bench replies, later."""
        until = time.monotonic() + 300
        while not self.marker.exists():
            assert time.monotonic() < until, "no other process loads"
            time.sleep(0.05)
        if not self.begun:
            time.sleep(1.0)  # its message that it has loaded arrives
            self.begun = True
        return self.bench.do(group)

    def leave(self) -> Reply:
        """The last word of the bench."""
        return self.bench.leave()


class TrialRun:
    """A comparison of `Pushing` methods in a folder, which every process can load."""

    def __init__(
        self, folder: Path, kinds: Sequence[str], count: int, driver: int, pause: float = 0.0
    ) -> None:
        """*count* cases; the model is read from the folder. See `Pushing` for the others."""
        self.folder = folder
        self.lm = load_lm(str(folder / "model"))
        self.cases = CaseSet("trial", "trial", tuple(islice(Records(), count)))
        made = []
        for kind in kinds:
            plugin = Pushing(kind, folder, driver, pause)
            made.append(register(plugin, name=kind, distribution="trial", version="0"))
        self.editors = [Editor(m, self.lm, m.method.options(), Prepared()) for m in made]

    @classmethod
    def load(cls, *given: Any) -> Worker:
        """What a worker loads; `LOADED` says so."""
        worker = cls(*given).worker(often=True)
        (given[0] / LOADED).touch()
        return worker

    def worker(self, *, often: bool = False) -> Worker:
        """What computes its groups in this process."""
        every = {each.name: each for each in [Candidate(BASE), *map(of_editor, self.editors)]}

        def find(name: str) -> Any:
            return tasks_of_run(self.lm, self.cases, [every[name]], Scoring())

        return Worker(self.lm, Scoring(), find, often=often)

    def compare(self, name: str, hands: Hands | None = None) -> Compared:
        """Compare in the run folder *name*."""
        hands = hands or one_pair(self.worker())
        return compare(self.lm, self.cases, self.editors, self.folder / name, 0, hands=hands)


def begin_trial(folder: Path) -> Path:
    """Write the tiny model of a `TrialRun` into *folder*."""
    lm = tiny_lm()
    lm.model.float().save_pretrained(folder / "model")
    lm.tokenizer.save_pretrained(folder / "model")
    return folder


def lasting_rows(found: Compared) -> list[dict[str, Any]]:
    """The rows of the table without what differs from run to run."""
    rows = found.finish()["rows"]
    return [{key: value for key, value in row.items() if key not in VARIES} for row in rows]


class Echo:
    """Replies to each group with the number of its process."""

    def __init__(self, marker: Path | None = None) -> None:
        """Make *marker*, the sign that this process has loaded."""
        if marker is not None:
            marker.touch()

    def do(self, group: Group) -> Reply:
        """The number, once for each wanted task."""
        time.sleep(0.02)
        if group.method == "fails":
            raise RunError("the echo failed")
        told = json.dumps({"process": os.getpid()})
        found = (Finished(key, group.method, "1", told, None) for key in group.wanted)
        return Reply(group, tuple(found))

    def leave(self) -> Reply:
        """Nothing changed."""
        return Reply(None)


def runs(process: int) -> bool:
    """Whether *process* exists, and is no remainder of an ended one."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


class ExecutorContract:
    """Subclass it and set `name`; add your own tests below."""

    name: str
    options: Mapping[str, str] = {}
    workers: tuple[int, int] = (2, 2)
    others: bool = True
    """Whether it has other processes than the driver."""

    @property
    def engine(self) -> Engine:
        """The executor under test."""
        return Engine(self.name, self.workers, tuple(self.options.items()))

    def test_laws_1_to_4_the_table_is_the_same_whatever_workers_suffer(
        self, tmp_path: Path
    ) -> None:
        """1 to 4: a worker ends, a method changes the model, and the table is that of local."""
        given = (begin_trial(tmp_path), ("ends", "push", "breaks"), 10, os.getpid())
        trial = TrialRun(*given)
        digest = trial.lm.digest
        plain = trial.compare("plain")
        with RunStore(tmp_path / "run"):
            pass
        worker = trial.worker()
        here = Patient(worker, tmp_path / LOADED) if self.others else worker
        job = Job(partial(TrialRun.load, *given), here)
        with self.engine.start(job, tmp_path / "run" / LOGS) as pool:
            found = trial.compare("run", Hands(worker, pool))
        assert lasting_rows(found) == lasting_rows(plain)
        assert [(row["method"], row["n_failed"]) for row in found.results["rows"]] == [
            ("base", 0),
            ("ends", 0),
            ("push", 0),
            ("breaks", 10),
        ]
        assert trial.lm.weights_digest() == digest
        assert (tmp_path / ENDED).exists() == self.others
        with RunStore(tmp_path / "run") as one, RunStore(tmp_path / "plain") as other:
            assert [(s.key, s.payload) for s in one.all()] == [
                (s.key, s.payload) for s in other.all()
            ]

    def test_laws_3_and_5_to_7_groups_replies_errors_and_ends(self, tmp_path: Path) -> None:
        """3, 5 to 7: few groups are out, all are replied to, errors end, no worker is left."""
        out = [0]
        processes: set[int] = set()
        finished: list[str] = []

        def groups(count: int, method: str) -> Iterator[Group]:
            for number in range(count):
                out[0] += 1
                assert out[0] <= 4 * self.workers[1] + 1
                key = f"{method} {number}"
                yield Group(method, (key,), (key,))

        def take(reply: Reply) -> None:
            out[0] -= reply.group is not None
            finished.extend(each.key for each in reply.finished)
            processes.update(json.loads(each.payload)["process"] for each in reply.finished)
            if reply.error:
                raise error_from_text(reply.error)

        marker = tmp_path / LOADED
        here = Patient(Echo(), marker) if self.others else Echo()
        with self.engine.start(Job(partial(Echo, marker), here), tmp_path / "logs") as pool:
            pool.run(groups(30, "echo"), take)
            assert {f"echo {number}" for number in range(30)} == set(finished)
            assert out == [0]
            with pytest.raises(RunError, match="the echo failed"):
                pool.run(groups(6, "fails"), take)
        until = time.monotonic() + 30
        while any(map(runs, processes - {os.getpid()})) and time.monotonic() < until:
            time.sleep(0.1)
        assert not any(map(runs, processes - {os.getpid()}))
