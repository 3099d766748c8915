"""Write files and folders beside their place, then rename them; remove the parts of killed writers.

A part is in a hidden folder beside its place. Its writer holds that folder's lock. The system
releases the lock when the process ends, even if it crashes. So a folder with a free lock has no
writer; the next write in the same place removes it. Data reach the disk before the rename.
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

from lmedit.errors import ArtifactError
from lmedit.storage.locks import FolderLock, folder_locked, lock_folder
from lmedit.storage.ours import check_place, list_files, others_in, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = ".lmedit-part-"
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


def _make_locked_folder(place: Path) -> tuple[Path, FolderLock]:
    """Make a new folder in *place* and hold its lock.

    Another process may remove the folder before its lock is held; then it is made again.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        try:
            with suppress(FileExistsError):  # it is there, or it vanished since: then try again
                folder.mkdir()
            if (lock := lock_folder(folder)) is not None:
                return folder, lock
        except FileNotFoundError:
            continue


def _sweep(place: Path) -> None:
    """Delete parts of killed writers in *place*. Parts with a running writer stay."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            lock = lock_folder(folder, wait=False)
        except OSError:
            continue  # it is gone, or we may not delete it
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()


def _to_disk(path: Path) -> None:
    """Flush *path* to the disk: a file, or a folder with its content."""
    if path.is_dir():
        for entry in path.iterdir():
            _to_disk(entry)
        if os.name == "nt":
            return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _names_to_disk(folder: Path) -> None:
    """Flush the names in *folder* to the disk, after a rename."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def put_in_place(part: Path, path: Path) -> None:
    """Rename the checked file *part* to *path*, when its data are on the disk."""
    _to_disk(part)
    part.replace(path)
    _names_to_disk(path.parent)


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """A folder beside *folder*; renamed to *folder* if the block succeeds, else removed.

    Nothing is replaced. Raises `ArtifactError` if *folder* exists or cannot be written.
    """
    with part_of(folder) as part:
        try:
            part.mkdir()
            yield part
            _to_disk(part)
            part.rename(folder)
            _names_to_disk(folder.parent)
        except OSError as error:
            what = f"cannot write {folder}: {error.strerror}; choose another place"
            raise ArtifactError(what) from error


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder that replaces *folder* if the block succeeds; else it is removed.

    The caller has checked that lmedit wrote the old folder. Files in it that lmedit did not write
    come into the new one. A link stays a link. Readers that hold the folder's lock are waited for.
    Raises `ArtifactError`.
    """
    try:
        place = folder.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"cannot write {str(folder)!r}: {error}; choose another") from error
    with part_of(place) as part:
        try:
            part.mkdir()
            yield part
            list_files(part)
            _to_disk(part)
            with folder_locked(place):
                _put(part, place)
            _names_to_disk(place.parent)
        except OSError as error:
            raise ArtifactError(f"cannot write {folder}: {error}; nothing was kept") from error


def _put(part: Path, place: Path) -> None:
    """Rename *part* to *place*; keep the files of others that are there now."""
    try:
        part.rename(place)
        return
    except OSError:
        if not place.is_dir():
            raise
    others = others_in(place)
    for entry in others:
        if (part / entry.name).exists():
            raise ArtifactError(
                f"{entry} was not written by lmedit and would be replaced; move it away"
            )
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, part / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, part / entry.name, follow_symlinks=False)
    _exchange(part, place)


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

    The caller has checked that lmedit wrote a file that is there (`check_place`). A link stays a
    link. Raises `ArtifactError` if the folder is not writable or something else than a file is
    there.
    """
    from safetensors import SafetensorError

    place = place_of(path)
    with part_of(place) as part:
        try:
            part.touch(exist_ok=False)
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # safetensors makes files that only the owner can read
            _to_disk(part)
            part.replace(place)
            _names_to_disk(place.parent)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"cannot write {path}: {error}; nothing was kept") from error


_waiting: list[tuple[Path, list[tuple[str, str]]]] = []
"""In a process that answers another one: where results wait, and which wait."""


@contextmanager
def results_wait(folder: Path) -> Iterator[list[tuple[str, str]]]:
    """In the block, `write_result` writes into *folder*; `place_result` puts a result in its place.

    The list fills with pairs: a file's name in *folder*, and its place.
    """
    _waiting.append((folder, []))
    try:
        yield _waiting[-1][1]
    finally:
        _waiting.pop()


@contextmanager
def write_result(path: Path) -> Iterator[Path]:
    """As `write_whole`, for a file that a command announces. In `results_wait`, it waits."""
    if not _waiting:
        with write_whole(path) as part:
            yield part
        return
    folder, results = _waiting[-1]
    name = str(len(results))
    with write_whole(folder / name) as part:
        yield part
    results.append((name, str(path.absolute())))


def place_result(waiting: Path, path: Path) -> None:
    """Put the file *waiting*, which `write_result` wrote, to *path*. Raises `ArtifactError`."""
    check_place(path)
    with write_whole(path) as part:
        try:
            shutil.copyfile(waiting, part)
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error}; nothing was kept") from error


def new_folder(parent: Path, name: str) -> Path:
    """Make the folder *name* in *parent*; if it exists, *name*-2 and so on."""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError:
            number += 1
        except OSError as error:
            what = f"cannot make {folder}: {error.strerror}; choose another place"
            raise ArtifactError(what) from error
        else:
            return folder
