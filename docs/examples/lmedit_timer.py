"""lmedit_timer.py: an observer that tells the seconds of each hook on stderr."""

import sys
import time
from collections.abc import Generator
from typing import Any

from lmedit import hookimpl


def _time_hook(hook: str) -> Generator[None, Any, Any]:
    started = time.perf_counter()
    try:
        return (yield)
    finally:
        sys.stderr.write(f"{hook}: {time.perf_counter() - started:.3f} s\n")


@hookimpl(wrapper=True)
def edit_prepare() -> Generator[None, Any, Any]:
    return (yield from _time_hook("edit_prepare"))


@hookimpl(wrapper=True)
def edit_locate() -> Generator[None, Any, Any]:
    return (yield from _time_hook("edit_locate"))


@hookimpl(wrapper=True)
def edit_compute() -> Generator[None, Any, Any]:
    return (yield from _time_hook("edit_compute"))


@hookimpl(wrapper=True)
def edit_compute_many() -> Generator[None, Any, Any]:
    return (yield from _time_hook("edit_compute_many"))


@hookimpl(wrapper=True)
def edit_apply() -> Generator[None, Any, Any]:
    return (yield from _time_hook("edit_apply"))


@hookimpl(wrapper=True)
def edit_revert() -> Generator[None, Any, Any]:
    return (yield from _time_hook("edit_revert"))
