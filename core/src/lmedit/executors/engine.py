"""The user's choice of an executor: its name, its workers and its options, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmedit.errors import UnknownNameError, UsageError
from lmedit.executors import Crew, be_silent
from lmedit.executors.finding import find_executor

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from lmedit.executors import Job, Pool


MOST_HERE = 256
"""The largest number of processes on one machine."""


@dataclass(frozen=True)
class Engine:
    """An executor by name, and what the user asks of it. It can be sent to another process."""

    name: str = "local"
    workers: tuple[int, int] = (1, 1)
    """The least and the largest number of workers."""
    options: tuple[tuple[str, str], ...] = ()

    @property
    def most(self) -> int:
        """The largest number of workers."""
        return self.workers[1]

    def check(self) -> None:
        """Raise an error if the executor does not exist, or if a value does not fit it."""
        executor = find_executor(self.name)
        if self.workers[0] != self.most and not executor.elastic:
            raise UsageError(
                f"executor {self.name!r} has a fixed number of workers; give --workers {self.most}"
            )
        if self.name == "local" and self.most > 1:
            raise UsageError("executor 'local' has one worker; give --executor processes")
        if self.most > MOST_HERE and not executor.elastic:
            raise UsageError(f"--workers {self.most} is not from 1 to {MOST_HERE} on one machine")
        for option, _ in self.options:
            if option not in executor.options:
                culprit = f"executor {self.name!r}: "
                raise UnknownNameError("option", option, executor.options, culprit)

    def limit(self, tasks: int) -> Engine:
        """The same choice, with no more workers than *tasks*."""
        least, most = (min(count, max(1, tasks)) for count in self.workers)
        return replace(self, workers=(least, most))

    def start(
        self, job: Job, logs: Path | None = None, tell: Callable[[str], object] = be_silent
    ) -> AbstractContextManager[Pool]:
        """Start the workers of *job* for a block; what they print goes into the folder *logs*."""
        crew = Crew(self.workers, dict(self.options), logs, tell)
        return find_executor(self.name).start(job, crew)


ALONE = Engine()
"""The driver works alone."""
