"""Other processes that share a run's work, each with a model of its own."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING

from lmedit.cli.common import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def worker_processes(workers: int, work: Callable[[], object]) -> Iterator[None]:
    """The other workers, each a process that does what nobody else is at; gone when this ends.

    *work* is sent to them. The cores' threads are shared out. One that dies loses nothing: its
    task is taken over.
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
        for other in others:
            other.terminate()
            other.join()


def _help(work: Callable[[], object], threads: int) -> None:
    """What another worker does; what stops it is told in a line, and its work is left to others."""
    import torch
    from transformers.utils import logging

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # to clean up behind itself
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    try:
        work()
    except Exception as error:  # noqa: BLE001
        note(f"a worker stopped, the others go on: {' '.join(str(error).split())}")
