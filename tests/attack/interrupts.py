"""Raise an interrupt at one bytecode after another of chosen functions."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType


class Interrupt(KeyboardInterrupt):
    """The interrupt of this test."""


def interrupted(
    act: Callable[[], object], codes: set[CodeType], place: int
) -> tuple[bool, BaseException | None]:
    """Run *act*, and raise `Interrupt` at bytecode number *place* that runs in *codes*.

    Returns whether it was raised, and the error that *act* ended with.
    """
    count, raised = 0, False

    def at_bytecode(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count, raised
        if event != "opcode" or raised:
            return at_bytecode
        count += 1
        if count > place:
            raised = True
            raise Interrupt
        return at_bytecode

    def at_call(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code not in codes:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return at_bytecode

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        act()
    except BaseException as error:  # noqa: BLE001  (the interrupt, whatever became of it)
        error.__traceback__ = None  # its frames would keep generators alive
        return raised, error
    finally:
        sys.settrace(before)
    return raised, None


def each_place(
    act: Callable[[], object], codes: set[CodeType], step: int = 1
) -> Iterator[BaseException | None]:
    """Interrupt *act* at every *step*-th bytecode until it ends before the place is reached."""
    place = 0
    while True:
        raised, error = interrupted(act, codes, place)
        if not raised:
            return
        yield error
        place += step
