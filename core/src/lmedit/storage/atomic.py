"""Write files and folders beside their place, then rename them; remove the rest of dead writers.

A part is in a hidden folder beside its place. Its writer holds a lock in that folder. The system
releases the lock when the process ends, even if it crashes. So a folder with a free lock has no
writer; the next write in the same place removes it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
import uuid
from contextlib import contextmanager, suppress
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
    """A free path beside *path*: write a file or folder there, then rename it to *path*.

    Everything that is still there when the block ends is deleted. Raises `ArtifactError` if the
    place is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        folder, lock = _make_locked_folder(path.parent)
    except OSError as error:
        what = f"cannot write {path}: {error.strerror}; choose another place"
        raise ArtifactError(what) from error
    try:
        yield folder / "part"
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def _make_locked_folder(place: Path) -> tuple[Path, BaseFileLock]:
    """Make a new folder in *place* and hold its lock.

    Another process may remove the folder before its lock is held; then it is made again.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        lock = FileLock(folder / LOCK)
        with suppress(FileNotFoundError):  # removed between two steps of acquire
            lock.acquire()  # this also makes the folder again
            if (folder / LOCK).exists():
                return folder, lock
            lock.release()


def _sweep(place: Path) -> None:
    """Delete parts of killed writers in *place*. Parts with a running writer stay."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            with FileLock(folder / LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError, NotImplementedError):
            continue  # it has a writer, or we may not delete it


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder that replaces *folder* if the block succeeds; else it is removed.

    The old folder is deleted; the caller has checked that lmedit wrote it. Raises `ArtifactError`.
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
    """Exchange two folders: in one step if the system can, else by renames.

    A crash between the renames leaves the old folder beside its place, hidden; nothing deletes it.
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
    """A path beside *path* for a file; renamed to *path* if the block succeeds, else removed.

    Raises `ArtifactError` if the folder is not writable.
    """
    with part_of(path) as part:
        try:
            part.touch(exist_ok=False)
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # safetensors makes files that only the owner can read
            part.replace(path)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"cannot write {path}: {error}; nothing was kept") from error
