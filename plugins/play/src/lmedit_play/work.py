"""One thread computes, one job after the other; a job can be stopped, and tells what it does."""

from __future__ import annotations

import asyncio
import queue
import secrets
import sys
import threading
import time
import traceback
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from lmedit.errors import LmeditError, one_line
from lmedit.storage.steps import WorkStopped, watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from lmedit import Lm
    from lmedit.storage.steps import Step

    Act = Callable[["Job"], Mapping[str, Any]]
    Piece = Callable[[Callable[[], None]], object]
    """Work that nobody waits for. It gets a function that raises `WorkStopped` if it must end."""


ALIVE = 5.0
"""The most seconds without an event."""
PAUSE = 0.05
"""The least seconds between two steps that the page is told of; the losses of all are told."""


class Job:
    """An act with its events for the page, as JSON values; the last event is `done` or an end."""

    def __init__(self, act: Act, lm: Lm, shorten: Callable[[str], str] = str) -> None:
        """Create it in the thread of the event loop; *act* runs in the worker's thread.

        *shorten* removes the folders of the server from the text of an error.
        """
        self._shorten = shorten
        self._losses: list[float] = []
        self._told, self._began = 0.0, time.monotonic()
        self.id = secrets.token_hex(8)
        self._act, self._lm = act, lm
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask the act to end; it ends at its next step, or when a block of the model runs."""
        self._stop.set()

    def tell(self, **event: Any) -> None:
        """Send *event* to the page."""
        with suppress(RuntimeError):  # the server ends
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def note(self, text: str) -> None:
        """Send a note for the user."""
        self.tell(note=text)

    def run(self) -> None:
        """Compute in the present thread, and send the result or the reason why there is none."""
        try:
            with watched(self.see), stoppable(self._lm, self.check):
                self.check()
                self.tell(done=self._act(self))
        except WorkStopped:
            self.tell(stopped=self._lm.weights_digest() == self._lm.digest)
        except LmeditError as error:
            self.tell(error=self._shorten(one_line(error)))
        except Exception as error:  # noqa: BLE001  (a bug: the page tells it, and the server lives)
            traceback.print_exc(file=sys.stderr)
            self.tell(error=f"a bug of lmedit: {type(error).__name__}: {error}")

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events, until the last one. If nobody listens any more, the job ends.

        In silent work, `alive` tells the seconds since the start of the job: so neither a browser
        nor a proxy closes the connection, and the page shows that the work goes on.
        """
        try:
            while True:
                try:
                    event = await asyncio.wait_for(self._events.get(), ALIVE)
                except TimeoutError:
                    event = {"alive": round(time.monotonic() - self._began)}
                yield event
                if event.keys() & {"done", "error", "stopped"}:
                    return
        finally:
            self.stop()

    def see(self, step: Step, html: Mapping[str, str] | None = None) -> None:
        """Send *step* with pieces of the page, or end the act if it is to stop."""
        self.check()
        if step.loss is not None:
            self._losses.append(step.loss)
        now = time.monotonic()
        if not html and now - self._told < PAUSE and step.done != step.total:
            return
        losses, self._losses, self._told = self._losses, [], now
        told = {"work": step.work, "done": step.done, "total": step.total, "losses": losses}
        self.tell(step=told, html=dict(html or {}))

    def check(self) -> None:
        """Raise `WorkStopped` if the act is to end."""
        if self._stop.is_set():
            raise WorkStopped


@contextmanager
def stoppable(lm: Lm, check: Callable[[], object]) -> Iterator[None]:
    """Call *check* whenever a block of *lm* runs: so work that tells no steps can end, too."""
    with ExitStack() as stack:
        for number in range(lm.n_layers):
            handle = lm.block(number).register_forward_pre_hook(lambda *_: check())
            stack.callback(handle.remove)
        yield


class Worker:
    """The thread that computes. So no two jobs use the model at the same time."""

    def __init__(self, first: Callable[[], object]) -> None:
        """*first* runs before all jobs; a job that needs what it lacks tells the error."""
        self._first, self._closed = first, False
        self._waiting: queue.Queue[Job | str | None] = queue.Queue()
        self._known: dict[str, Job] = {}
        self._ahead: dict[str, Callable[[], list[Piece]] | list[Piece]] = {}
        self._thread = threading.Thread(target=self._work, name="lmedit play", daemon=True)
        self._thread.start()

    def start(self, job: Job) -> int:
        """Put *job* behind the others; return how many there are before it."""
        before = len(self._known)
        self._known[job.id] = job
        self._waiting.put(job)
        return before

    def look_ahead(self, tab: str, pieces: Callable[[], list[Piece]]) -> None:
        """Run *pieces* one by one while no job waits; what was left for this *tab* is dropped."""
        self._ahead[tab] = pieces
        self._waiting.put(tab)

    def _go_on(self, tab: str) -> None:
        """Run a piece for *tab*. An error ends them all: the act that needs them tells it."""
        pieces = self._ahead.get(tab, [])
        try:
            left = pieces if isinstance(pieces, list) else pieces()
            if left:
                left[0](self._give_way)
        except WorkStopped:
            pass  # a job came; the piece begins again
        except Exception:  # noqa: BLE001  (see above)
            left = []
        else:
            left = left[1:]
        if self._ahead.get(tab) is not pieces:
            return  # there are newer ones, and they are in the queue
        self._ahead[tab] = left
        if left:
            self._waiting.put(tab)
        else:
            self._ahead.pop(tab, None)

    def _give_way(self) -> None:
        if self._known or self._closed:
            raise WorkStopped

    def stop(self, number: str) -> bool:
        """Stop the job with this id; False if there is none."""
        job = self._known.get(number)
        if job is not None:
            job.stop()
        return job is not None

    def close(self) -> None:
        """Stop all jobs and wait for the thread, a few seconds at most."""
        self._closed = True
        for job in list(self._known.values()):
            job.stop()
        self._waiting.put(None)
        self._thread.join(5)

    def _work(self) -> None:
        with suppress(Exception):
            self._first()
        while (job := self._waiting.get()) is not None:
            if isinstance(job, Job):
                try:
                    job.run()
                finally:
                    self._known.pop(job.id, None)
            elif self._known:
                self._waiting.put(job)  # the jobs are before it in the queue
            elif not self._closed:
                self._go_on(job)
