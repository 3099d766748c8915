"""known_1000: facts that GPT-2 XL knows, for causal tracing (Meng et al. 2022, appendix B.1)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from lmedit.cases.fields import need, need_text
from lmedit.cases.records import BrokenCase, RecordSet, read, records_of
from lmedit.errors import CasesError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KEYS = frozenset({"known_id", "subject", "template", "attribute"})


@dataclass(frozen=True)
class Known:
    """A fact to trace: a prompt about the subject, and the attribute that follows it."""

    id: str
    subject: str
    prompt: str
    """With {} at the place of the subject."""
    attribute: str

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace("{}", self.subject)


@dataclass(frozen=True)
class KnownSet(RecordSet[Known]):
    """Facts in the order of the file, with the file's name and SHA-256."""


def fact_from(record: Mapping[str, Any], index: int) -> Known:
    """The fact of *record*. Raises `ValueError` with the field and what was expected."""
    prompt = need_text(record, "template")
    if (found := prompt.count("{}")) != 1:
        raise ValueError(f"field 'template' ({prompt!r}) has {found} places {{}}; write one")
    return Known(
        id=str(need(record, "known_id", int)),
        subject=need_text(record, "subject"),
        prompt=prompt,
        attribute=need_text(record, "attribute"),
    )


def knowns_from(path: Path, name: str, limit: int | None) -> KnownSet:
    """The first *limit* facts of the file *path*."""
    text, digest = read(path)
    lines = islice(enumerate(records_of(text, path)), limit)
    items = tuple(_item(line, index, record) for index, (line, record) in lines)
    if not items:
        raise CasesError(f"{path} holds no fact; give a JSON list of records")
    return KnownSet(name, digest, items)


def _item(line: int, index: int, record: Any) -> Known | BrokenCase:
    if isinstance(record, BrokenCase):
        return record
    try:
        return fact_from(record, index)
    except ValueError as error:
        known_id = record.get("known_id", index) if isinstance(record, dict) else index
        return BrokenCase(str(known_id), line, str(error))
