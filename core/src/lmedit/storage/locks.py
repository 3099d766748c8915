"""Locks on folders, which the system releases when their process ends, even if it crashes.

The lock is on the folder itself, so no lock file is left behind. A folder may be exchanged while
somebody waits for it; the waiting process then locks the new one. A thread that holds a lock may
take it again.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lmedit.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator

_held = threading.local()
"""The folders that each thread has locked: device and number."""


class FolderLock:
    """The lock of one folder; it is held until `release`."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def lock_folder(folder: Path, *, wait: bool = True, shared: bool = False) -> FolderLock | None:
    """Lock *folder*; None if somebody else holds it and *wait* is false.

    With *shared*, other readers may hold it too. Raises `OSError` if the folder does not exist.
    """
    if sys.platform == "win32":  # pragma: no cover  (a folder cannot be locked there)
        return FolderLock(os.open(os.devnull, os.O_RDONLY))
    import fcntl

    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, kind)
            if same_folder(folder, handle):
                return FolderLock(handle)
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def same_folder(folder: Path, handle: int) -> bool:
    """Whether *folder* still names the folder of the open *handle*."""
    mine = os.fstat(handle)
    try:
        now = os.stat(folder)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (now.st_dev, now.st_ino)


@contextmanager
def folder_locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of *folder* during the block: for reading if *shared*, else for a change.

    Without such a folder there is nothing to lock. Raises `ArtifactError` if the folder cannot be
    opened.
    """
    try:
        found = os.stat(folder)
    except (OSError, ValueError):
        yield
        return
    mine: set[tuple[int, int]] = _held.__dict__.setdefault("folders", set())
    if not Path(folder).is_dir() or (found.st_dev, found.st_ino) in mine:
        yield
        return
    try:
        lock = lock_folder(folder, shared=shared)
        now = os.stat(folder)
    except OSError as error:
        raise ArtifactError(f"cannot open {folder}: {error.strerror}; check its rights") from error
    name = now.st_dev, now.st_ino
    mine.add(name)
    try:
        yield
    finally:
        mine.discard(name)
        if lock is not None:
            lock.release()


@contextmanager
def being_changed(path: Path) -> Iterator[None]:
    """Hold a lock during the block that reads *path*, changes what it read, and writes it.

    A folder is locked itself, a file by the folder around it. Other processes wait.
    """
    place = path.resolve()
    if place.is_dir():
        with folder_locked(place):
            yield
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with folder_locked(place.parent):
        yield
