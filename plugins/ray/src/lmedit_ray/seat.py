"""The work of an actor: load once, then do groups. What it prints comes back with each reply."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.executors import Reply, reply_of
from lmedit.executors.processes import print_into
from lmedit.executors.sharing import place_files, take_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmedit.executors import Bench, Group, Job


@dataclass(frozen=True)
class Luggage:
    """What each actor gets: how to load, references to the files, and lmedit's own variables."""

    load: Any
    """`Job.load`."""
    files: Mapping[str, Any]
    """References to the bytes of `Job.files` in the object store, by name."""
    variables: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1

    @classmethod
    def pack(cls, job: Job, variables: Mapping[str, str], threads: int) -> Luggage:
        """Put the files of *job* into the object store, once. A node fetches each one once."""
        import ray

        files = {name: ray.put(path.read_bytes()) for name, path in job.files.items()}
        return cls(job.load, files, variables, threads)


class EmptySeatError(Exception):
    """An actor that Ray restarted was asked for work before it loaded again."""


class Seat:
    """An actor. Its constructor has no argument, so Ray can always restart it."""

    def __init__(self) -> None:
        """Collect what this process prints; load nothing yet."""
        self._bench: Bench | None = None
        handle, name = tempfile.mkstemp(prefix="lmedit-", suffix=".log")
        os.close(handle)
        self._log, self._read = Path(name), 0
        print_into(self._log)

    def sit(self, luggage: Luggage) -> str:
        """Load methods, model and cases. Returns what was printed meanwhile."""
        import ray

        os.environ["TQDM_DISABLE"] = "1"
        take_variables(luggage.variables)
        _set_threads(luggage.threads)
        files = luggage.files
        place_files(files, lambda name: ray.get(files[name]))
        self._bench = luggage.load()
        _set_threads(luggage.threads)
        return self._read_log()

    def do(self, group: Group | None) -> tuple[Reply, str]:
        """The reply to *group*, or the last word; and what was printed meanwhile."""
        if self._bench is None:
            raise EmptySeatError
        return reply_of(self._bench, group), self._read_log()

    def _read_log(self) -> str:
        """What this process printed since the last call."""
        try:
            with self._log.open("rb") as text:
                text.seek(self._read)
                found = text.read()
        except OSError:
            return ""
        self._read += len(found)
        return found.decode("utf-8", errors="replace")


def _set_threads(count: int) -> None:
    """Let torch use *count* threads: now if it is imported, else as soon as it is."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)
