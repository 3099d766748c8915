"""The pool of actors: give groups to actors that have loaded, and take back what they reply.

Ray restarts an actor that died. Ray would also repeat its calls, but on the same actor, which may
wait long for a machine. So this pool repeats a group itself, on any actor.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from lmedit.errors import LmeditError, RunError
from lmedit.executors import Reply, error_as_text
from lmedit.executors.sharing import own_variables
from lmedit.executors.waiting import Waiting
from lmedit_ray.seat import EmptySeatError, Luggage, Seat
from lmedit_ray.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from lmedit.executors import Crew, Group, Job
    from lmedit_ray.cluster import Wishes

    Take = Callable[[Reply], object]

AHEAD = 2
"""How many groups an actor has: one that it does, and the next one."""
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 20.0
"""If fewer workers than the least number came in this time, a note tells why."""


@dataclass(eq=False)
class Taken:
    """A seat in the pool: its actor, and its calls that have not returned."""

    number: int
    actor: Any
    calls: deque[tuple[Any, Group | None]] = field(default_factory=deque)
    """References and their groups, in order."""
    loading: Any = None
    """The reference of the call that loads; None if the actor has loaded."""
    worked: bool = False

    def ask(self, group: Group | None) -> None:
        """Give *group* to the actor; None asks for its last word."""
        self.calls.append((self.actor.do.remote(group), group))
        self.worked = self.worked or group is not None


class Actors:
    """The actors of a job."""

    def __init__(self, job: Job, crew: Crew, wishes: Wishes) -> None:
        """No actor yet. The files of *job* go into the object store."""
        self.crew, self.wishes = crew, wishes
        self.watch = Watch(None if crew.logs is None else crew.logs.parent)
        with self.watch.explaining():
            self._luggage = Luggage.pack(job, own_variables(), max(1, int(wishes.cpus)))
        self.seats: list[Taken] = []
        self._since = time.monotonic()
        self._told = False
        self._last_failure = ""

    def add(self, count: int) -> None:
        """Ask the cluster for *count* actors. They come when it has room."""
        made: Any = ray.remote(Seat)
        how: dict[str, Any] = {
            "num_cpus": self.wishes.cpus,
            "num_gpus": self.wishes.gpus,
            "max_restarts": -1,
            "runtime_env": self.wishes.runtime_env or None,
        }
        for number in range(len(self.seats) + 1, len(self.seats) + count + 1):
            seat = Taken(number, made.options(**how).remote())
            self._load(seat)
            self.seats.append(seat)

    def _load(self, seat: Taken) -> None:
        """Let the actor load. While Ray restarts it, this call waits.

        Arguments of the constructor would end with the object store of a node. So this call
        brings them, and the driver keeps them.
        """
        seat.loading = seat.actor.sit.options(max_task_retries=-1).remote(self._luggage)

    def run(self, groups: Iterable[Group], take: Take) -> None:
        """Do *groups* on the actors that have loaded. Raises `RunError` if the cluster ends."""
        with self.watch.explaining():
            self._run(groups, take)

    def _run(self, groups: Iterable[Group], take: Take) -> None:
        waiting = Waiting(groups)
        self._since = time.monotonic()
        while True:
            self._fill(waiting)
            if not waiting.more() and not any(seat.calls for seat in self.seats):
                break
            self._take_returned(waiting, take, POLL_SECONDS)
            self._tell_patience()
        self._ask_last_words(take)

    def _fill(self, waiting: Waiting) -> None:
        for _ in range(AHEAD):
            for seat in self.seats:
                if seat.loading is None and len(seat.calls) < AHEAD:
                    group = waiting.next_group()
                    if group is None:
                        return
                    seat.ask(group)

    def _take_returned(self, waiting: Waiting, take: Take, seconds: float) -> None:
        """Take what has returned; wait *seconds* for the first call."""
        self.watch.check()
        calls = {seat.loading: seat for seat in self.seats if seat.loading is not None}
        calls |= {seat.calls[0][0]: seat for seat in self.seats if seat.calls}
        if not calls:
            raise RunError(f"no worker is left: {self._last_failure}; correct it, and run again")
        done, _ = ray.wait(list(calls), num_returns=1, timeout=seconds)
        for reference in done:
            seat = calls[reference]
            if reference == seat.loading:
                self._take_loaded(seat)
            else:
                self._take_reply(seat, reference, waiting, take)

    def _take_loaded(self, seat: Taken) -> None:
        reference, seat.loading = seat.loading, None
        try:
            self._log(seat, ray.get(reference))
        except RayError as error:
            self.watch.check(now=True)
            self._dismiss(seat, error)

    def _take_reply(self, seat: Taken, reference: Any, waiting: Waiting, take: Take) -> None:
        """Take the reply to the oldest call of *seat*; or put its groups back if it died."""
        try:
            reply, printed = ray.get(reference)
        except RayTaskError as error:
            if not isinstance(getattr(error, "cause", None), EmptySeatError):
                raise
            self._put_back(seat, waiting, take, "it was restarted", begun=False)
            self._load(seat)
            return
        except RayError as error:
            self.watch.check(now=True)
            why = _why(error)
            self.crew.tell(f"worker {seat.number} stopped; its work is repeated: {why}")
            self._put_back(seat, waiting, take, why, begun=True)
            self._load(seat)
            return
        seat.calls.popleft()
        if reply.group is None:
            seat.worked = False
        self._log(seat, printed)
        take(reply)

    def _put_back(
        self, seat: Taken, waiting: Waiting, take: Take, why: str, *, begun: bool
    ) -> None:
        groups = [group for _, group in seat.calls if group is not None]
        seat.calls.clear()
        seat.worked = False
        for place, group in enumerate(groups):
            if lost := waiting.put_back(group, why, begun=begun and place == 0):
                take(lost)

    def _dismiss(self, seat: Taken, error: RayError) -> None:
        """Leave *seat* out: its actor cannot load. If it was the last one, the run ends."""
        self.seats.remove(seat)
        with suppress(RayError):
            ray.kill(seat.actor)
        cause = getattr(error, "cause", None)
        self._last_failure = (
            error_as_text(cause)[1] if isinstance(cause, Exception) else _why(error)
        )
        if not self.seats:
            raise cause if isinstance(cause, LmeditError) else RunError(self._last_failure)
        self.crew.tell(f"worker {seat.number} stopped; the others continue: {self._last_failure}")

    def _ask_last_words(self, take: Take) -> None:
        for seat in self.seats:
            if seat.worked and seat.loading is None:
                seat.ask(None)
        nothing = Waiting(())
        while any(seat.calls for seat in self.seats):
            self._take_returned(nothing, take, POLL_SECONDS)

    def _log(self, seat: Taken, text: str) -> None:
        """Add what an actor printed to its log in the run folder."""
        folder: Path | None = self.crew.logs
        if folder is None or not text:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"ray-{seat.number}.log").open("a", encoding="utf-8") as log:
            log.write(text)

    def _tell_patience(self) -> None:
        """Tell once that the cluster has no room for the least number of workers."""
        late = time.monotonic() - self._since > PATIENCE_SECONDS
        least = self.crew.workers[0]
        if self._told or not late or sum(seat.loading is None for seat in self.seats) >= least:
            return
        cluster: Any = ray
        whole = cluster.cluster_resources()
        for kind, count in {"CPU": self.wishes.cpus, "GPU": self.wishes.gpus}.items():
            room = int(whole.get(kind, 0.0) / count + 1e-6) if count else least
            if room < least:
                self._told = True
                what = f"only {room} of at least {least} workers" if room else "no worker"
                self.crew.tell(
                    f"{what} can start: each needs {count:g} {kind}, and the cluster has "
                    f"{whole.get(kind, 0.0):g}; give smaller --executor-option values, or add nodes"
                )
                return

    def end(self) -> None:
        """End all actors. Those of a cluster that ended have no answer."""
        for seat in [] if self.watch.ended else self.seats:
            with suppress(RayError, ValueError):
                ray.kill(seat.actor)
        self.seats.clear()


def _why(error: RayError) -> str:
    """How a worker ended, in one line without Ray's addresses."""
    kind = "its actor ended" if isinstance(error, RayActorError) else type(error).__name__
    return f"{kind}"
