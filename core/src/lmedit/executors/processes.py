"""The executor `processes`: the driver and other processes of this machine.

Each process loads its own model. They share the CPU threads equally. The driver works, too.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmedit.errors import LmeditError, how_ended
from lmedit.executors import Reply, error_as_text, reply_of
from lmedit.executors.children import SECONDS_TO_STOP, become_worker, end_workers
from lmedit.executors.signals import Stopped, signals_end
from lmedit.executors.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from lmedit.executors import Bench, Crew, Group, Job, Pool

POLL_SECONDS = 0.2
AHEAD = 2
"""How many groups a process has, so that it need not wait for the driver."""


class Processes:
    """Processes of this machine."""

    elastic = False
    options: Mapping[str, str] = MappingProxyType({})

    @contextmanager
    def start(self, job: Job, crew: Crew) -> Iterator[Pool]:
        """Start all processes but one, which is the driver itself."""
        import torch

        workers, threads = crew.workers[1], torch.get_num_threads()
        each = max(1, threads // workers)
        family = Children(job, crew, each)
        torch.set_num_threads(each)
        try:
            family.add(workers - 1)
            yield family
        finally:
            family.end()
            torch.set_num_threads(threads)

    def describe(self) -> str:
        """For `lmedit doctor`."""
        return f"{os.cpu_count()} processors"


@dataclass
class Child:
    """Another process, and the groups that it was given and has not answered."""

    number: int
    process: BaseProcess
    line: Connection
    groups: deque[Group] = field(default_factory=deque)
    ready: bool = False
    worked: bool = False
    """Whether it did something since its last word."""

    def send(self, group: Group | None) -> None:
        """Send *group*, or ask for the last word. A child that has ended is found when it is read.

        The group counts as given in any case.
        """
        if group is not None:
            self.groups.append(group)
            self.worked = True
        with suppress(OSError):
            self.line.send(group)

    def why(self) -> str:
        """How it ended."""
        self.process.join(1.0)
        code = self.process.exitcode
        return "its process ended" if code is None else how_ended(code)


@dataclass
class Children:
    """The driver and its children."""

    job: Job
    crew: Crew
    threads: int
    children: list[Child] = field(default_factory=list)
    born: int = 0

    def add(self, count: int) -> None:
        """Start *count* more children."""
        made = get_context("spawn")
        for _ in range(count):
            self.born += 1
            here, there = made.Pipe()
            given = (there, self.job.load, self._log(self.born), self.threads)
            process = made.Process(target=_serve, args=given, daemon=True)
            process.start()
            there.close()
            self.children.append(Child(self.born, process, here))

    def _log(self, number: int) -> Path | None:
        return None if self.crew.logs is None else self.crew.logs / f"process-{number}.log"

    def run(self, groups: Iterable[Group], take: Callable[[Reply], object]) -> None:
        """Do *groups*. The driver does those that no child has begun."""
        waiting = Waiting(groups)
        try:
            while self._step(waiting, take):
                pass
            self._ask_last_words(take)
        except BaseException:
            self._stop(take)
            raise
        take(self.job.here.leave())

    def _step(self, waiting: Waiting, take: Callable[[Reply], object]) -> bool:
        """Take replies, give out groups, and do a group here; False if everything is finished.

        The replies come first: a child whose groups seem unfinished gets no new one, and waits
        until the driver's own group is done.
        """
        while self._take_messages(waiting, take, 0.0):
            pass
        self._fill(waiting)
        group = waiting.next_group()
        if group is not None:
            take(self.job.here.do(group))
            return True
        if not any(child.groups for child in self.children):
            return False
        self._take_messages(waiting, take, POLL_SECONDS)
        return True

    def _fill(self, waiting: Waiting) -> None:
        for child in self.children:
            while child.ready and len(child.groups) < AHEAD:
                group = waiting.next_group()
                if group is None:
                    return
                child.send(group)

    def _take_messages(
        self, waiting: Waiting, take: Callable[[Reply], object], seconds: float
    ) -> bool:
        """Take a message of each child, and wait *seconds* for the first one; False for none."""
        lines: dict[Any, Child] = {child.line: child for child in self.children}
        ready = wait(list(lines), seconds)
        for line in ready:
            try:
                kind, value = lines[line].line.recv()
            except (EOFError, OSError):
                self._replace(lines[line], waiting, take)
                continue
            self._hear(lines[line], kind, value, take)
        return bool(ready)

    def _hear(self, child: Child, kind: str, value: Any, take: Callable[[Reply], object]) -> None:
        """Take one message of *child*."""
        if kind == "ready":
            child.ready = True
        elif kind == "failed":
            self.crew.tell(f"a worker stopped; the others continue: {value}")
        else:
            if value.group is None:
                child.worked = False
            else:
                child.groups.popleft()
            take(value)

    def _replace(self, child: Child, waiting: Waiting, take: Callable[[Reply], object]) -> None:
        """Put the groups of a *child* that ended back, and start another one if it had some."""
        self.children.remove(child)
        child.line.close()
        if not child.groups:
            return
        why = child.why()
        self.crew.tell(f"a worker stopped, and another one takes over: {why}")
        for place, group in enumerate(child.groups):
            if lost := waiting.put_back(group, why, begun=place == 0):
                take(lost)
        self.add(1)

    def _ask_last_words(self, take: Callable[[Reply], object]) -> None:
        """Wait for the last word of every child that worked; one that ended has none."""
        for child in self.children:
            if child.worked:
                child.send(None)
        nothing = Waiting(())
        while any(child.worked for child in self.children):
            self._take_messages(nothing, take, POLL_SECONDS)

    def _stop(self, take: Callable[[Reply], object]) -> None:
        """After an error or an interruption: stop the children, and take what they still say."""
        for child in self.children:
            child.process.terminate()
        with suppress(LmeditError):
            take(self.job.here.leave())
        until = time.monotonic() + SECONDS_TO_STOP
        lines: dict[Any, Child] = {child.line: child for child in self.children if child.ready}
        while lines and time.monotonic() < until:
            for line in wait(list(lines), POLL_SECONDS):
                try:
                    kind, value = lines[line].line.recv()
                except (EOFError, OSError):
                    del lines[line]
                    continue
                if kind == "reply":
                    with suppress(LmeditError):
                        take(value)

    def end(self) -> None:
        """End all children, and remove logs that are empty."""
        end_workers([child.process for child in self.children])
        for child in self.children:
            child.line.close()
        for number in range(1, self.born + 1):
            log = self._log(number)
            with suppress(OSError):
                if log is not None and log.stat().st_size == 0:
                    log.unlink()


def _serve(line: Connection, load: Callable[[], Bench], log: Path | None, threads: int) -> None:
    """Reply the driver until it hangs up: the work of a child."""
    import torch

    become_worker()
    os.environ["TQDM_DISABLE"] = "1"
    print_into(log or Path(os.devnull))
    torch.set_num_threads(threads)
    try:
        with signals_end():  # not an exit: the guard of a hook would take that for its failure
            _reply_to_all(line, load)
    except (Stopped, EOFError, OSError):
        pass


def _reply_to_all(line: Connection, load: Callable[[], Bench]) -> None:
    """Load, then answer each group. After a signal, say the last word."""
    try:
        work = load()
    except Exception as error:  # noqa: BLE001  (the others go on)
        line.send(("failed", error_as_text(error)[1]))
        return
    sending = True
    try:
        line.send(("ready", None))
        while True:
            sending = False
            reply = reply_of(work, line.recv())
            sending = True
            line.send(("reply", reply))
    except Stopped:
        if not sending:  # half a message may be on its way
            line.send(("reply", reply_of(work, None)))
        raise


def print_into(log: Path) -> None:
    """Let everything that this process prints go to the end of *log*."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


executor = Processes()
