"""A script: import a world in a process of its own, and write its values as JSON.

It reads JSON from stdin and writes JSON to a file. What the import prints is dropped.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any


def tell_world() -> None:
    """Import the world that stdin names, and write its values or why that failed."""
    asked = json.loads(sys.stdin.read())
    sys.path[:] = asked["places"]
    out, mine = Path(asked["out"]), os.getpid()
    told: dict[str, Any]
    try:
        told = {"world": values_of(EntryPoint("world", asked["value"], "lmedit.worlds").load())}
    except BaseException as error:  # noqa: BLE001  (a world may raise anything)
        lines = str(error).strip().splitlines() or ["no message"]
        told = {"why": f"{type(error).__name__}: {lines[0]}"[:500]}
    if os.getpid() == mine:  # the world may have forked
        out.write_text(json.dumps(told), encoding="utf-8")
    os._exit(0)  # what the world left to do at exit is not done


def values_of(loaded: object) -> dict[str, Any]:
    """The fields of *loaded*: a path as a list with its text. Raises `TypeError` if it is wrong."""
    from lmedit.types import World

    if not isinstance(loaded, World):
        raise TypeError(f"it is {type(loaded).__name__}, not World")
    found: dict[str, Any] = {}
    for name in World.__dataclass_fields__:
        value = getattr(loaded, name)
        if not isinstance(value, Path | str | None):
            raise TypeError(f"its {name} is {type(value).__name__}, not a path")
        found[name] = [str(value.absolute())] if isinstance(value, Path) else value
    return found


if __name__ == "__main__":
    tell_world()
