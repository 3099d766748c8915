"""What a worker on another machine needs before it loads: preparations, and lmedit's own limits."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lmedit.errors import RunError
from lmedit.storage.atomic import write_whole
from lmedit.storage.cache import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

OWN_VARIABLES = ("LMEDIT_PLUGINS", "LMEDIT_EDIT_TIMEOUT", "LMEDIT_PREPARE_TIMEOUT")
"""The variables of lmedit that decide what a worker computes. No other variable is sent."""


def own_variables() -> dict[str, str]:
    """Those of `OWN_VARIABLES` that the driver has."""
    return {name: os.environ[name] for name in OWN_VARIABLES if name in os.environ}


def take_variables(variables: Mapping[str, str]) -> None:
    """Let this worker have the driver's *variables* of lmedit, and no other ones."""
    for name in OWN_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update({name: variables[name] for name in OWN_VARIABLES if name in variables})


def place_files(names: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
    """Write the files *names* that are not in the cache folder of this machine yet.

    *read* returns the bytes of one. Two workers of a machine may write the same file; each writes
    it whole. Returns the names that were written. Raises `RunError` for a name outside the cache.
    """
    written = []
    folder = cache_folder().resolve()
    for name in names:
        path = folder / name
        if not path.resolve().is_relative_to(folder):
            raise RunError(f"the preparation {name!r} is outside the cache; correct the executor")
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as part:
            part.write_bytes(read(name))
        written.append(name)
    return written
