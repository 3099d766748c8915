"""Records of a file with their line numbers: a JSON list, or one JSON object per line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lmedit.errors import CasesError
from lmedit.storage.json_files import check_value, may_be_unsound, parse_json, whole_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Only:
    """What a filter by the answers of the unedited model kept, and what it dropped."""

    word: str
    """right, wrong or unknown: the answers of the kept cases (`compare.only.MEANINGS`)."""
    kept: int
    """How many records stayed; broken ones stay."""
    dropped: Mapping[str, int]
    """How many cases were dropped, by their word."""
    not_asked: int
    """How many records come after the last one that was needed."""

    def __str__(self) -> str:
        away = ", ".join(f"{count} {word}" for word, count in self.dropped.items())
        told = f"--only {self.word}: {self.kept} kept, {sum(self.dropped.values())} dropped"
        return told + (f" ({away})" if away else "") + f", {self.not_asked} not asked"


@dataclass(frozen=True)
class BrokenCase:
    """A record that is not a case: its line, and the reason."""

    id: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}, case {self.id}: {self.reason}"


Item = TypeVar("Item")


@dataclass(frozen=True)
class RecordSet(Generic[Item]):
    """Records in the order of the file, with the file's name and SHA-256."""

    name: str
    digest: str
    items: tuple[Item | BrokenCase, ...]

    @property
    def good(self) -> list[Item]:
        """The records that can be used."""
        return [item for item in self.items if not isinstance(item, BrokenCase)]

    @property
    def broken(self) -> list[BrokenCase]:
        """The records that cannot be used."""
        return [item for item in self.items if isinstance(item, BrokenCase)]


def read(path: Path) -> tuple[str, str]:
    """The text of *path* and its SHA-256; raises `CasesError` if it cannot be read."""
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig"), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise CasesError(f"cannot read {path}: {error.strerror}; give a JSON file") from error
    except UnicodeDecodeError as error:
        raise CasesError(f"{path} is not UTF-8 text ({error.reason}); give a JSON file") from error


def is_list(text: str) -> bool:
    """Whether *text* is a JSON list; else it should have one object per line."""
    at = _skip(text, 0)
    return text[at : at + 1] == "["


def records_of(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Each record with its line; a record that is not JSON gives a `BrokenCase`.

    Raises `CasesError` if *text* is not a list and does not begin with an object.
    """
    at = _skip(text, 0)
    if is_list(text):
        return _of_list(text)
    if text[at : at + 1] == "{":
        return _of_lines(text)
    what = "a JSON list of records, or one JSON object per line, was expected"
    raise CasesError(f"{path}, line 1: {what}")


def _of_list(text: str) -> Iterator[tuple[int, Any]]:
    """The elements. If the list is damaged, the last one is a `BrokenCase`."""
    decoder = json.JSONDecoder()
    at, line, counted = _skip(text, _skip(text, 0) + 1), 1, 0
    if ended := text[at : at + 1] == "]":
        at = _skip(text, at + 1)
    while not ended:
        line, counted, start = line + text.count("\n", counted, at), at, at
        try:
            record, at = decoder.raw_decode(text, at)
        except ValueError as error:
            yield line, _report_broken(line, str(error))
            return
        except RecursionError:
            yield line, _report_broken(line, "it is nested too deep")
            return
        try:
            yield line, check_value(record) if may_be_unsound(text, start, at) else record
        except ValueError as error:
            reason = f"field '{_unsound_field(record)}': {complaint_of(error)}"
            yield line, BrokenCase(_id_of(record), line, reason)
        at = _skip(text, at)
        if (ended := text[at : at + 1] == "]") or text[at : at + 1] == ",":
            at = _skip(text, at + 1)
            continue
        line += text.count("\n", counted, at)
        yield (
            line,
            _report_broken(line, f"found {text[at : at + 9]!r}, but a comma or ] was expected"),
        )
        return
    if at < len(text):
        line += text.count("\n", counted, at)
        yield line, _report_broken(line, f"found {text[at : at + 9]!r} after the list")


def _report_broken(line: int, why: str) -> BrokenCase:
    return BrokenCase("?", line, f"not JSON from here on ({why}); correct or cut the file")


def _of_lines(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except ValueError as error:
                reason = f"not JSON ({complaint_of(error)}); correct or remove the line"
                yield number, BrokenCase("?", number, reason)


def _id_of(record: Any) -> str:
    """The id of *record* as text that can be stored; a question mark if it has none."""
    known = record.get("case_id", record.get("id")) if isinstance(record, dict) else None
    return whole_text(str(known)[:LONGEST_ID]) if isinstance(known, str | int) else "?"


LONGEST_ID = 200


def _unsound_field(record: Any) -> str:
    """The innermost field of *record* that holds a value that JSON must not hold."""
    waiting: list[tuple[str, Any]] = [("?", record)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(whole_text(str(key)), part) for key, part in value.items()]
        elif isinstance(value, list):
            waiting += [(name, part) for part in value]
        else:
            try:
                check_value(value)
            except ValueError:
                return name
    return "?"


def complaint_of(error: ValueError) -> str:
    """The reason of *error* in plain words."""
    if isinstance(error, UnicodeEncodeError):
        return "it holds half a character (a lone surrogate)"
    return str(error)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
