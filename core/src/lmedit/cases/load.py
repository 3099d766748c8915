"""Load cases by name, from a file or from the hub; broken records are kept with line and reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lmedit.cases.hub import hub_rows, is_hub_id
from lmedit.cases.knowns import KEYS, Known, KnownSet, knowns_from
from lmedit.cases.layouts import LAYOUTS, Layout, layout_of, split_name
from lmedit.cases.records import (
    LONGEST_ID,
    BrokenCase,
    Only,
    RecordSet,
    complaint_of,
    is_list,
    read,
    records_of,
)
from lmedit.cases.sources import SOURCES, place_on_hub, pulled_file
from lmedit.errors import CasesError
from lmedit.models import worlds
from lmedit.storage.cache import key_of
from lmedit.storage.json_files import check_value, whole_text
from lmedit.types import Case, Request, first_complaint

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class CaseSet(RecordSet[Case]):
    """Cases in the order of the file, with the file's name and SHA-256."""

    only: Only | None = None
    """The filter by the unedited model's answers, if there was one."""

    def __iter__(self) -> Iterator[Case]:
        """Yield the cases that can be run."""
        return iter(self.good)


CasesGiven = str | Path | Iterable[Case | Request | Mapping[str, Any]]
"""Cases in Python: an argument of `load_cases`, a `CaseSet`, or records in memory."""


def load_cases(name: str, limit: int | None = None, *, download: bool = False) -> CaseSet:
    """The first *limit* cases of *name*, which may begin with a layout and a colon.

    *name* is a world, a file, a folder in the hub's layout, a set of `lmedit cases pull`, or (with
    *download*) a data set of the hub. Without a layout, as ``zsre-alt:`` in ``zsre-alt:FILE``, the
    keys of the records decide. Raises `CasesError` if there is no such name or no record.
    """
    layout, rest = split_name(name)
    path = path_of(rest)
    if path is None or path.is_dir():
        place, split = (path, None) if path else place_on_hub(rest)
        rows, digest = hub_rows(place, download=download, split=split)
        items = _items(enumerate(rows, 1), layout or layout_of(rows), limit, path or rest)
    else:
        text, digest = read(path)
        items = _items_of_file(text, path, layout, limit)
    return CaseSet(name, digest, items)


def cases_of_world(name: str) -> CaseSet | None:
    """The training cases of the world *name*; None if it has none."""
    world = worlds().get(name)
    return load_cases(str(world.training)) if world and world.training else None


def cases_given(given: CasesGiven, limit: int | None = None, *, download: bool = False) -> CaseSet:
    """The first *limit* cases of *given*; raises `CasesError` if there are none.

    Records in memory are cases, requests, or objects in one of the layouts.
    """
    if isinstance(given, str | Path):
        return load_cases(str(given), limit, download=download)
    if isinstance(given, CaseSet):
        return replace(given, items=given.items[:limit])
    rows = list(given)
    name = "given cases"
    layout = layout_of(rows) or LAYOUTS["facts"]
    items = _items(enumerate(rows), layout, limit, name)
    written = [str(i) if isinstance(i, BrokenCase) else i.model_dump(mode="json") for i in items]
    return CaseSet(name, key_of(cases=written), items)


def load_knowns(name: str = "known_1000", limit: int | None = None) -> KnownSet:
    """The first *limit* facts of a file in known_1000's layout, or of the fetched set."""
    path = path_of(name)
    if path is None:
        raise CasesError(f"no facts {name!r}; give a file in the layout of known_1000.json")
    return knowns_from(path, name, limit)


def load_facts(
    name: str, limit: int | None = None, *, download: bool = False
) -> list[tuple[Request, str | None]]:
    """Facts of *name* (cases, or a file in known_1000's layout), each with its right answer.

    If the new answer is unknown, the request has the right answer. Raises `CasesError`.
    """
    knowns: list[Known] = []
    with suppress(CasesError):  # other layouts are folders, or files that are no list
        knowns = load_knowns(name, limit).good
    if knowns:
        return [
            (Request(prompt=k.prompt, subject=k.subject, target_new=k.attribute), k.attribute)
            for k in knowns
        ]
    cases = load_cases(name, limit, download=download).good
    return [(each, each.target_true) for case in cases for each in case.requests]


def path_of(name: str) -> Path | None:
    """The file or folder of *name*; None for a data set of the hub."""
    path = Path(name)
    if path.name != name and path.exists():
        return path
    known = worlds()
    if (world := known.get(name)) and world.cases.is_file():
        return world.cases
    if path.exists():
        return path
    if name in SOURCES and SOURCES[name].hub:
        return None
    if name in SOURCES:
        if not (path := pulled_file(name)).is_file():
            raise CasesError(f"cases {name!r} are not downloaded yet; run lmedit cases pull {name}")
        return path
    if is_hub_id(name):
        return None
    names = ", ".join(sorted({*known, *SOURCES}))
    raise CasesError(f"no cases {name!r}; give a file or one of: {names}")


@lru_cache(maxsize=1)
def _items_of_file(
    text: str, path: Path, layout: Layout | None, limit: int | None
) -> tuple[Case | BrokenCase, ...]:
    """The cases in the *text* of a file. A process that edits often reads the same file often."""
    layout = layout or layout_of(record for _, record in records_of(text, path))
    layout = layout or (LAYOUTS["counterfact"] if is_list(text) else None)
    return _items(records_of(text, path), layout, limit, path)


def _items(
    lines: Iterable[tuple[int, Any]], layout: Layout | None, limit: int | None, path: Path | str
) -> tuple[Case | BrokenCase, ...]:
    if layout is None:
        raise CasesError(
            f"{path}: no record has the keys of a known layout; give JSON records in one of: "
            f"{', '.join(LAYOUTS)}"
        )
    items: list[Case | BrokenCase] = []
    for index, (line, record) in enumerate(islice(lines, limit)):
        if isinstance(record, dict) and record.keys() >= KEYS:
            what = "holds facts to trace, without new answers; give other cases"
            raise CasesError(f"{path}, line {line}: {what}")
        items.append(_item(line, index, record, layout))
    if not items:
        raise CasesError(f"{path} holds no case; give a JSON list of records")
    return tuple(items)


def _item(line: int, index: int, record: Any, layout: Layout) -> Case | BrokenCase:
    if isinstance(record, BrokenCase):
        return record
    if isinstance(record, Request):
        record = Case(id=str(index), request=record)
    if isinstance(record, Case):
        try:
            check_value(record.model_dump(mode="json"))
        except ValueError as error:
            return BrokenCase(whole_text(record.id), line, complaint_of(error))
        return record
    if not isinstance(record, dict):
        return BrokenCase("?", line, f"a {type(record).__name__}; a record was expected")
    try:
        return layout.case_from(record, index)
    except ValidationError as error:
        reason = first_complaint(error)
    except ValueError as error:
        reason = complaint_of(error)
    nameless = "?" if layout.name == "counterfact" else index
    known = record.get("case_id", record.get("id", nameless))
    return BrokenCase(whole_text(str(known)[:LONGEST_ID]), line, whole_text(reason))
