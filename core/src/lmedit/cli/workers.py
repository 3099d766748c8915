"""Other processes that share a run's work. Each loads its own model."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING

from lmedit.cli.common import note
from lmedit.cli.endings import Stopped, signals_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.process import BaseProcess


@contextmanager
def worker_processes(workers: int, work: Callable[[], object]) -> Iterator[None]:
    """Run *work* in `workers - 1` other processes during the block, then stop them.

    *work* is pickled and sent to each process. The processes share the CPU threads equally. If a
    process dies, another one takes over its task.
    """
    import torch

    threads = max(1, torch.get_num_threads() // workers)
    spawn = get_context("spawn")
    others = [
        spawn.Process(target=_help, args=(work, threads), daemon=True) for _ in range(workers - 1)
    ]
    if others:
        torch.set_num_threads(threads)
    for other in others:
        other.start()
    try:
        yield
    finally:
        end_workers(others)


SECONDS_TO_STOP = 20.0
"""How long a worker may clean up; then lmedit kills it."""


def end_workers(others: Sequence[BaseProcess]) -> None:
    """End the processes *others*, those too that do not listen."""
    for other in others:
        other.terminate()
    until = time.monotonic() + SECONDS_TO_STOP
    for other in others:
        other.join(max(0.0, until - time.monotonic()))
    for other in others:
        if other.is_alive():
            other.kill()
            other.join(SECONDS_TO_STOP)


def become_worker() -> None:
    """Leave Ctrl-C to the parent, end as soon as the parent ends, and have bars of one's own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a killed process leaves behind


def _end_with_parent() -> None:
    """End this process as soon as its parent ends, however that ended."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _help(work: Callable[[], object], threads: int) -> None:
    """Run *work* in a worker process. On an error, print one line; the others continue."""
    import torch
    from transformers.utils import logging

    become_worker()
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    try:
        with signals_end():  # not an exit: the guard of a hook would take that for its failure
            work()
    except Stopped:
        pass
    except Exception as error:  # noqa: BLE001
        note(f"a worker stopped; the others continue: {' '.join(str(error).split())}")
