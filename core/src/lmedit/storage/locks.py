"""Locks on folders, which the system releases when their process ends, even if it crashes.

The lock is on the folder itself, so no lock file is left behind. Windows cannot lock a folder:
there the lock is on a file for its name, in the system's folder for temporary files. A folder may
be exchanged while somebody waits for it; the waiting process then locks the new one. A thread that
holds a lock may take it again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import tempfile
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from lmedit.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_held = threading.local()
"""The folders that each thread has locked: device and number."""


class FolderLock:
    """The lock of one folder; it is held until `release`."""

    def __init__(self, release: Callable[[], object]) -> None:
        self._release: Callable[[], object] | None = release

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()


def lock_folder(folder: Path, *, wait: bool = True, shared: bool = False) -> FolderLock | None:
    """Lock *folder*; None if somebody else holds it and *wait* is false.

    With *shared*, other readers may hold it too. Raises `OSError` if the folder does not exist.
    """
    if sys.platform == "win32":
        return lock_by_name(folder, wait=wait)
    import fcntl

    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, kind)
            if same_folder(folder, handle):
                return FolderLock(partial(os.close, handle))
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def lock_by_name(folder: Path, *, wait: bool = True) -> FolderLock | None:
    """Lock the name of *folder*, for systems that cannot lock a folder. Readers wait too.

    None if somebody else holds it and *wait* is false. Raises `OSError` without such a folder.
    """
    name = os.path.normcase(folder.resolve(strict=True))
    places = Path(tempfile.gettempdir()) / "lmedit-locks"
    places.mkdir(exist_ok=True)
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()
    lock = FileLock(places / f"{digest}.lock", timeout=-1 if wait else 0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    if not folder.is_dir():
        lock.release()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    return FolderLock(lock.release)


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
