"""Observers: plugins that watch the hooks of methods. They cannot change or break an edit.

An observer has hooks with the names of a method's hooks. Each is a wrapper with one bare
``yield``::

    @hookimpl(wrapper=True)
    def edit_compute(request):
        started = time.perf_counter()
        result = yield                  # the method works
        ...                             # time.perf_counter() - started
        return result

The observer starts before the method's hook. It then receives the result, or the error is
raised in it. Its return value is dropped. If it raises an exception, that is printed on stderr
once for each hook, and the edit continues. It is an error if it writes into a result's tensors.
"""

from __future__ import annotations

import importlib.metadata
import sys
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from lmedit import hookspecs
from lmedit.errors import BrokenPluginError, UnknownNameError
from lmedit.guards.hooks import (
    HOOKS,
    IMPORT_SECONDS,
    at_most,
    last_line,
    plugin_of,
    prints_aside,
    time_limit,
)
from lmedit.hookspecs import hookimpl
from lmedit.registry import BUILT_IN, module_of
from lmedit.storage.escapes import for_terminal
from lmedit.types import Applied, Prepared, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from lmedit.registry import LoadedMethod

GROUP = "lmedit.observers"
"""The entry points of installed observers. An observer watches only if the user names it."""


def observer(name: str) -> object:
    """Load the observer *name*: an installed one, or a Python file.

    Raises `UnknownNameError` or `BrokenPluginError`.
    """
    if name.endswith(".py"):
        return module_of(Path(name))
    found = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if name not in found:
        raise UnknownNameError("observer", name, found)
    try:
        with prints_aside(), at_most(IMPORT_SECONDS):
            return found[name].load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BrokenPluginError(f"observer {name!r}: {last_line(error)}") from error


def observe(loaded: LoadedMethod, plugin: object, name: str = "observer") -> None:
    """Let the observer *plugin* watch *loaded*. Messages call it *name*.

    Raises `BrokenPluginError` if *plugin* is not an observer.
    """
    own = pluggy.PluginManager(hookspecs.PROJECT)
    own.add_hookspecs(hookspecs)
    try:
        own.register(plugin, name)
        own.check_pending()
    except Exception as error:
        raise BrokenPluginError(f"observer {name!r}: {last_line(error)}") from error
    watched = {}
    for hook in HOOKS:
        for implementation in getattr(own.hook, hook).get_hookimpls():
            if not implementation.wrapper:
                raise BrokenPluginError(
                    f"observer {name!r}: {hook} must be a @hookimpl(wrapper=True)"
                )
            watched[hook] = _watching(implementation.function, name)
    if not watched:
        raise BrokenPluginError(f"observer {name!r}: it has no hook to watch")
    number = len(loaded.manager.list_name_plugin())  # the same observer may watch twice
    loaded.manager.register(plugin_of(name, watched), f"{BUILT_IN}observer {number}")


def _watching(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Wrap *function*, so that its results and errors have no effect on the edit."""
    complained: list[str] = []
    hook = function.__name__

    def safely(step: Callable[..., Any], *arguments: Any, ends: bool) -> None:
        try:
            with time_limit(hook):
                step(*arguments)
            complaint = "it must yield once" if ends else ""
        except StopIteration:
            complaint = "" if ends else "it must yield once"
        except KeyboardInterrupt as error:
            if error not in arguments:
                raise
            complaint = ""
        except BaseException as error:  # noqa: BLE001  (an observer may raise anything)
            complaint = "" if error in arguments else last_line(error)
        if complaint and not complained:
            complained.append(complaint)
            text = f"observer {name!r}, {hook}: {complaint}; the edit continues\n"
            sys.stderr.write(for_terminal(text))
            sys.stderr.flush()

    @hookimpl(wrapper=True)
    @wraps(function)
    def wrapper(*arguments: Any) -> Generator[None, Any, Any]:
        watching = function(*arguments)
        safely(next, watching, ends=False)
        try:
            result = yield
        except BaseException as error:
            safely(watching.throw, error, ends=True)
            raise
        before = _write_counts(result)
        safely(watching.send, result, ends=True)
        if _write_counts(result) != before:
            raise BrokenPluginError(f"observer {name!r}: it changed the result of {hook}")
        return result

    return wrapper


def _write_counts(result: Any) -> list[int]:
    """Torch's write counters of the tensors in *result*."""
    if isinstance(result, list | tuple):
        return [count for each in result for count in _write_counts(each)]
    found: Iterable[Any] = ()
    if isinstance(result, Update):
        found = chain.from_iterable(vars(delta).values() for delta in result.deltas.values())
    elif isinstance(result, Prepared):
        found = result.tensors.values()
    elif isinstance(result, Applied):
        found = result.before.values()
    return [getattr(tensor, "_version", 0) for tensor in found]


def observe_all(methods: Sequence[LoadedMethod], names: Sequence[str]) -> None:
    """Let each observer of *names* watch each of *methods*; without methods, load none."""
    for name in names if methods else ():
        plugin = observer(name)
        for loaded in methods:
            observe(loaded, plugin, Path(name).name)
