"""The executor `local`: the driver itself does every group, one after the other."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from lmedit.executors import Bench, Crew, Group, Job, Pool, Reply


class Local:
    """Work in the driver's process."""

    elastic = False
    options: Mapping[str, str] = MappingProxyType({})

    @contextmanager
    def start(self, job: Job, crew: Crew) -> Iterator[Pool]:  # noqa: ARG002  (the contract's)
        """Nothing starts: the driver's own work is there."""
        yield Here(job.here)

    def describe(self) -> str:
        """For `lmedit doctor`."""
        return "in this process"


@dataclass(frozen=True)
class Here:
    """The driver as its only worker."""

    work: Bench

    def run(self, groups: Iterable[Group], take: Callable[[Reply], object]) -> None:
        """Do *groups* in their order."""
        try:
            for group in groups:
                take(self.work.do(group))
        finally:
            take(self.work.leave())


executor = Local()
