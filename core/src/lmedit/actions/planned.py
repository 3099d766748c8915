"""A comparison that is planned on one machine and run on several: its file, its shards."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from lmedit.actions.reproduce import origin, plan_of_values
from lmedit.cases.shards import Shard
from lmedit.compare.facts import FINISHED, PLAN, SHARD, as_fact
from lmedit.compare.store import FILE, RunStore, read_results, read_run_facts
from lmedit.compare.worker import AT_ONCE
from lmedit.errors import RunError, UsageError
from lmedit.plan import check_plan
from lmedit.storage.json_files import SCHEMA, check_schema, parse_json, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lmedit.actions.compare import Measuring
    from lmedit.plan import Plan, Tell

LOCK = "work.lock"


@dataclass(frozen=True)
class Planned:
    """A comparison that no machine has begun; the same on every machine."""

    plan: Plan
    measuring: Measuring
    seeds: tuple[int, ...]
    isolate: bool | None
    cases: str
    """The digest of the cases, which each machine reads again."""

    def as_json(self) -> dict[str, Any]:
        """The JSON values of a plan file."""
        made = origin(self.plan, self.measuring, self.seeds)
        kept = {name: made[name] for name in ("plan", "measuring", "seeds")}
        return {"schema": SCHEMA, **kept, "isolate": self.isolate, "cases": self.cases}

    def check_cases(self) -> None:
        """Raise `RunError` if the cases on this machine are others."""
        plan, measuring = self.plan, self.measuring
        found = measuring.cases(plan, plan.outline() if measuring.preset else None)
        if found.digest != self.cases:
            raise RunError(
                f"the cases {found.name} differ here: {found.digest[:12]}, and the plan has "
                f"{self.cases[:12]}; copy the same cases to this machine"
            )


def plan_run(
    plan: Plan,
    measuring: Measuring,
    seeds: Sequence[int],
    together: Plan,
    *,
    isolate: bool | None,
    tell: Tell,
) -> tuple[Planned, int]:
    """Check the comparison without a model; return its plan, and how many shards have work.

    *together* is the plan without the methods of other projects, which are not loaded here.
    Raises the errors of `actions.compare.set_up_comparison`.
    """
    cases = measuring.cases(plan, plan.outline() if measuring.preset else None)
    regime = None if plan.only else measuring.piles(cases)
    measuring.check(together)
    check_plan(together, tell, used=(measuring.random_layer,))
    planned = Planned(plan, measuring, tuple(seeds), isolate, cases.digest)
    if regime is None and measuring.regime == "single":
        return planned, -(-len(cases.good) // AT_ONCE)
    piles = len(plan.methods) + bool(measuring.random_layer)
    piles *= 1 if measuring.regime == "batch" else len(seeds) or 1
    return planned, 1 + piles + ("retrieve" in measuring.in_context)


def read_planned(path: Path) -> Planned:
    """The plan in *path*: a file of `lmedit plan-run`, or the folder of a run of it.

    Raises `RunError` if there is none.
    """
    try:
        found = parse_json(_plan_in(path)) if path.is_dir() else read_json(path)
        if not isinstance(found, dict) or "measuring" not in found:
            raise ValueError("it is not a plan")
        check_schema(found.get("schema"))
        return _planned_of(found)
    except (OSError, ValueError) as error:
        raise RunError(
            f"cannot read the plan {path}: {error}; give a file of lmedit plan-run, or the folder "
            "of a run that lmedit work made"
        ) from error


def _plan_in(folder: Path) -> str:
    if not (folder / FILE).is_file() or PLAN not in (facts := read_run_facts(folder)):
        raise ValueError("the folder is not a run of lmedit work")
    return facts[PLAN]


def _planned_of(found: Mapping[str, Any]) -> Planned:
    plan, measuring, seeds = plan_of_values(found)
    isolate, cases = found.get("isolate"), found.get("cases")
    if not isinstance(isolate, bool | None) or not isinstance(cases, str) or not plan.methods:
        raise ValueError("it is damaged")
    return Planned(plan, measuring, seeds, isolate, cases)


def shard_in(folder: Path) -> str | None:
    """The shard that the run in *folder* is, as text; None if it is a whole run."""
    return read_run_facts(folder).get(SHARD)


def begin_shard(folder: Path, planned: Planned, shard: Shard) -> None:
    """Make the run of *shard* in *folder*, or open it again.

    Raises `RunError` if another plan or another shard is there.
    """
    facts = {PLAN: as_fact(planned.as_json())} | ({SHARD: str(shard)} if shard.of > 1 else {})
    if (folder / FILE).is_file() and ((known := read_run_facts(folder)) or read_results(folder)):
        for name in (PLAN, SHARD):
            if known.get(name) != facts.get(name):
                raise RunError(f"{folder} is the run of another {name}; give another --run")
    with RunStore(folder, shard=shard.of > 1) as store:
        store.note(facts)


def end_shard(folder: Path, shard: Shard) -> int:
    """Note that *shard* is finished in *folder*; return how many results are there."""
    with RunStore(folder) as store:
        store.note({f"{FINISHED}{shard}": "yes"})
        return len(store.all())


def list_unfinished(facts: Mapping[str, str]) -> list[str] | None:
    """The shards that are not finished in a run with *facts*; None if it has no shards."""
    done = set()
    for name in facts:
        if name.startswith(FINISHED):
            with suppress(UsageError):
                done.add(Shard.read(name.removeprefix(FINISHED)))
    left = [
        [str(each) for n in range(1, of + 1) if (each := Shard(n, of)) not in done]
        for of in sorted({shard.of for shard in done})
    ]
    return min(left, key=len) if left else None


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """Hold the lock of the run in *folder*, which other machines see on a network file system too.

    Raises `RunError` if another process works there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout as error:
        raise RunError(
            f"another process works on the run in {folder}; wait for it, or give another --run"
        ) from error
    except (OSError, NotImplementedError) as error:
        raise RunError(f"cannot lock the run in {folder}: {error}; give another --run") from error
