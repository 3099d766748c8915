"""Call a function in a process of its own, and get its answer."""

from __future__ import annotations

import os
import sys
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from lmedit.cli.common import note, note_elsewhere
from lmedit.errors import LmeditError, how_ended, one_line
from lmedit.executors import error_from_text
from lmedit.executors.children import become_worker, end_workers
from lmedit.executors.signals import Stopped, signals_end
from lmedit.storage.json_files import dump_json, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

POLL_SECONDS = 0.2
SECONDS_TO_LEAVE = 5.0
"""How long a process may take to end by itself after its answer."""


class EndedError(Exception):
    """A process ended before it answered; the text says how."""

    def __init__(self, how: str, *, again: bool = True) -> None:
        """*again* tells whether another process may get further."""
        super().__init__(how)
        self.again = again


def ask(
    function: Callable[..., Any],
    *arguments: Any,
    hear: Callable[[Any], object] = note,
    check: Callable[[], object] = lambda: None,
) -> Any:
    """Call *function* in a process of its own, and return its answer, which is a JSON value.

    *hear* gets what the function tells with `tell_asker`. *check* is called several times in a
    second; if it raises an exception, the process is ended. Raises the `LmeditError` that the
    function raised, and `EndedError` if the process ends without an answer or another exception
    ends it.
    """
    made = _processes()
    here, there = made.Pipe(duplex=False)
    given = (there, dict(os.environ), function, arguments)
    process = made.Process(target=_answer, args=given)
    process.start()
    there.close()
    try:
        kind, value = _last_word(here, process, hear, check)
        process.join(SECONDS_TO_LEAVE)
    except (EOFError, OSError) as error:
        process.join(POLL_SECONDS)
        raise EndedError(_how(process.exitcode)) from error
    finally:
        end_workers([process])
        here.close()
    if kind == "answer":
        return value
    if kind == "bug":
        raise EndedError(value, again=False)
    raise error_from_text((kind, value))


def _processes() -> Any:
    """What makes processes: a server that has imported the libraries, and no plugin, forks them.

    Other systems than Linux start each process anew.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    made = get_context("forkserver")
    names = ["torch", "transformers.modeling_utils", "lmedit.actions.compare", "lmedit.cli"]
    made.set_forkserver_preload(names)
    return made


def _last_word(
    here: Connection,
    process: BaseProcess,
    hear: Callable[[Any], object],
    check: Callable[[], object],
) -> tuple[str, Any]:
    """What *process* sends at its end; *hear* gets its notes before."""
    while True:
        while not here.poll(POLL_SECONDS):
            check()
            if not process.is_alive() and not here.poll():
                raise EndedError(_how(process.exitcode))
        kind, value = parse_json(here.recv_bytes(), nan_is_none=True)
        if kind != "note":
            return kind, value
        hear(value)


def _how(code: int | None) -> str:
    """How a process with this exit *code* ended."""
    return "its process ended" if code is None else how_ended(code)


_line: list[Connection] = []
"""In a process that answers: the way to the one that asked."""


def is_asked() -> bool:
    """Whether this process answers another one, which asked it."""
    return bool(_line)


def tell_asker(told: Any) -> None:
    """Tell the process that asked *told*: a note, which is printed, or what its `hear` takes."""
    _line[0].send_bytes(dump_json(["note", told]).encode())


def _answer(
    there: Connection,
    variables: Mapping[str, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """Send what *function* returns, or the error that it raises. *variables* are the caller's."""
    os.environ.clear()
    os.environ.update(variables)
    from lmedit.guards.hooks import alone_here

    _line.append(there)
    note_elsewhere.append(tell_asker)
    alone_here()
    become_worker()
    mine = os.getpid()
    try:
        with signals_end():
            told = ["answer", function(*arguments)]
    except Stopped:
        return
    except LmeditError as error:
        told = [type(error).__name__, one_line(error)]
    except BaseException as error:  # noqa: BLE001  (the plugin may raise anything)
        told = ["bug", " ".join(f"{type(error).__name__}: {error}".split())[:500]]
    if os.getpid() == mine:
        there.send_bytes(dump_json(told).encode())
        there.close()
