"""Child processes of lmedit: what each does first, and how they end."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import parent_process
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.process import BaseProcess

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
