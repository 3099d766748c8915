"""Work in parts that fit into memory: a part that does not fit is done in halves."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")

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
