"""The work of an actor: load once, then do groups. What it prints comes back with each reply."""

from __future__ import annotations

import os
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


class Seat:
    """An actor. It loads when it is first asked; a restarted actor loads again."""

    def __init__(self, luggage: Luggage) -> None:
        """Collect what this process prints; load nothing yet."""
        self._luggage = luggage
        self._bench: Bench | None = None
        handle, name = tempfile.mkstemp(prefix="lmedit-", suffix=".log")
        os.close(handle)
        self._log, self._read = Path(name), 0
        print_into(self._log)

    def sit(self) -> str:
        """Load methods, model and cases. Returns what was printed meanwhile."""
        self._loaded_bench()
        return self._read_log()

    def do(self, group: Group | None) -> tuple[Reply, str]:
        """The reply to *group*, or the last word; and what was printed meanwhile."""
        bench = self._loaded_bench()
        return reply_of(bench, group), self._read_log()

    def process(self) -> int:
        """The number of this process."""
        return os.getpid()

    def _loaded_bench(self) -> Bench:
        if self._bench is None:
            import ray
            import torch

            os.environ["TQDM_DISABLE"] = "1"
            take_variables(self._luggage.variables)
            torch.set_num_threads(self._luggage.threads)
            files = self._luggage.files
            place_files(files, lambda name: ray.get(files[name]))
            self._bench = self._luggage.load()
        return self._bench

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
