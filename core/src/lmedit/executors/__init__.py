"""The contract of executors: who runs the tasks of a run, and where.

An executor is a plugin of the entry-point group `lmedit.executors`. The driver is the process that
the user started. It gives an executor a `Job` and groups of tasks. The executor gives the groups to
workers, and hands their replies back to the driver. The driver alone writes the run store, and puts
finished preparations into its cache.

Laws, which `lmedit.testing.ExecutorContract` tests:

1. The table is that of the executor `local`, to the last digit.
2. A worker that ends in the middle of a group loses nothing: another worker gets the group.
3. Every group is answered at least once, in any order. A second reply holds the same payloads.
4. A method that changes the model is found by the worker that ran it; the other methods go on.
5. An error of a worker, and an interruption of the driver, end the run. Every reply that was
   handed back before stays.
6. Groups are taken from their iterable when a worker can start them, not earlier.
7. No worker is left when the block of `Executor.start` ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lmedit import errors
from lmedit.errors import LmeditError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

GROUP = "lmedit.executors"
"""The entry points of executors: each names an object with the methods of `Executor`."""


@dataclass(frozen=True)
class Finished:
    """A finished task: its result as JSON (a key always has the same bytes), seconds and memory."""

    key: str
    method: str
    case_id: str
    payload: str
    seconds: float | None
    mebibytes: float | None = None


@dataclass(frozen=True)
class Group:
    """Tasks that a worker does together. Every executor and every start has the same groups."""

    method: str
    """The method, or the baseline, that these tasks run; an error names it."""
    keys: tuple[str, ...]
    """The keys of all tasks of the group. Updates may be computed for all of them together."""
    wanted: tuple[str, ...]
    """The keys whose results are asked for; the others are finished already."""
    about: str = ""
    """What tells a worker where to find these tasks; an executor passes it on."""


@dataclass(frozen=True)
class Reply:
    """What a worker hands back for a group; or its last word, if `group` is None."""

    group: Group | None
    finished: tuple[Finished, ...] = ()
    changed: Mapping[str, str] = field(default_factory=dict)
    """Methods that changed the model, and how. No result of them counts."""
    lost: str | None = None
    """Why there is no result: each worker that had this group ended. An executor says this."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files that the worker made, by their path in the folder that the driver knows."""
    error: tuple[str, str] | None = None
    """The class and the text of an error that ends the run."""


class Bench(Protocol):
    """A worker's loaded methods, model and cases. One thread at a time calls it."""

    def do(self, group: Group) -> Reply:
        """The results of the wanted tasks of *group*. A failure of a method is a result."""

    def leave(self) -> Reply:
        """The last word: the methods that changed the model since the last reply.

        An executor asks for it at the end of each run, and when a worker is stopped.
        """


@dataclass(frozen=True)
class Job:
    """What a worker loads: everything about a run besides its groups."""

    load: Callable[[], Bench]
    """Loads methods, model and cases. It can be pickled, and is called once in each worker."""
    here: Bench
    """The driver's own work, which is loaded already."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Preparations: paths inside the cache folder, and the driver's files. A worker on another
    machine needs them there before it loads (`lmedit.executors.sharing`)."""


def be_silent(_: str) -> None:
    """Drop a note."""


@dataclass(frozen=True)
class Crew:
    """How many workers there are, and what each of them gets."""

    workers: tuple[int, int] = (1, 1)
    """The least and the largest number of workers."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The executor's own options, as typed."""
    logs: Path | None = None
    """The folder for what workers print, a file for each; None: it is dropped."""
    tell: Callable[[str], object] = be_silent
    """Receives a note for the user, one line."""


class Pool(Protocol):
    """The workers of a job."""

    def run(self, groups: Iterable[Group], take: Callable[[Reply], object]) -> None:
        """Do *groups*; call *take* in this thread with each reply, and at last with last words.

        May be called again. Raises what *groups* and *take* raise, and `LmeditError` if no worker
        can work.
        """


class Executor(Protocol):
    """A way to run work. It has no state of its own."""

    elastic: bool
    """Whether workers may come and go; if not, the user gives one number of workers."""
    options: Mapping[str, str]
    """The names of its options, each with a line of help."""

    def start(self, job: Job, crew: Crew) -> AbstractContextManager[Pool]:
        """Start the workers of *job* for a block. Afterwards none of them is left."""

    def describe(self) -> str:
        """Its version, and the clusters in reach, in one line, for `lmedit doctor`."""


def reply_of(work: Bench, group: Group | None) -> Reply:
    """What *work* answers to *group*, or its last word; an exception becomes a reply, too.

    For workers in other processes. An interruption is raised.
    """
    try:
        return work.leave() if group is None else work.do(group)
    except Exception as error:  # noqa: BLE001  (the driver raises it)
        return Reply(group, error=error_as_text(error))


def error_as_text(error: BaseException) -> tuple[str, str]:
    """The class and the text of *error*, for `Reply.error`."""
    if isinstance(error, LmeditError):
        return type(error).__name__, one_line(error)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return "LmeditError", f"a worker failed: {text[:1000]}; a run keeps its log in RUN/workers"


def error_from_text(told: tuple[str, str]) -> LmeditError:
    """The error that *told* tells."""
    known = getattr(errors, told[0], LmeditError)
    made: LmeditError = known.__new__(known)
    LmeditError.__init__(made, told[1])
    return made
