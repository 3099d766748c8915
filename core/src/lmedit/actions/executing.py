"""What workers of a comparison load, and which preparations they need before."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from lmedit.compare.candidates import BASE, Candidate, of_editor
from lmedit.compare.comparison import tasks_of_run
from lmedit.compare.run_folder import LOGS
from lmedit.compare.store import RunStore
from lmedit.compare.worker import Worker
from lmedit.preparation import stored_paths
from lmedit.storage.cache import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from lmedit.actions.compare import Comparing, Measuring
    from lmedit.compare.one_edit import Task
    from lmedit.executors import Job, Pool
    from lmedit.executors.engine import Engine
    from lmedit.pipeline import Editor
    from lmedit.plan import Plan


def worker_of(comparing: Comparing, *, often: bool = False) -> Worker:
    """What computes the groups of *comparing* in this process."""
    every = [Candidate(BASE), *map(of_editor, comparing.editors), *comparing.baselines]
    named = {candidate.name: candidate for candidate in every}
    lm, cases = comparing.setup.lm, comparing.cases
    scoring = replace(comparing.scoring, only=cases.only.word if cases.only else None)

    def find(name: str) -> list[Task]:
        return tasks_of_run(lm, cases, [named[name]], scoring) if name in named else []

    return Worker(lm, scoring, find, often=often)


def load_worker(plan: Plan, measuring: Measuring) -> Worker:
    """Set everything up again, in another process: what it works with."""
    from lmedit.actions.compare import set_up_comparison

    return worker_of(set_up_comparison(plan, measuring), often=True)


def stored_preparations(editors: Sequence[Editor]) -> dict[str, Path]:
    """The prepared files of *editors* in the cache, by their path inside it."""
    paths = [
        path
        for each in editors
        if each.options.needs_preparation
        for path in stored_paths(each.loaded, each.lm, each.options)
    ]
    return {path.relative_to(cache_folder()).as_posix(): path for path in paths}


@contextmanager
def begin_run(
    engine: Engine, job: Job, folder: Path, tell: Callable[[str], object]
) -> Iterator[Pool]:
    """The workers of *engine* for *job* in the block; their notes go to *tell*.

    Before any worker starts, *folder* is a run, or an error is raised.
    """
    with RunStore(folder):
        pass
    with engine.start(job, folder / LOGS, tell) as pool:
        yield pool
