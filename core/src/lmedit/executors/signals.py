"""Signals that end a program or a worker, as exceptions that let every block clean up."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end. Every block cleans up, as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        """*number* is that of the signal."""
        super().__init__(number)
        self.number = number


ENDING = tuple(getattr(signal, n) for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n))


@contextmanager
def signals_end() -> Iterator[None]:
    """Raise `Stopped` in the block at SIGTERM and SIGHUP, unless the caller ignores these."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    mine = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in mine:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


def _stop(number: int, _: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second signal must not stop the cleaning up
    raise Stopped(number)
