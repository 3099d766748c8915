"""What an executor costs: its start, and each case, apart from what the method costs.

    python benchmarks/executors.py                      # some minutes on two busy cores

Every executor does the same cases of the embedded model with FT of a few steps. Each worker notes
the time that it loads and computes; the rest is the executor's. After each round this process alone
does the same cases with one thread, so a ratio compares times of the same minute. The results must
agree. Threads that wait do not spin, because other programs may need the cores. Writes
`benchmarks/results/executors.json`, and the tables of `docs/explanation/scale.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch
from paired import RESULTS, machine
from scale import number, put_into_page, table

from lmedit.actions.compare import Measuring, set_up_comparison
from lmedit.actions.executing import load_worker, worker_of
from lmedit.executors import Group, Job
from lmedit.executors.engine import Engine
from lmedit.executors.local import Here
from lmedit.plan import Plan
from lmedit.storage.json_files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lmedit.actions.compare import Comparing
    from lmedit.executors import Bench, Pool, Reply

CHOICES = (("local", 1, 2), ("processes", 2, 1), ("ray", 1, 1), ("ray", 1, 2), ("ray", 2, 1))
"""Executors, their numbers of workers, and threads of each. One worker of `processes` would be the
driver alone."""
AT_ONCE = 4
"""The cases of a group: two workers get equally many groups."""
NEAR = {"rel_tol": 1e-3, "abs_tol": 1e-5}
"""How near the numbers of two results are, if they were computed with other threads."""
PATIENCE_SECONDS = 600.0
COLUMNS = {
    "start_seconds": "start, s",
    "load_seconds": "of it the method's, s",
    "start_of_executor": "of it the executor's, s",
    "seconds_per_case": "a case, s",
    "method_seconds_per_case": "of it the method's, s",
    "executor_seconds_per_case": "of it the executor's, s",
    "processor_seconds_per_case": "a case, s of the processor",
    "times_local": "times one process with one thread",
}
"""What the page shows of a row."""


@dataclass
class Timed:
    """A bench that notes in a folder how long each call takes, and for how many cases."""

    bench: Bench
    folder: Path
    workers: int = 0
    """Before the first group: how many workers must have loaded; the driver waits for them."""

    def do(self, group: Group) -> Reply:
        """What the bench replies."""
        wait_for(self.folder, self.workers)
        started, used = time.perf_counter(), time.process_time()
        reply = self.bench.do(group)
        note(self.folder, "do", started, used, group.keys[0])
        return reply

    def leave(self) -> Reply:
        """The last word of the bench."""
        return self.bench.leave()


def note(folder: Path, kind: str, started: float, used: float, key: str = "") -> None:
    """Add a line to this process's notes: seconds, and seconds of the processor."""
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    line = {"kind": kind, "key": key, "seconds": seconds, "processor": processor}
    with (folder / f"{kind}-{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_notes(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The notes of all processes."""
    lines = (line for path in folder.glob(f"{kind}-*") for line in path.read_text().splitlines())
    return [json.loads(line) for line in lines]


def wait_for(folder: Path, workers: int) -> None:
    """Wait until so many other *workers* have loaded."""
    until = time.monotonic() + PATIENCE_SECONDS
    while len(list(folder.glob("load-*"))) < workers:
        if time.monotonic() > until:
            raise SystemExit(f"{workers} worker(s) do not load within {PATIENCE_SECONDS:g} s")
        time.sleep(0.02)


def load_timed(plan: Plan, folder: Path) -> Timed:
    """What a worker loads."""
    started, used = time.perf_counter(), time.process_time()
    bench = load_worker(plan, Measuring())
    note(folder, "load", started, used)
    return Timed(bench, folder)


@dataclass
class Work:
    """The cases of the benchmark: a group for each worker to warm up, and rounds of other cases."""

    method: str
    cases: int
    """How many there are in each round."""
    rounds: int
    comparing: Comparing = field(init=False)
    first: list[Group] = field(init=False)
    timed: list[list[Group]] = field(init=False)
    load_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        """Load the embedded model, and make the groups."""
        started = time.perf_counter()
        self.comparing = set_up_comparison(self.plan, Measuring())
        self.load_seconds = time.perf_counter() - started
        find = worker_of(self.comparing).find
        assert find is not None
        keys = [task.key for task in find(self.method)]
        first, rest = keys[: 2 * AT_ONCE], keys[2 * AT_ONCE :]
        self.first = self._groups(first)
        parts = [rest[n : n + self.cases] for n in range(0, len(rest), self.cases)]
        self.timed = list(map(self._groups, parts))

    @property
    def plan(self) -> Plan:
        """What every worker loads."""
        steps = (("ft.steps", "5"),) if self.method == "ft" else ()
        count = 2 * AT_ONCE + self.cases * self.rounds
        return Plan(methods=(self.method,), limit=count, options=steps)

    def _groups(self, keys: Sequence[str]) -> list[Group]:
        some = [tuple(keys[n : n + AT_ONCE]) for n in range(0, len(keys), AT_ONCE)]
        return [Group(self.method, each, each, self.method) for each in some]


@dataclass
class Taken:
    """The results that a pool handed back, by key."""

    payloads: dict[str, Any] = field(default_factory=dict)

    def __call__(self, reply: Reply) -> None:
        """Take *reply*. A failure ends the benchmark."""
        told = [json.loads(each.payload) for each in reply.finished]
        wrong = reply.error or reply.lost or [each for each in told if each.get("failure")]
        if wrong:
            raise SystemExit(f"the benchmark needs results, and there is: {wrong}")
        named = zip(reply.finished, told, strict=True)
        self.payloads |= {each.key: payload for each, payload in named}


def time_rounds(pool: Pool, here: Pool, work: Work) -> tuple[list[float], list[float], bool, bool]:
    """Seconds of each round in *pool* and *here*; whether results are the same, and agree."""
    theirs, ours = Taken(), Taken()
    times: tuple[list[float], list[float]] = ([], [])
    for groups in work.timed:
        for found, hands, take in zip(times, (pool, here), (theirs, ours), strict=True):
            started = time.perf_counter()
            hands.run(groups, take)
            found.append(time.perf_counter() - started)
    same = theirs.payloads == ours.payloads
    return *times, same, same or agree(theirs.payloads, ours.payloads)


def measure(engine: Engine, work: Work, each: int = 1) -> dict[str, Any]:
    """The row of *engine*, whose workers have *each* so many threads."""
    if engine.name == "ray":
        engine = Engine(engine.name, engine.workers, (("cpus", str(each)),))
    others = {"local": 0, "processes": engine.most - 1}.get(engine.name, engine.most)
    with tempfile.TemporaryDirectory() as place, _threads(each * engine.most):
        folder, mine = Path(place), worker_of(work.comparing)
        job = Job(partial(load_timed, work.plan, folder), Timed(mine, folder, others))
        alone = WithThreads(Here(worker_of(work.comparing)), 1)
        alone.run(work.first, Taken())
        started = time.perf_counter()
        with engine.start(job) as pool:
            wait_for(folder, others)
            start = time.perf_counter() - started
            pool.run(warm_up(work, others), Taken())
            times, again, same, near = time_rounds(pool, alone, work)
        if not near:
            raise SystemExit(f"executor {engine.name} has other results than this process")
        load = max([n["seconds"] for n in read_notes(folder, "load")], default=work.load_seconds)
        keys = {group.keys[0] for groups in work.timed for group in groups}
        done = [each for each in read_notes(folder, "do") if each["key"] in keys]
    cases = work.cases * work.rounds
    computed, processor = (sum(n[what] for n in done) for what in ("seconds", "processor"))
    per_case, locally = (statistics.median(some) / work.cases for some in (times, again))
    return {
        "executor": engine.name,
        "workers": engine.most,
        "threads_each": each,
        "start_seconds": start if others else load,
        "load_seconds": load,
        "start_of_executor": max(0.0, start - load) if others else 0.0,
        "seconds_per_case": sum(times) / cases,
        "method_seconds_per_case": computed / engine.most / cases,
        "executor_seconds_per_case": (sum(times) - computed / engine.most) / cases,
        "processor_seconds_per_case": processor / cases,
        "local_seconds_per_case": locally,
        "times_local": per_case / locally,
        "same_to_the_last_digit": same,
        "load": os.getloadavg()[0],
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use *count* threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class WithThreads:
    """A pool that runs with so many threads in this process."""

    pool: Pool
    threads: int

    def run(self, groups: Iterable[Group], take: Callable[[Reply], object]) -> None:
        """Do *groups* in the pool."""
        with _threads(self.threads):
            self.pool.run(groups, take)


def warm_up(work: Work, others: int) -> Iterator[Group]:
    """Groups that are not timed, so that each worker has begun before the rounds."""
    for _ in range(1 + others):
        yield from work.first


def agree(one: Any, other: Any) -> bool:
    """Whether two values of JSON are the same, numbers up to `NEAR`."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(agree(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(agree, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, **NEAR)
    return bool(one == other)


def growth(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How many times faster two workers with a thread each are than one worker with two threads.

    Each is compared with this process in the same minute, so another load changes both.
    """
    of = {(r["executor"], r["workers"], r["threads_each"]): r["times_local"] for r in rows}
    one = {"processes": ("local", 1, 2), "ray": ("ray", 1, 2)}
    known = [name for name, key in one.items() if key in of and (name, 2, 1) in of]
    return {name: of[one[name]] / of[name, 2, 1] for name in known}


def page(found: dict[str, Any]) -> str:
    """The figures as the page of the docs holds them."""
    rows = [
        [
            f"{row['executor']}: {row['workers']} x {row['threads_each']}",
            *(number(row[name]) for name in COLUMNS),
        ]
        for row in found["rows"]
    ]
    faster = [[name, number(times)] for name, times in found["growth"].items()]
    named = ["two workers with a thread each", "times the cases of one with two threads"]
    parts = ((["workers x threads", *COLUMNS.values()], rows), (named, faster))
    return "\n\n".join(table(*part) for part in parts)


def main() -> None:
    """Measure, print the table, and store the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--method", default="ft")
    parser.add_argument("--cases", type=int, default=24, help="cases of a round")
    parser.add_argument("--repeat", type=int, default=2, help="rounds; each has cases of its own")
    given = parser.parse_args()
    work, rows = Work(given.method, given.cases, given.repeat), []
    for name, workers, each in CHOICES:
        told = f"executors: {name}, {workers} worker(s) with {each} thread(s)"
        print(told, file=sys.stderr, flush=True)
        rows.append(measure(Engine(name, (workers, workers)), work, each))
        known = {key: value for key, value in rows[-1].items() if isinstance(value, float)}
        print(*(f"{key}={value:.3g}" for key, value in known.items()), file=sys.stderr, flush=True)
    found = {**vars(given), "growth": growth(rows), "rows": rows}
    write_json(RESULTS / "executors.json", {"machine": machine(), **found})
    put_into_page({"executors": page(found)})
    print(page(found))


if __name__ == "__main__":
    main()
