"""Where files and folders are written before they take their place, and what dead writers left.

A part lies in a hidden folder beside its place, on whose lock its writer sits. The system lets go
of the lock however a process ends, so a folder whose lock is free has no writer any more; the next
write beside it takes it away.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError

from lmedit.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX, LOCK = ".lmedit-part-", "lock"
CURRENT, EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux' renameat2."""


@contextmanager
def part_of(path: Path) -> Iterator[Path]:
    """A free place beside *path* to write to, for a file or folder that is then renamed to *path*.

    What is there when the block ends is deleted. Raises `ArtifactError` where it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        folder, lock = _locked(path.parent)
    except OSError as error:
        what = f"cannot write {path}: {error.strerror}; choose another place"
        raise ArtifactError(what) from error
    try:
        yield folder / "part"
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _locked(place: Path) -> tuple[Path, BaseFileLock]:
    """A new folder in *place*, and its lock, held.

    Another's sweep may find the folder before its lock is held, and take it away: then it is made
    again.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        lock = FileLock(folder / LOCK)
        lock.acquire()  # makes the folder again, too
        if (folder / LOCK).exists():
            return folder, lock
        lock.release()


def _sweep(place: Path) -> None:
    """Delete what killed writers left in *place*; what is being written is left alone."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            with FileLock(folder / LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError, NotImplementedError):
            continue  # it is being written, or is not ours to delete


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of *folder* if the block ends well, else is removed.

    What was there before is deleted: the caller has made sure that it was ours.
    """
    with part_of(folder) as part:
        try:
            part.mkdir()
            yield part
            try:
                part.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
                _exchange(part, folder)
        except OSError as error:
            raise ArtifactError(f"cannot write {folder}: {error}; nothing was kept") from error


def _exchange(new: Path, old: Path) -> None:
    """Let two folders change places: at once where the system can, else by renames.

    A crash between those leaves the old one beside its place, hidden, and nothing deletes it.
    """
    if sys.platform == "linux":
        rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        names = os.fsencode(new), os.fsencode(old)
        if rename and rename(CURRENT, names[0], CURRENT, names[1], EXCHANGE) == 0:
            return
    aside = old.with_name(f".{old.name}.{uuid.uuid4().hex}.old")
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A place beside *path* for a file; renamed to *path* if the block ends well, else removed.

    Raises `ArtifactError` where the folder cannot be written.
    """
    with part_of(path) as part:
        try:
            part.touch(exist_ok=False)
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # safetensors makes files that only their owner can read
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"cannot write {path}: {error}; nothing was kept") from error
