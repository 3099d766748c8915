"""Child processes of lmedit: what each does first, and how they end."""

from __future__ import annotations

import ctypes
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
    """Leave Ctrl-C to the parent, end as soon as the parent ends, and have bars of one's own.

    Freed memory stays with the worker: it computes one edit after the other.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a killed process leaves behind
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let this process reuse the memory that it frees, without giving it back to the system.

    glibc gives a large tensor's memory back at once, and the system clears each page of the next
    one. Passes over many rows spend up to a tenth of their time with that. The process holds its
    largest memory until it ends. Other C libraries are left as they are.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if set_option is not None:
        set_option(M_MMAP_MAX, 0)
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""The numbers of glibc's options of malloc: free memory at the top to give back, large blocks."""


def _end_with_parent() -> None:
    """End this process as soon as its parent ends, however that ended."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
