"""End the program with an exit code and at most one line, also after a signal or a bug."""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
import threading
from contextlib import suppress

import click

from lmedit.executors.signals import Stopped, signals_end
from lmedit.storage.escapes import for_terminal

__all__ = [
    "OwnStdout",
    "Stopped",
    "close_stdout",
    "keep_stdout",
    "line_of",
    "open_streams",
    "signals_end",
    "tell_end",
]


def open_streams() -> None:
    """Make every stream writable for every text. A closed stream becomes the null device."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


class OwnStdout(io.TextIOWrapper):
    """The command's own way to stdout, for the main thread of this process alone.

    What a thread or a forked process of a plugin prints goes to stderr.
    """

    def __init__(self, handle: int, encoding: str, *, by_line: bool) -> None:
        """*handle* is an open descriptor; *by_line* tells whether a person reads along."""
        raw = open(handle, "wb", buffering=-1)  # noqa: SIM115
        super().__init__(raw, encoding, "backslashreplace", line_buffering=by_line)
        self.process = os.getpid()

    def write(self, text: str) -> int:
        """Write *text* to stdout, or to stderr if somebody else calls."""
        main = threading.current_thread() is threading.main_thread()
        if main and os.getpid() == self.process:
            return super().write(text)
        return sys.stderr.write(text)


def keep_stdout() -> None:
    """Keep stdout for the command. Descriptor 1 becomes stderr, also for processes started here.

    So a plugin that starts a program, or writes to descriptor 1, cannot damage the JSON there.
    """
    try:
        if sys.stdout.fileno() != 1:
            return  # a test or a notebook holds stdout
        sys.stdout.flush()
        kept = os.dup(1)
    except (OSError, ValueError, AttributeError):
        return
    sys.stdout = OwnStdout(kept, sys.stdout.encoding, by_line=sys.stdout.isatty())
    try:
        os.dup2(2, 1)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)


def close_stdout() -> None:
    """Let what runs at the very end of the program print to stderr."""

    def close() -> None:
        if isinstance(sys.stdout, OwnStdout):
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            sys.stdout = sys.stderr

    atexit.register(close)


def tell_end(error: BaseException) -> int:
    """Print the line of *error* on stderr, if a user can cause it; return the exit code.

    Raises *error* again if it is a bug.
    """
    if isinstance(error, click.ClickException):
        told = io.StringIO()
        error.show(file=told)
        click.echo(for_terminal(told.getvalue()), err=True, nl=False)
        return error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        cause = error if isinstance(error, Stopped) else error.__cause__
        if isinstance(cause, Stopped):
            _line(f"stopped by {signal.Signals(cause.number).name}")
            return 128 + cause.number
        _line("stopped by Ctrl-C")
        return 1
    if isinstance(error, OSError | MemoryError):
        if isinstance(error, OSError):
            _mute_stdout()
        _line(f"Error: {line_of(error)}")
        return 1
    raise error


def line_of(error: OSError | MemoryError) -> str:
    """What *error* of the system says, and the remedy, in one line."""
    if isinstance(error, MemoryError):
        return "the memory does not suffice; give a smaller model, --dtype or --limit"
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}; make room, or give another place"


def _line(text: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{for_terminal(' '.join(text.split()))}\n")
        sys.stderr.flush()


def _mute_stdout() -> None:
    """Discard the buffer of stdout, so that Python does not try to write it at exit."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
