"""Write the project of a new method from the files of `template/`, which is a working project."""

from __future__ import annotations

import os
import re
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from lmedit.errors import ArtifactError, OptionError
from lmedit.registry import RESERVED, entries
from lmedit.storage.atomic import writing_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
STANDS_FOR = "newmethod"
"""The method's name in the template."""


def write_project(name: str, folder: Path) -> list[str]:
    """Write the project of the method *name* to *folder*; return the sorted paths of its files.

    Raises `OptionError` if the name is not allowed, and `ArtifactError` if *folder* exists or is
    not writable. Then no file remains.
    """
    _check(name)
    if os.path.lexists(folder):
        raise ArtifactError(f"{folder} exists; give another folder with -O")
    with (
        writing_folder(folder) as part,
        as_file(files("lmedit.actions") / "template") as template,
    ):
        for file in _files_of(template):
            place = part / _rename(file.relative_to(template).as_posix(), name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(_rename(file.read_text(encoding="utf-8"), name), encoding="utf-8")
    return [file.relative_to(folder).as_posix() for file in _files_of(folder)]


def _check(name: str) -> None:
    """Raise `OptionError` if *name* is not a valid name or is already taken."""
    if not NAME.fullmatch(name):
        raise OptionError(
            f"{name!r} is not a valid name for a method; use lower case, digits and hyphens"
        )
    taken = {entry.name: entry.distribution for entry in entries()}
    taken |= dict.fromkeys(RESERVED, "the core")
    if name in taken:
        raise OptionError(f"the name {name!r} belongs to {taken[name]}; choose another")


def _files_of(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    )


def _rename(text: str, name: str) -> str:
    """Replace the template's name in *text* by *name*."""
    words = name.split("-")
    text = text.replace(STANDS_FOR.title(), "".join(word.title() for word in words))
    text = text.replace(f"lmedit_{STANDS_FOR}", f"lmedit_{'_'.join(words)}")
    return text.replace(STANDS_FOR, name)
