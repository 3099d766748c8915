"""What installed distributions declare for lmedit: their entry points and the metadata beside them.

Python reads the files of all distributions for each question. That takes 10 to 25 ms, and one
command asks a dozen times. Here they are read again only if one of them changed.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from lmedit.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.metadata import Distribution, EntryPoint

OURS = "lmedit."
"""The beginning of the groups of entry points that lmedit reads."""
READ = ("METADATA", "PKG-INFO", "requires.txt")
"""The files from which Python takes the metadata of a distribution."""
Stamp = tuple[int, int, int] | None
"""A file's or folder's time of change (ns), size (bytes) and number; None if there is none."""


class Declared(NamedTuple):
    """A distribution that declares entry points for lmedit, as its metadata says."""

    name: str
    version: str
    urls: Sequence[str]
    """The values of Project-URL: a label, a comma, the address."""
    requires: Sequence[str]
    points: Sequence[EntryPoint]
    """Its entry points for lmedit, of every group."""


class _Reading(NamedTuple):
    """What was read, and what must be unchanged so that it holds."""

    places: Sequence[object]
    files: Sequence[tuple[str, Stamp]]
    declared: Sequence[Declared]
    points: Sequence[EntryPoint]
    """The entry points for lmedit. Of two distributions with one name, the first one counts."""

    def holds(self) -> bool:
        """Whether nothing changed since."""
        return self.places == _places() and all(_stamp(at) == old for at, old in self.files)


_LAST: list[_Reading] = []


def declarations_of(group: str) -> list[tuple[Declared, list[EntryPoint]]]:
    """The distributions that declare entry points of *group*, each with these."""
    own = [(d, [point for point in d.points if point.group == group]) for d in _now().declared]
    return [(distribution, points) for distribution, points in own if points]


def entry_points(group: str) -> list[EntryPoint]:
    """The entry points of *group*, as `importlib.metadata.entry_points` gives them."""
    return [point for point in _now().points if point.group == group]


def _now() -> _Reading:
    """The last reading if it still holds, else a new one."""
    if not (_LAST and _LAST[0].holds()):
        _LAST[:] = [_read()]
    return _LAST[0]


def _read() -> _Reading:
    places = _places()
    files: list[tuple[str, Stamp]] = []
    declared, first, names = [], [], set()
    for each in importlib.metadata.distributions():
        if getattr(each, "_path", None) is None:
            places = ()  # no folder that can be watched: then all is read each time
        files += _files(each, ("entry_points.txt",))
        ours = [point for point in each.entry_points if point.group.startswith(OURS)]
        name = getattr(each, "_normalized_name", None) or each.name
        if ours:
            files += _files(each, READ)
            declared.append(_declaration_of(each, ours))
            first += [] if name in names else ours
        names.add(name)
    return _Reading(places, files, declared, first)


def _declaration_of(distribution: Distribution, points: Sequence[EntryPoint]) -> Declared:
    about = distribution.metadata
    urls = about.get_all("Project-URL") or []
    return Declared(about["Name"], about["Version"], urls, distribution.requires or [], points)


def _places() -> tuple[object, ...]:
    """Where Python looks for distributions: the finders, and the folders with their stamps."""
    folders = [os.path.abspath(part) for part in sys.path]
    return (*sys.meta_path, *((folder, _stamp(folder)) for folder in folders))


def _files(distribution: Distribution, names: Iterable[str]) -> list[tuple[str, Stamp]]:
    """The files *names* of *distribution*, which may be absent, with their stamps."""
    folder = getattr(distribution, "_path", None)
    paths = [] if folder is None else [str(folder / name) for name in names]
    return [(path, _stamp(path)) for path in paths]


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


PLAY, PLAY_GROUP = "lmedit-play", "lmedit.play"
"""The distribution of the playground, and the group of its entry point."""


def load_play() -> Any:
    """The package of the playground: `serve` and `show`. Raises `RequestError` without it."""
    points = [point for _, found in declarations_of(PLAY_GROUP) for point in found]
    if not points:
        raise RequestError(f"the playground is a distribution of its own; pip install {PLAY}")
    return points[0].load()
