"""Recognise the files that lmedit wrote. lmedit replaces no other file."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lmedit.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable

MARK = "lmedit"
"""The word that lmedit writes into a page, a picture or a .npz file to mark it."""
MARKS = (
    b"<meta name='generator' content='lmedit'>",
    b"Software\0lmedit",
    b"<dc:title>lmedit</dc:title>",
)
GGUF_KEY = b"lmedit.edits"
"""The key that marks a GGUF file as written by lmedit."""
HEAD = 1 << 16
"""How many bytes of a file are searched for a mark."""
KINDS = frozenset({"prepared", "patch", "checkpoint", "statistics", "base"})
"""The kinds of `lmedit.storage.tensors`."""
FILES = ".lmedit-files"
"""The list of the files that lmedit wrote into a folder, one per line."""
OURS = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""The endings of lmedit's own files in folders without such a list, from before version 0.2."""


def place_of(path: Path) -> Path:
    """The place to write a file for *path*: itself, or the file that a link names.

    Raises `ArtifactError` if something else than a file is there.
    """
    if not path.name and path == Path():
        raise ArtifactError("the name of the file to write is empty; give a name")
    try:
        place = path.resolve()
        exists, regular = os.path.lexists(place), place.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"cannot write {str(path)!r}: {error}; choose another place") from error
    if exists and not regular:
        raise ArtifactError(
            f"cannot write {path}: it exists and is not a file; choose another place"
        )
    return place


def check_place(path: Path) -> None:
    """Raise `ArtifactError` if a file that the user named as output cannot be written to *path*.

    Call it before long work, and before writing. Only a file that lmedit wrote is replaced.
    """
    place = place_of(path)
    check_writable(path)
    try:
        other = place.is_file() and place.stat().st_size > 0 and not wrote_file(place)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror}; choose another") from error
    if other:
        raise ArtifactError(
            f"{path} exists and lmedit did not write it; choose another place, or delete it"
        )


def check_writable(path: Path) -> None:
    """Raise `ArtifactError` if nothing can be made at *path*; folders above it may be missing.

    It makes a file without a name in the nearest folder that exists: rights and kinds of file
    systems tell less than a trial.
    """
    try:
        above = path.resolve().parent
        while not os.path.lexists(above):
            above = above.parent
        tempfile.TemporaryFile(dir=above).close()
    except (OSError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"cannot write {str(path)!r}: {why}; choose another place") from error


def wrote_file(path: Path) -> bool:
    """Whether lmedit wrote the file at *path*; its content shows it."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if any(mark in head for mark in MARKS) or (head.startswith(b"GGUF") and GGUF_KEY in head):
        return True
    return _is_ours_by_header(path, head) or _is_npz(path) or _is_options(path, head)


def _is_ours_by_header(path: Path, head: bytes) -> bool:
    """Whether it is a safetensors file of one of our kinds."""
    size = int.from_bytes(head[:8], "little")
    if not 2 <= size <= min(path.stat().st_size, 1 << 26):
        return False
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(size))
        return header["__metadata__"]["kind"] in KINDS
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _is_npz(path: Path) -> bool:
    from lmedit.storage.arrays import BROKEN

    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment == MARK.encode()
    except (*BROKEN, OSError, ValueError):
        return False


def _is_options(path: Path, head: bytes) -> bool:
    """Whether it is a file of tuned options: an object of entries with options and evidence.

    An entry of named parts of a model has no evidence.
    """
    if not head.lstrip().startswith(b"{") or path.stat().st_size > 1 << 26:
        return False
    try:
        found = json.loads(path.read_bytes())
        entries = {name: one for name, one in found.items() if name != "schema"}
        parts = entries.pop("model", {"options": {}})
        whole = all({"options", "evidence"} <= set(one) for one in entries.values())
        return bool(entries) and whole and set(parts) == {"options"}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return False


def list_files(folder: Path) -> None:
    """Write the list of the files in *folder*, which lmedit puts in its place next."""
    names = sorted(entry.name for entry in folder.iterdir())
    (folder / FILES).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def file_sizes(folder: Path, ending: str = "") -> list[int]:
    """The bytes of each file below *folder* whose name has *ending*.

    Files and folders that another process deletes meanwhile are left out.
    """
    sizes = []
    for at, _, names in os.walk(folder):
        for name in names:
            if name.endswith(ending):
                with suppress(OSError):
                    sizes.append(os.stat(os.path.join(at, name)).st_size)
    return sizes


def others_in(folder: Path) -> list[Path]:
    """The files and folders at the top of *folder* that lmedit did not write."""
    entries: Iterable[Path] = sorted(folder.iterdir())
    try:
        listed = set((folder / FILES).read_text(encoding="utf-8").splitlines()) | {FILES}
        return [entry for entry in entries if entry.name not in listed]
    except (OSError, UnicodeDecodeError):
        return [e for e in entries if not (e.is_dir() and e.name == "lmedit-edits") and not _old(e)]


def _old(entry: Path) -> bool:
    return entry.is_file() and entry.suffix in OURS
