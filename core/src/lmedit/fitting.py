"""Work in parts that fit into memory: a part that does not fit is done in halves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")
Thing = TypeVar("Thing")

COMPLAINTS = ("out of memory", "can't allocate memory", "not enough memory")
"""What allocators of devices without an error class of their own say."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether *error* says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(c in str(error).lower() for c in COMPLAINTS)


def in_parts(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], size: int
) -> Iterator[Result]:
    """What *work* makes of *items*, at most *size* at once, and half as many where memory ends.

    A size that did not fit is not tried again. Raises the allocator's error where one item alone
    does not fit.
    """
    start = 0
    while start < len(items):
        part = items[start : start + size]
        try:
            result = work(part)
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
            size = len(part) // 2
            continue
        yield result
        start += len(part)


class InPieces(Generic[Thing]):
    """Something that can be built in any number of pieces: of twice as many where memory ends."""

    def __init__(self, build: Callable[[int], Thing], most: int) -> None:
        """``build(pieces)`` makes it, of *most* pieces at the most; first of one."""
        self.build, self.most, self.pieces = build, most, 1
        self.thing: Thing | None = None

    def do(self, work: Callable[[Thing], Result]) -> Result:
        """What *work* gives; it is done anew in smaller pieces where it did not fit.

        Raises the allocator's error where the smallest pieces do not fit.
        """
        while True:
            try:
                if self.thing is None:
                    self.thing = self.build(self.pieces)
                return work(self.thing)
            except (RuntimeError, MemoryError) as error:
                if self.pieces >= self.most or not is_out_of_memory(error):
                    raise
            self.thing, self.pieces = None, min(2 * self.pieces, self.most)
