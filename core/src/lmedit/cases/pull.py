"""Download a known set of cases from its official address: resumable, checked, stored whole.

The data is written to `NAME.json.part` beside the final place. If the digest of a source is known,
an interrupted download continues. Else it starts again, because nothing could detect a mixture of
two versions. Only a file that passes its checks is renamed to its place. A second pull of the same
set waits for the first one, and then finds the file.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock

from lmedit.cases.sources import SOURCES, CaseSource, pulled_file
from lmedit.errors import CasesError, UnknownNameError
from lmedit.storage.atomic import put_in_place
from lmedit.storage.bars import byte_bar
from lmedit.storage.cache import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK = 1 << 20
SECONDS = 60.0
"""How long to wait for a silent server."""


@dataclass(frozen=True)
class PulledCases:
    """A downloaded set: its path, size and digest, and whether the digest was known before."""

    path: Path
    size: int
    sha256: str
    verified: bool


def pull_cases(name: str) -> PulledCases:
    """Download the set *name*, unless it is there already; show the progress on stderr.

    Raises `UnknownNameError`, or `CasesError` if it cannot be downloaded, checked or written.
    """
    if name not in SOURCES:
        raise UnknownNameError("set of cases", name, SOURCES)
    source, path = SOURCES[name], pulled_file(name)
    if source.hub:
        what = f"{name} is a data set of the hub, {source.hub}, and is not pulled"
        raise CasesError(f"{what}; read it with --cases {name} --download")
    part = path.with_name(f"{path.name}.part")
    try:
        locks = cache_folder() / "locks"
        for folder in (path.parent, locks):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{path.name}.lock"):
            if not path.is_file() or _problem(source, path):
                _download(source, part, path)
    except OSError as error:
        kept = part.stat().st_size if part.is_file() else 0
        what = f"cannot write {part}: {error.strerror} ({kept} bytes are kept)"
        raise CasesError(f"{what}; make room or set LMEDIT_CACHE, and run again") from error
    return _describe(source, path)


def _download(source: CaseSource, part: Path, path: Path) -> None:
    """Download *part*, check it, and rename it to *path*."""
    _fetch(source, part)
    if complaint := _problem(source, part):
        part.unlink()
        raise CasesError(
            f"{source.url}: {complaint}; nothing was kept; get the file another "
            "way and give it as --cases FILE"
        )
    put_in_place(part, path)


def _describe(source: CaseSource, path: Path) -> PulledCases:
    return PulledCases(path, path.stat().st_size, _digest(path), source.sha256 is not None)


def _problem(source: CaseSource, path: Path) -> str | None:
    """The problem with the file at *path*; None if there is none."""
    size = path.stat().st_size
    if source.size is not None and size != source.size:
        return f"{size} bytes, but {source.size} were expected"
    if source.sha256 is not None:
        found = _digest(path)
        return (
            None
            if found == source.sha256
            else (f"SHA-256 {found}, but {source.sha256} was expected")
        )
    with path.open("rb") as file:
        start = file.read(200).lstrip()
    return None if start[:1] in (b"[", b"{") else f"not JSON (it begins with {start[:20]!r})"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(source: CaseSource, part: Path) -> None:
    """Download the rest of *part*; a failed write raises `OSError`."""
    done = part.stat().st_size if part.is_file() else 0
    if source.sha256 is None or (source.size is not None and done > source.size):
        done = 0
    if done and done == source.size:
        return
    with _open_source(source, done) as response:
        done = done if response.status == 206 else 0
        total = _total(response, done)
        if None not in (total, source.size) and total != source.size:
            part.unlink(missing_ok=True)
            what = f"{source.url}: the server offers {total} bytes, but {source.size} were expected"
            raise CasesError(f"{what}; nothing was kept; give a file of your own as --cases FILE")
        with (
            part.open("ab" if done else "wb") as file,
            byte_bar(source.name, total, done) as bar,
        ):
            for chunk in _chunks(response, source):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and (arrived := part.stat().st_size) < total:
        raise _broken_connection(source, f"it ended after {arrived} of {total} bytes")


def _open_source(source: CaseSource, done: int) -> Any:
    headers = {"User-Agent": "lmedit", **({"Range": f"bytes={done}-"} if done else {})}
    request = Request(source.url, headers=headers)  # noqa: S310 - the table's addresses
    try:
        return urlopen(request, timeout=SECONDS)  # noqa: S310
    except HTTPError as error:
        error.close()
        what = f"{source.url} answers {error.code} {error.reason}"
        raise CasesError(f"{what}; get the file another way and give it as --cases FILE") from error
    except (OSError, HTTPException) as error:
        why = getattr(error, "reason", error)
        what = f"cannot reach {source.url} ({why})"
        raise CasesError(f"{what}; connect, or give a file of your own as --cases FILE") from error


def _total(response: Any, done: int) -> int | None:
    """The length of the whole file by the headers; None if they do not hold it."""
    if match := re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", "")):
        return int(match[1])
    length = response.headers.get("Content-Length")
    return done + int(length) if length else None


def _chunks(response: Any, source: CaseSource) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _broken_connection(source, str(error) or type(error).__name__) from error


def _broken_connection(source: CaseSource, why: str) -> CasesError:
    then = "continue" if source.sha256 else "start again"
    again = f"run lmedit cases pull {source.name} again to {then}"
    return CasesError(f"{source.url}: the connection broke ({why}); {again}")
