"""The executor `ray` in this process: work is loaded from the bytes that an actor would get.

So a test of a command with `--executor ray` costs no process. Real actors are tested with the
executor itself, and by `LMEDIT_RAY_KILLS=10 pytest`, which uses them here too.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from lmedit.executors import reply_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from lmedit.executors import Bench, Crew, Group, Job, Reply


@dataclass
class OneActor:
    """A pool of one worker, which is no process."""

    bench: Bench
    done: list[str]

    def run(self, groups: Iterable[Group], take: Callable[[Reply], object]) -> None:
        """Do *groups*, and hand back what an actor would send."""
        from ray import cloudpickle

        for group in (*groups, None):
            reply = reply_of(self.bench, cloudpickle.loads(cloudpickle.dumps(group)))
            self.done.extend(group.wanted if group is not None else ())
            take(cloudpickle.loads(cloudpickle.dumps(reply)))


@pytest.fixture
def on_ray(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the worker of `--executor ray` does. Its bench is not the driver's."""
    done: list[str] = []
    if "LMEDIT_RAY_KILLS" in os.environ:
        done.append("on real actors")
        return done
    from ray import cloudpickle

    from lmedit_ray import RayExecutor

    @contextmanager
    def start(self: Any, job: Job, crew: Crew) -> Iterator[OneActor]:
        bench = cloudpickle.loads(cloudpickle.dumps(job.load))()
        assert bench is not job.here
        yield OneActor(bench, done)

    monkeypatch.setattr(RayExecutor, "start", start)
    return done
