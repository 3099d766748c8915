"""Commands of one method: a method of another project, or an observer, gets a process of its own.

What it does to its process reaches nothing else. If the process ends, the command is one line, and
stdout stays empty. The command itself is the same in both cases.
"""

from __future__ import annotations

import io
import sys
import tempfile
import threading
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import note, note_elsewhere
from lmedit.errors import BrokenPluginError, LmeditError, UsageError, one_line
from lmedit.storage.atomic import place_result, results_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lmedit.compare.worker import Ended
    from lmedit.plan import Plan
    from lmedit.registry import MethodEntry

    Command = Callable[..., None]

OURS = frozenset(
    f"lmedit-{name}" for name in ("rome", "ft", "kn", "ke", "mend", "memit", "ultraedit")
)
"""The distributions of this project. By default their methods share a process."""
ONE_WORKER: dict[str, Any] = {
    "workers": (1, 1),
    "executor": None,
    "address": None,
    "executor_options": (),
}
"""The values of the flags of `engine_flags` for a command that works alone."""
MOST_ENDS = 5
"""How often the process of a method may end; then nothing of it is tried again."""

isolate_flag = click.option(
    "--isolate/--no-isolate",
    default=None,
    help="Run the command in a process of its own, or not.  [default: only for methods of other "
    "projects, and with observers]",
)


def find_ours() -> list[str]:
    """The names of this project's methods that are installed and not broken."""
    from lmedit.registry import entries

    return [each.name for each in entries() if each.state == "ok" and each.distribution in OURS]


def leave_out_foreign(plan: Plan) -> tuple[Plan, list[str]]:
    """*plan* without the methods of other projects, if it names no method; a line for each.

    It is for a command that offers methods, and runs them later. None of them is imported.
    """
    from lmedit.registry import entries

    if plan.methods:
        return plan, []
    foreign = [each for each in entries() if each.state == "ok" and each.distribution not in OURS]
    told = [
        f"left out: method {each.name!r} of {each.distribution} is not of this project; name it "
        "in --methods if you trust it"
        for each in foreign
    ]
    return replace(plan, others=tuple(each.name for each in foreign)), told


def runs_method(command: Command) -> Command:
    """Run *command* in a process of its own if the user's method is not ours, or is observed."""

    def run_away(given: dict[str, Any]) -> None:
        if given.get("fact") is not None:
            given["fact"] = given["fact"].read()
        _finish(_ask_once(given))

    return _here_or(command, run_away)


def _here_or(command: Command, run_away: Callable[[dict[str, Any]], None]) -> Command:
    """*command*, which `run_away` runs if its code needs a process of its own."""

    @wraps(command)
    def run(**given: Any) -> None:
        from lmedit.cli.processes import is_asked

        isolate = given.pop("isolate", None)
        if is_asked() or not _needs_process(given, isolate=isolate):
            command(**given)
        else:
            run_away(given)

    return run


def _needs_process(given: Mapping[str, Any], *, isolate: bool | None) -> bool:
    """Whether code that is not ours would run, unless the user chose (*isolate*)."""
    if isolate is not None:
        return isolate
    names: Sequence[str] = given.get("methods") or [str(given["method"])]
    if given.get("plugins") or given.get("observers") or any(n.endswith(".py") for n in names):
        return True
    from lmedit.registry import entries

    return any(
        each.name in names and each.state == "ok" and each.distribution not in OURS
        for each in entries()
    )


def runs_tasks(command: Command) -> Command:
    """As `runs_method`, for a command that keeps finished tasks in the run folder `folder`.

    If the process ends, its task is a failure, and another process goes on.
    """

    def run_away(given: dict[str, Any]) -> None:
        folder: Path = given["folder"] or new_run(command.__name__)
        try:
            _finish(_ask_again(given, folder))
        finally:
            if given["folder"] is None:
                with suppress(OSError):
                    folder.rmdir()  # only if nothing is in it

    return _here_or(command, run_away)


def new_run(name: str) -> Path:
    """A new folder for the results of the command *name*."""
    from lmedit.storage.atomic import new_folder

    return new_folder(Path("runs"), f"{name}-{datetime.now():%Y%m%d-%H%M%S}")


def _ask_again(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the present command tells; a process that ends is followed by another one."""
    from lmedit.cli.processes import EndedError
    from lmedit.compare.store import FILE, RunStore
    from lmedit.compare.worker import Ended

    given, after = {**given, "folder": folder}, None
    for ends in range(MOST_ENDS + 1):
        try:
            return _ask(given, after)
        except EndedError as error:
            if not error.again or not (folder / FILE).is_file() or ends == MOST_ENDS:
                raise tell_end(given, error) from error
            why = f"{_culprit(given)}: {error}"
        note(f"{why}; another process goes on")
        if ends == 0:
            with RunStore(folder) as store:
                store.forget_ended()
        given, after = {**given, **ONE_WORKER}, Ended(why)
    raise AssertionError("the loop returns or raises")


def _ask_once(given: dict[str, Any]) -> dict[str, Any]:
    """What the present command tells. Raises `BrokenPluginError` if its process ends."""
    from lmedit.cli.processes import EndedError

    try:
        return _ask(given, None)
    except EndedError as error:
        raise tell_end(given, error) from error


def _ask(given: dict[str, Any], after: Ended | None) -> dict[str, Any]:
    """What the present command tells when it runs with *given* in a process of its own."""
    from lmedit.cli.processes import ask

    context = click.get_current_context()
    names = [str(each.name) for each in context.command.params]
    sources = {name: source for name in names if (source := context.get_parameter_source(name))}
    encoding = str(getattr(sys.stdout, "encoding", None) or "utf-8")
    with tempfile.TemporaryDirectory(prefix="lmedit-") as folder:
        asked = (context.command.name, given, sources, encoding, after, folder)
        told: dict[str, Any] = ask(run_here, *asked)
        for name, place in told["results"]:
            place_result(Path(folder) / name, Path(place))
    for text in told["notes"]:
        note(text)
    return told


def _culprit(given: Mapping[str, Any]) -> str:
    """The foreign code of the command, as error messages name it."""
    observers = [f"observer {name}" for name in given.get("observers", ())]
    methods = [f"method {name!r}" for name in given.get("methods") or [given["method"]]]
    return " or ".join([*methods, *observers])


def tell_end(given: Mapping[str, Any], error: Exception) -> BrokenPluginError:
    """The error of a command with the values *given* whose process ended with *error*."""
    remedy = "correct it (--no-isolate shows where), or use another"
    return BrokenPluginError(f"{_culprit(given)}: {error}; {remedy}")


def _finish(told: Mapping[str, Any]) -> None:
    """Print what a process of `run_here` told, and end as it ended."""
    click.echo(told["out"], nl=False)
    if told["kind"] == "usage":
        raise click.UsageError(told["error"], click.get_current_context())
    if told["kind"] == "error":
        raise click.ClickException(told["error"])
    if told["code"]:
        raise click.exceptions.Exit(told["code"])


class Collected(io.StringIO):
    """What a command prints in a process of its own. What threads of a plugin print is no part."""

    def __init__(self, encoding: str) -> None:
        """*encoding* is that of the user's stdout."""
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the user's stdout."""
        return self._encoding

    def write(self, text: str) -> int:
        """Collect *text*, or write it to stderr if a thread calls."""
        if threading.current_thread() is threading.main_thread():
            return super().write(text)
        return sys.stderr.write(text)


def run_here(
    name: str,
    given: dict[str, Any],
    sources: dict[str, Any],
    encoding: str,
    after: Ended | None,
    folder: str,
) -> dict[str, Any]:
    """Run the command *name* with the parsed values *given*: the work of its own process.

    *sources* tell where each value comes from. Returns what the command printed, how it ended, and
    the files that it wrote into *folder*: the process that asked puts them in their places. So
    nothing is written, and no note tells of a file, if this process ends without an answer.
    """
    with results_wait(Path(folder)) as results, late_notes(results) as notes:
        told = _run_command(name, given, sources, encoding, after)
    return {**told, "results": [] if told["kind"] else results, "notes": notes}


@contextmanager
def late_notes(results: Sequence[object]) -> Iterator[list[str]]:
    """Collect the notes of the block that come when there are *results* already."""
    notes: list[str] = []
    tell = note_elsewhere[0] if note_elsewhere else None

    def keep(text: str) -> None:
        if results or tell is None:
            notes.append(text)
        else:
            tell(text)

    note_elsewhere[:0] = [keep]
    try:
        yield notes
    finally:
        note_elsewhere.remove(keep)


def _run_command(
    name: str, given: dict[str, Any], sources: dict[str, Any], encoding: str, after: Ended | None
) -> dict[str, Any]:
    """What the command *name* prints, and how it ends."""
    import warnings

    from lmedit.cli import main
    from lmedit.cli.endings import line_of, open_streams
    from lmedit.errors import UnsoundEditWarning

    open_streams()
    warnings.simplefilter("ignore", UnsoundEditWarning)
    command = main.commands[name]
    context = click.Context(command, info_name=name, obj=after)
    for parameter, source in sources.items():
        context.set_parameter_source(parameter, source)
    if isinstance(given.get("fact"), str):
        given["fact"] = io.StringIO(given["fact"])
    out, kind, error, code = Collected(encoding), "", "", 0
    try:
        with redirect_stdout(out), context:
            assert command.callback is not None
            command.callback(**given)
    except click.exceptions.Exit as ended:
        code = ended.exit_code
    except click.ClickException as wrong:
        kind = "usage" if isinstance(wrong, click.UsageError) else "error"
        error = wrong.format_message()
    except UsageError as wrong:
        kind, error = "usage", str(wrong)
    except LmeditError as wrong:
        kind, error = "error", one_line(wrong)
    except (OSError, MemoryError) as wrong:
        kind, error = "error", line_of(wrong)
    return {"out": out.getvalue(), "kind": kind, "error": error, "code": code}


# ---- what methods say when they are loaded


def check_entries(found: Sequence[MethodEntry]) -> list[MethodEntry]:
    """Load each method of *found*. Those that cannot be loaded come back as broken.

    A method of another project is loaded in a process of its own.
    """
    from lmedit.cli.processes import EndedError, ask
    from lmedit.registry import check_entry

    checked = []
    for entry in found:
        if entry.distribution in OURS or entry.state != "ok":
            checked.append(check_entry(entry))
            continue
        try:
            told = ask(look_at, entry.name)
        except EndedError as error:
            told = {"state": "broken", "reason": f"method {entry.name!r}: {error}"}
        checked.append(replace(entry, **told))
    return checked


def look_at(name: str) -> dict[str, str]:
    """The state of the method *name* after loading it, and the reason: the work of a process."""
    from lmedit.registry import check_entry, entries

    (entry,) = (check_entry(each) for each in entries() if each.name == name)
    return {"state": entry.state, "reason": entry.reason}
