"""Work that is cheap: a bench that hands back the results of a finished run. It imports no torch.

Tests that kill processes use it, because each process that starts again would load a model.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lmedit.executors import Finished, Job, Reply

if TYPE_CHECKING:
    from lmedit.executors import Group, Pool


class Recorded:
    """Hands back what a finished run stored, each task after a pause."""

    def __init__(self, file: Path, pause: float) -> None:
        """*file* is of `record`; *pause* is in seconds."""
        self.known = json.loads(file.read_text(encoding="utf-8"))
        self.pause = pause

    def do(self, group: Group) -> Reply:
        """The stored results."""
        time.sleep(self.pause * len(group.wanted))
        told = ((key, self.known[key]) for key in group.wanted)
        return Reply(group, tuple(Finished(key, *each, None) for key, each in told))

    def leave(self) -> Reply:
        """Nothing changed."""
        return Reply(None)


class Variables:
    """Replies with the names of the secret variables of its process, and prints a word."""

    def do(self, group: Group) -> Reply:
        """The names as the payload."""
        told = ",".join(sorted(name for name in os.environ if "LMEDIT_SECRET" in name))
        os.write(1, b"a word for the log")
        return Reply(group, (Finished(group.keys[0], "m", "1", told, None),))

    def leave(self) -> Reply:
        """Nothing changed."""
        return Reply(None)


def record(run: Path, file: Path) -> Path:
    """Write the results of *run* into *file*, in the order in which a driver gives them out.

    So the groups are those of every start, and a run that continues computes whole groups.
    """
    from lmedit.compare.store import read_results

    found = sorted(read_results(run), key=lambda each: (each.method, int(each.case_id)))
    told = {each.key: (each.method, each.case_id, each.payload) for each in found}
    file.write_text(json.dumps(told), encoding="utf-8")
    return file


def finish(file: Path, run: Path, pool: Pool) -> None:
    """Finish all tasks of *file* in the run folder *run*, with the driver of every comparison."""
    from types import SimpleNamespace
    from typing import Any, cast

    from lmedit import Request
    from lmedit.compare.candidates import Candidate
    from lmedit.compare.driver import Driver, Hands
    from lmedit.compare.one_edit import Task
    from lmedit.compare.store import RunStore
    from lmedit.types import Case

    request = Request(prompt="{} is in", subject="The tower", target_new="Rome")
    known = json.loads(file.read_text(encoding="utf-8"))
    tasks = [
        Task(key, Case(id=case, request=request), Candidate(method))
        for key, (method, case, _) in known.items()
    ]
    worker = cast("Any", SimpleNamespace(tasks={}))
    with RunStore(run) as store:
        Driver(store, Hands(worker, pool)).finish(tasks)


def drive(file: Path, run: Path, pause: float) -> None:
    """Be a driver with two actors on a new cluster of this machine."""
    from functools import partial

    from lmedit.compare.store import RunStore
    from lmedit.executors.engine import Engine

    with RunStore(run):
        pass
    job = Job(partial(Recorded, file, pause), Recorded(file, pause))
    with Engine("ray", (2, 2), (("memory", "80"),)).start(job, run / "workers") as pool:
        finish(file, run, pool)


if __name__ == "__main__":
    from lmedit.errors import LmeditError

    try:
        drive(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
    except LmeditError as error:
        sys.exit(f"Error: {error}")
