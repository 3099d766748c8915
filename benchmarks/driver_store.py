"""Whether the driver's store keeps up with many workers: its real code, invented durations.

    python benchmarks/driver_store.py --tasks 1000000 --workers 10000

The driver (`lmedit.compare.driver`) and the run store are those of every comparison. Only the
workers are invented: each needs a random time for a group, in a clock of the simulation, and hands
back a payload of a usual size. So the simulation is as fast as the driver is, and its seconds are
those that the driver needs for a million tasks. Writes `benchmarks/results/driver_store.json`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sqlite3
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from paired import report

from lmedit import Request
from lmedit.compare.candidates import Candidate
from lmedit.compare.driver import Driver, Hands
from lmedit.compare.one_edit import Task
from lmedit.compare.store import FILE, RunStore
from lmedit.executors import Finished, Reply
from lmedit.storage.cache import key_of
from lmedit.types import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lmedit.compare.worker import Worker
    from lmedit.executors import Group

SECONDS = 8.0
"""The mean duration of a group, in the clock of the simulation."""
METHODS = 8


@dataclass
class Invented:
    """A pool of invented workers. A group is taken when a worker is free, as the contract says."""

    workers: int
    payload: str
    draw: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311
    clock: float = 0.0
    most: int = 0
    """The largest number of groups in work at once."""

    def run(self, groups: Iterable[Group], take: Callable[[Reply], object]) -> None:
        """Give each free worker a group; hand the replies back in the order of their ends."""
        busy: list[tuple[float, int, Group]] = []
        waiting, number = iter(groups), 0
        while True:
            while len(busy) < self.workers and (group := next(waiting, None)) is not None:
                number += 1
                ends = self.clock + self.draw.expovariate(1 / SECONDS)
                heapq.heappush(busy, (ends, number, group))
            if not busy:
                take(Reply(None))
                return
            self.most = max(self.most, len(busy))
            self.clock, _, group = heapq.heappop(busy)
            take(self._reply(group))

    def _reply(self, group: Group) -> Reply:
        found = [Finished(key, group.method, "1", self.payload, 1.0) for key in group.wanted]
        return Reply(group, tuple(found))


def payload_of(size: int) -> str:
    """An invented payload of about *size* bytes, with the parts of a real one."""
    scores = {f"score {number}": number / 7 for number in range(12)}
    found: dict[str, Any] = {"bytes": 1, "norms": {"h": 0.1}, "scores": scores, "generated": {}}
    found["generated"]["rewrite"] = "x" * max(0, size - len(json.dumps(found)))
    return json.dumps(found, sort_keys=True)


def tasks_of(count: int) -> list[Task]:
    """So many tasks of some methods; one case serves all, because the driver reads only keys."""
    request = Request(prompt="{} is in", subject="The tower", target_new="Rome")
    case, found = Case(id="1", request=request), []
    for number in range(METHODS):
        candidate = Candidate(f"method-{number}")
        share = count // METHODS + (number < count % METHODS)
        found += [Task(key_of(n=n, method=number), case, candidate) for n in range(share)]
    return found


def simulate(count: int, workers: int, size: int, folder: Path) -> dict[str, Any]:
    """Finish *count* tasks with so many *workers*; what the driver needed."""
    tasks, pool = tasks_of(count), Invented(workers, payload_of(size))
    hands = Hands(cast("Worker", SimpleNamespace(tasks={})), pool)
    with RunStore(folder) as store:
        started, used = time.perf_counter(), time.process_time()
        Driver(store, hands).finish(tasks)
        seconds, used = time.perf_counter() - started, time.process_time() - used
    with closing(sqlite3.connect(folder / FILE)) as database:
        (rows,) = database.execute("SELECT COUNT(*) FROM results").fetchone()
    stored = sum(file.stat().st_size for file in folder.glob(f"{FILE}*"))
    return {
        "tasks": count,
        "workers": workers,
        "groups_at_once": pool.most,
        "rows": rows,
        "seconds": seconds,
        "processor_seconds": used,
        "rows_per_second": rows / seconds,
        "bytes_per_row": stored / rows,
        "payload_bytes": len(pool.payload),
        "invented_seconds": pool.clock,
        "invented_rows_per_second": rows / pool.clock,
    }


def main() -> None:
    """Simulate, and print and store the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--payload", type=int, default=900, help="bytes of a result")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [simulate(given.tasks, given.workers, given.payload, Path(folder) / "run")]
    report("driver_store", rows)


if __name__ == "__main__":
    main()
