"""Installed worlds: models that come with records and text, found by their entry points.

The code of a world of another project runs in a process of its own, which tells the world's
values. So it cannot end, block or change the process of the user.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmedit.errors import ModelError, UnknownNameError, how_ended
from lmedit.models.refusals import first_line
from lmedit.storage.installed import entry_points
from lmedit.storage.json_files import parse_json
from lmedit.types import World

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

WORLDS = "lmedit.worlds"
OURS = frozenset({"lmedit-demo", "lmedit-smollm2"})
"""The distributions of this project. Their code runs in the process of the user."""
SECONDS = 120.0
"""The longest time of the import of a world."""
CHILD = Path(__file__).with_name("world_child.py")


class Worlds(Mapping[str, World]):
    """The installed worlds by name. A world is imported when it is asked for, not before.

    Names of worlds that cannot be loaded are there too; their values raise `KeyError`.
    """

    def __init__(self) -> None:
        """Read the names; import nothing."""
        self._points = {point.name: point for point in entry_points(group=WORLDS)}

    def __getitem__(self, name: str) -> World:
        """The world *name*. Raises `KeyError` if there is none, or it cannot be loaded."""
        try:
            return _load_world(self._points[name])
        except ModelError as error:
            raise KeyError(name) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)


def worlds() -> Worlds:
    """The installed worlds by name: models that come with records and text."""
    return Worlds()


def _load_world(point: EntryPoint) -> World:
    """Import the world of *point*. Raises `ModelError` that names it."""
    dist = getattr(point, "dist", None)
    if dist is not None and str(dist.name).lower().replace("_", "-") not in OURS:
        found = _ask(point.value, tuple(sys.path))
        loaded = World(**found) if isinstance(found, dict) else None
        why = "" if loaded else str(found)
    else:
        loaded, why = _import(point)
    if loaded is None:
        what = f"the world {point.name!r} cannot be loaded ({why})"
        raise ModelError(f"{what}; correct it, or uninstall it")
    return loaded


def _import(point: EntryPoint) -> tuple[World | None, str]:
    """The world of *point*, imported here; or None and the reason."""
    try:
        loaded = point.load()
        if isinstance(loaded, World):
            return loaded, ""
        raise TypeError(f"it is {type(loaded).__name__}, not World")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  (a world may raise anything)
        return None, f"{type(error).__name__}: {first_line(error)}"


@cache
def _ask(value: str, places: tuple[str, ...]) -> dict[str, Any] | str:
    """The values of the world *value* (``module:name``), imported in a process; or the reason.

    *places* are the folders of modules. A world is asked once.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "world.json"
        asked = json.dumps({"value": value, "places": places, "out": str(out)}).encode()
        run, nowhere = [sys.executable, "-P", str(CHILD)], subprocess.DEVNULL
        try:
            done = subprocess.run(  # noqa: S603
                run, input=asked, stdout=nowhere, stderr=nowhere, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return f"its import took more than {SECONDS:g} s"
        if not out.is_file():
            return how_ended(done.returncode)
        try:
            told = parse_json(out.read_bytes())
            return {n: Path(v[0]) if isinstance(v, list) else v for n, v in told["world"].items()}
        except KeyError:
            return first_line(ModelError(told.get("why")))


def check_world(name: str) -> None:
    """Raise `ModelError` if a world called *name* is installed, but cannot be loaded."""
    for point in entry_points(group=WORLDS):
        if point.name == name:
            _load_world(point)


def world(name: str) -> World:
    """The world *name*; raises `UnknownNameError`, and `ModelError` if it cannot be loaded."""
    known = worlds()
    if name not in {*known}:
        raise UnknownNameError("world", name, known)
    check_world(name)
    return known[name]
