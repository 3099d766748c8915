"""Processes and threads of tests, with a limit: what never ends is a failure that names its place.

A forked process shares the lock of tqdm with its parent: it is a semaphore of the system. If the
child is killed while it holds the lock, every later bar of the parent waits for ever. So each
child gets a lock of its own as soon as this module is imported.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SECONDS = 300
"""The longest time that a process or a thread of a test may take."""


def own_lock() -> None:
    """Give tqdm a lock that no other process has, and that nobody holds."""
    tqdm.set_lock(threading.RLock())


if hasattr(os, "register_at_fork"):
    own_lock()
    os.register_at_fork(after_in_child=own_lock)
    FORK = multiprocessing.get_context("fork")


def started(target: Any, *arguments: Any) -> Any:
    """A forked process that runs *target*."""
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


def ended(process: Any, seconds: float = SECONDS) -> int | None:
    """Wait until *process*, or a thread, ends; return the exit code. It may take *seconds*."""
    process.join(seconds)
    if not process.is_alive():
        return getattr(process, "exitcode", None)
    if hasattr(process, "kill"):
        process.kill()
        process.join(SECONDS)
    raise AssertionError(f"{process.name} did not end within {seconds:g} s")


def all_ended(processes: Iterable[Any], seconds: float = SECONDS) -> list[int | None]:
    """Wait until all *processes* or threads end; return the exit codes."""
    return [ended(process, seconds) for process in processes]


def run_at_once(call: Callable[[], object], count: int) -> None:
    """Run *call* in *count* threads at the same time, and wait until all end."""
    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    all_ended(threads)


def pid_ended(number: int, seconds: float = SECONDS) -> int:
    """Wait until the child with this process *number* ends; return its status."""
    waiter = threading.Timer(seconds, os.kill, (number, 9))
    waiter.daemon = True
    waiter.start()
    try:
        return os.waitpid(number, 0)[1]
    finally:
        waiter.cancel()
