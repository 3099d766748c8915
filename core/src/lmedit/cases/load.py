"""Cases by a world's name or from a file; a broken record is kept, with its line and reason."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lmedit.cases.counterfact import case_from
from lmedit.errors import CasesError
from lmedit.models import worlds
from lmedit.types import Case, first_complaint

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class BrokenCase:
    """A record that is not a case: where it stands and what is wrong with it."""

    id: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}, case {self.id}: {self.reason}"


@dataclass(frozen=True)
class CaseSet:
    """Cases in file order, with the name and the SHA-256 of the file they came from."""

    name: str
    digest: str
    items: tuple[Case | BrokenCase, ...]

    @property
    def good(self) -> list[Case]:
        """The records that can be run."""
        return [item for item in self.items if isinstance(item, Case)]

    @property
    def broken(self) -> list[BrokenCase]:
        """The records that cannot."""
        return [item for item in self.items if isinstance(item, BrokenCase)]


def load_cases(name: str, limit: int | None = None) -> CaseSet:
    """The first *limit* cases of a world or of a file in CounterFact's official JSON layout.

    Raises `CasesError` where there is no such file or it is not a JSON list.
    """
    known = worlds()
    path = known[name].cases if name in known else Path(name)
    if not path.is_file():
        raise CasesError(
            f"no cases {name!r}; name a file or one of: {', '.join(sorted(known)) or 'no world'}"
        )
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CasesError(f"{path} is not UTF-8 text ({error.reason}); name a JSON file") from error
    items: list[Case | BrokenCase] = []
    for line, record in _records(text, path):
        if limit is not None and len(items) == limit:
            break
        items.append(_case(line, record))
    if not items:
        raise CasesError(f"{path} holds no case; a JSON list of records was expected")
    return CaseSet(name, hashlib.sha256(data).hexdigest(), tuple(items))


def _records(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Each element of a JSON list with the line it begins on."""
    decoder, at = json.JSONDecoder(), _skip(text, 0)
    if text[at : at + 1] != "[":
        raise CasesError(f"{path}, line 1: a JSON list of records was expected")
    at, line, counted = _skip(text, at + 1), 1, 0
    while text[at : at + 1] not in ("]", ""):
        line, counted = line + text.count("\n", counted, at), at
        try:
            record, at = decoder.raw_decode(text, at)
        except ValueError as error:
            yield line, error
            return
        yield line, record
        at = _skip(text, at)
        at = _skip(text, at + 1) if text[at : at + 1] == "," else at


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _case(line: int, record: Any) -> Case | BrokenCase:
    if isinstance(record, ValueError):
        return BrokenCase("?", line, f"not JSON from here on ({record}); mend or cut the file")
    if not isinstance(record, dict):
        return BrokenCase("?", line, f"a {type(record).__name__}; a record was expected")
    try:
        return case_from(record)
    except ValidationError as error:
        reason = first_complaint(error)
    except ValueError as error:
        reason = str(error)
    return BrokenCase(str(record.get("case_id", "?")), line, reason)
