"""The steps of long work, for somebody who watches: the playground shows them, and can stop.

Work calls `tell_step` at each step. Without a watcher that costs nothing. A watcher that raises
`WorkStopped` ends the work, as Ctrl-C does: every block cleans up, and the model is as before.

A method that remembers a result instead of computing it again calls `tell_spared`. So the seconds
of an edit do not depend on what was computed before it.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class WorkStopped(KeyboardInterrupt):
    """A watcher asked the work to end. No plugin may hold it back."""


@dataclass(frozen=True)
class Step:
    """A step of long work: its number from 1 on, and how many there are at most, if known."""

    work: str
    done: int
    total: int | None = None
    loss: float | None = None
    """The loss before this step, in nats; None if the work has no loss."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """The parts of the result that are known now, as JSON values."""


_watcher: ContextVar[Callable[[Step], object] | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Callable[[Step], object]) -> Iterator[None]:
    """Call *watcher* at each step of the work in the block, in the thread of the work."""
    before = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(before)


def tell_step(
    work: str, done: int, total: int | None = None, loss: float | None = None, **found: Any
) -> None:
    """Tell the watcher, if there is one, that step *done* of *work* is done; see `Step`."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(Step(work, done, total, loss, found))


_spared: ContextVar[list[float] | None] = ContextVar("spared", default=None)


@contextmanager
def spared_seconds() -> Iterator[list[float]]:
    """The list of the seconds that `tell_spared` tells in the block."""
    seconds: list[float] = []
    before = _spared.set(seconds)
    try:
        yield seconds
    finally:
        _spared.reset(before)


def tell_spared(seconds: float) -> None:
    """Tell how many *seconds* a remembered result took when it was computed."""
    spared = _spared.get()
    if spared is not None:
        spared.append(seconds)
