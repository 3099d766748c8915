"""Hold signals back during lines that must run to their end; give locks back after any of them."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)
)
"""The signals that ask a process to end. The last one is given back last."""


@contextmanager
def own_turn(lock: Any) -> Iterator[None]:
    """Hold the `threading.RLock` *lock* in the block.

    The outermost block of a thread gives it back whole, also after an interrupt at any bytecode. A
    ``with lock`` does not: it can end between the lock and the block. Then other threads would wait
    for ever.
    """
    inner, taken = lock._is_owned(), False
    try:
        try:
            lock.acquire()
            taken = True
            yield
        finally:
            if inner and taken and lock._is_owned():  # unless the outer block was left before
                lock.release()
            _give_back(lock, inner=inner)
    except BaseException:
        _give_back(lock, inner=inner)  # again, because the interrupt may have hit the first call
        raise


def _give_back(lock: Any, *, inner: bool) -> None:
    """Release *lock* as often as this thread holds it; an inner block leaves that to the outer."""
    while not inner and lock._is_owned():
        lock.release()


@contextmanager
def signals_later() -> Iterator[None]:
    """Hold the signals that end a process; deliver them after the block.

    Python delivers signals to the main thread alone, so other threads have nothing to hold.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not None:  # None: not set by Python, so Python cannot set it again
                signal.signal(number, lambda number, _: held.append(number))
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
        for number in dict.fromkeys(held):
            signal.raise_signal(number)
