"""The guard around every hook of a method: it redirects prints and turns errors into ours.

The running command owns stdout, so prints of a plugin go to stderr. An exception of a hook, unless
it is an error of ours, becomes a `HookError` that names the method, the hook and the line.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lmedit import hookspecs
from lmedit.errors import HookError, LmeditError
from lmedit.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    import pluggy

HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("edit_"))


FORKED = 70
"""The exit code of a process that a plugin forked, and that came back from the plugin."""


@contextmanager
def prints_aside() -> Iterator[None]:
    """Send prints in the block to stderr. A process that was forked in the block ends with it."""
    process = os.getpid()
    with redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            sys.stderr.flush()
            if os.getpid() != process:
                os._exit(FORKED)  # else it would do the rest of our work a second time


EDIT_VARIABLE, PREPARE_VARIABLE = "LMEDIT_EDIT_TIMEOUT", "LMEDIT_PREPARE_TIMEOUT"
"""The seconds that a hook of one edit, and `edit_prepare`, may take; unset or 0: no limit."""
IMPORT_SECONDS = 120.0
"""The seconds that the import of a plugin, and `edit_plan`, may take."""
FLAGS = {EDIT_VARIABLE: "--edit-timeout", PREPARE_VARIABLE: "--prepare-timeout"}
"""The flags that set these variables."""
LIMITED = {"edit_prepare": PREPARE_VARIABLE} | dict.fromkeys(
    (
        *("edit_locate", "edit_compute", "edit_compute_many", "edit_compute_joint"),
        *("edit_probe", "edit_apply", "edit_revert"),
    ),
    EDIT_VARIABLE,
)
"""The variable that limits each hook. The limit of `edit_compute_many` is for each request."""


class TimeUpError(BaseException):
    """A hook or an import took longer than it may. A bare `except Exception` does not hide it."""


@contextmanager
def time_limit(hook: str, times: int = 1) -> Iterator[None]:
    """Raise `TimeUpError` in the block if *hook* takes longer than the user allows, *times* over.

    `edit_plan` only estimates, so it has the limit of an import.
    """
    variable = LIMITED.get(hook)
    text = os.environ.get(variable, "") if variable else ""
    try:
        seconds = times * float(text or 0)
    except ValueError:
        seconds = 0.0
    with at_most(IMPORT_SECONDS if hook == "edit_plan" else seconds):
        yield


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `TimeUpError` in the block after *seconds*, again and again until it ends.

    Zero is no limit. Only the main thread of a system with interval timers has limits.
    """
    main = threading.current_thread() is threading.main_thread()
    if not 0 < seconds < FOREVER or not main or not hasattr(signal, "setitimer"):
        yield
        return

    over = False

    def ring(*_: object) -> None:
        if over:
            return
        raise TimeUpError(f"it took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    rest, again = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        with _ended_after(seconds + GRACE):
            yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if rest:
            signal.setitimer(signal.ITIMER_REAL, rest, again)


FOREVER, AGAIN = 1e8, 1.0
GRACE = 5.0
"""How many seconds later a process of its own ends if the hook does not return to Python."""
_alone: list[bool] = []
"""Whether this process belongs to one method, and how often it is watched now."""


def alone_here() -> None:
    """Tell that this process belongs to one method: then a limit may end the whole process."""
    _alone.append(True)


@contextmanager
def _ended_after(seconds: float) -> Iterator[None]:
    """End this process after *seconds*, if it belongs to one method. A thread outside Python does.

    So it also ends code that never returns to Python.
    """
    if len(_alone) != 1:
        yield
        return
    _alone.append(True)
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            _alone.pop()


def implementations(manager: pluggy.PluginManager, *hooks: str) -> list[pluggy.HookImpl]:
    """The implementations of *hooks* in *manager*; wrappers are left out."""
    found = (each for hook in hooks for each in getattr(manager.hook, hook).get_hookimpls())
    return [each for each in found if not (each.wrapper or each.hookwrapper)]


def implements(manager: pluggy.PluginManager, hook: str) -> bool:
    """Whether a plugin of *manager* implements *hook*; wrappers do not count."""
    return bool(implementations(manager, hook))


def guard_of(culprit: str, plugin: object) -> ModuleType:
    """A plugin that wraps all hooks of the method *plugin*; errors call it *culprit*."""

    def work(hook: str, times: int = 1) -> Generator[None, Any, Any]:
        with prints_aside(), time_limit(hook, times):
            try:
                return (yield)
            except (LmeditError, KeyboardInterrupt):
                raise
            except BaseException as error:
                what = f"{hook} raised {last_line(error)}{_place(error, plugin)}"
                raise HookError(f"{culprit}: {what}{_more_time(error, hook)}") from error

    def around(hook: str) -> Callable[..., Generator[None, Any, Any]]:
        @hookimpl(wrapper=True, tryfirst=True)
        def wrapper() -> Generator[None, Any, Any]:
            return (yield from work(hook))

        return wrapper

    @hookimpl(wrapper=True, tryfirst=True)
    def edit_compute_many(requests: Sequence[Any]) -> Generator[None, Any, Any]:
        return (yield from work("edit_compute_many", len(requests)))

    hooks = {hook: around(hook) for hook in HOOKS}
    return plugin_of("guard", hooks | {"edit_compute_many": edit_compute_many})


def _more_time(error: BaseException, hook: str) -> str:
    """The remedy if *error* says that *hook* took too long; else empty."""
    if not isinstance(error, TimeUpError) or hook not in LIMITED:
        return ""
    return f"; give it more time with {FLAGS[LIMITED[hook]]}, or use another method"


def plugin_of(name: str, hooks: Mapping[str, Any]) -> ModuleType:
    """A plugin with these *hooks*; a module, because pluggy needs a hashable object."""
    module = ModuleType(name)
    vars(module).update(hooks)
    return module


def one_of_many(manager: pluggy.PluginManager) -> ModuleType:
    """A plugin that computes one request by the joint hook of *manager*, with nothing carried."""

    @hookimpl(trylast=True)
    def edit_compute(lm: Any, request: Any, location: Any, options: Any, prepared: Any) -> Any:
        return manager.hook.edit_compute_joint(
            lm=lm,
            requests=[request],
            locations=[location],
            options=options,
            prepared=prepared,
            carried=(),
        )

    return plugin_of("one_of_many", {"edit_compute": edit_compute})


def last_line(error: BaseException) -> str:
    """The type of *error* and the last line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


def _place(error: BaseException, plugin: object) -> str:
    """The place of the error in the files of *plugin*, in brackets; empty if unknown."""
    top = str(getattr(plugin, "__name__", "")).partition(".")[0]
    file = getattr(sys.modules.get(top, plugin), "__file__", None)
    if file is None:
        return ""
    own = Path(file)
    within = str(own.parent) if own.name == "__init__.py" else file
    places = [f for f in extract_tb(error.__traceback__) if f.filename.startswith(within)]
    return f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
