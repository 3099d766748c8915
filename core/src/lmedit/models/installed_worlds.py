"""Installed worlds: models that come with records and text, found by their entry points."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from lmedit.errors import ModelError, UnknownNameError
from lmedit.models.refusals import first_line
from lmedit.types import World

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

WORLDS = "lmedit.worlds"


def worlds() -> dict[str, World]:
    """The installed worlds by name: models that come with records and text; no broken ones."""
    found = {}
    for point in entry_points(group=WORLDS):
        with suppress(ModelError):
            found[point.name] = _load_world(point)
    return found


def _load_world(point: EntryPoint) -> World:
    """Import the world of *point*. Raises `ModelError` that names it."""
    try:
        loaded = point.load()
        if not isinstance(loaded, World):
            raise TypeError(f"it is {type(loaded).__name__}, not World")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        what = f"the world {point.name!r} cannot be loaded ({type(error).__name__}: "
        what += f"{first_line(error)})"
        raise ModelError(f"{what}; correct it, or uninstall it") from error
    return loaded


def check_world(name: str) -> None:
    """Raise `ModelError` if a world called *name* is installed, but cannot be loaded."""
    for point in entry_points(group=WORLDS):
        if point.name == name:
            _load_world(point)


def world(name: str) -> World:
    """The world *name*; raises `UnknownNameError`."""
    known = worlds()
    if name not in known:
        raise UnknownNameError("world", name, known)
    return known[name]
