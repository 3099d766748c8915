"""Find executors by name: those of the core, and installed ones. None is imported to list it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lmedit.errors import BrokenPluginError, LmeditError, UnknownNameError, one_line
from lmedit.executors import GROUP
from lmedit.storage.installed import entry_points

if TYPE_CHECKING:
    from lmedit.executors import Executor

BUILT_IN = {
    "local": "lmedit.executors.local",
    "processes": "lmedit.executors.processes",
}
"""The executors of the core, by name: the modules that hold them."""
ATTRIBUTES = ("start", "describe", "elastic", "options")
"""What an executor must have."""
OFFERED = {"ray": "lmedit-ray"}
"""Executors of this project that are distributions of their own."""


def executor_names() -> list[str]:
    """The names of all executors that are installed, those of the core first."""
    found = {point.name for point in entry_points(GROUP)}
    return [*BUILT_IN, *sorted(found - BUILT_IN.keys())]


def find_executor(name: str) -> Executor:
    """The executor *name*. Raises `UnknownNameError` or `BrokenPluginError`."""
    if name in BUILT_IN:
        built_in: Executor = import_module(BUILT_IN[name]).executor
        return built_in
    found = {point.name: point for point in entry_points(GROUP)}
    if name not in found and name in OFFERED:
        raise BrokenPluginError(
            f"executor {name!r} is not installed; run: pip install {OFFERED[name]}"
        )
    if name not in found:
        raise UnknownNameError("executor", name, executor_names())
    try:
        loaded: Any = found[name].load()
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise BrokenPluginError(f"executor {name!r} cannot be loaded: {why}") from error
    missing = [each for each in ATTRIBUTES if getattr(loaded, each, None) is None]
    if missing:
        raise BrokenPluginError(f"executor {name!r} has no {missing[0]}; correct its plugin")
    executor: Executor = loaded
    return executor


def describe_executors() -> dict[str, str]:
    """What `lmedit doctor` tells of each executor, in one line each."""
    told = {}
    for name in executor_names():
        try:
            told[name] = find_executor(name).describe()
        except LmeditError as error:
            told[name] = f"broken {one_line(error)}"
        except Exception as error:  # noqa: BLE001  (a plugin may raise anything)
            told[name] = f"broken {type(error).__name__}: {one_line(error)}"
    for name, distribution in OFFERED.items():
        told.setdefault(name, f"not installed; run: pip install {distribution}")
    return told
