"""Merge runs of the same comparison into one run.

The order of the runs does not matter, and a run may be merged again. The result is a new folder,
whole or not there; or a run of the same comparison gets the other runs in one transaction.
"""

from __future__ import annotations

import heapq
import re
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from lmedit.compare.facts import PLAN, SHARD, find_conflict, is_own
from lmedit.compare.piles import PATCHES
from lmedit.compare.result import sound_payload
from lmedit.compare.store import FILE, RunStore, Stored, iterate_results, read_run_facts
from lmedit.edits.patches import load_patch
from lmedit.errors import ArtifactError, RunError
from lmedit.storage.atomic import write_whole, writing_folder
from lmedit.storage.json_files import parse_json, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    Row = tuple[Stored, Path]

CASES = "cases.json"
FIRST = ("failure", "scores")
"""The parts of a result that a message about a conflict shows before the others."""
KEY = re.compile("[0-9a-f]{64}")
SHOWN = 60
"""How many characters of a value in a conflict a message shows."""


@dataclass
class _Rows:
    """The results of several run folders, each key once; the patches of edits are copied."""

    folders: Sequence[Path]
    to: Path
    found: dict[str, int] = field(default_factory=dict)
    """The number of results of each method."""

    def __iter__(self) -> Iterator[Stored]:
        ordered = heapq.merge(*map(_rows_of, self.folders), key=lambda row: row[0].key)
        for _, same in groupby(ordered, key=lambda row: row[0].key):
            yield self._one_of(list(same))

    def _one_of(self, rows: Sequence[Row]) -> Stored:
        """The one result of several with the same key. Raises `RunError` if they differ."""
        for row, other in pairwise(rows):
            if _content_of(row[0]) != _content_of(other[0]):
                raise RunError(_tell_conflict(row, other))
        chosen = min((row for row, _ in rows), key=_cost)
        payload = _payload_of(*rows[0])
        if "bytes" in payload and "scores" not in payload:
            self._copy_patch(chosen, [folder for _, folder in rows])
        self.found[chosen.method] = self.found.get(chosen.method, 0) + 1
        return chosen

    def _copy_patch(self, row: Stored, folders: Sequence[Path]) -> None:
        """Copy the patch of an edit in a pile, which the run needs to go on."""
        name = f"{row.key[:32]}.safetensors"
        files = [folder / PATCHES / name for folder in folders]
        for file in files:
            try:
                load_patch(file)
            except ArtifactError as error:
                what = f"{row.method} on case {row.case_id}: {error}; or leave this run out"
                raise RunError(what) from error
        for file, other in pairwise(files):
            if file.read_bytes() != other.read_bytes():
                raise RunError(f"{file} and {other} are different patches; leave one run out")
        place = self.to / PATCHES / name
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            with write_whole(place) as part:
                shutil.copyfile(files[0], part)


def _rows_of(folder: Path) -> Iterator[Row]:
    for row in iterate_results(folder):
        yield row, folder


def _content_of(row: Stored) -> tuple[str, str, str]:
    """What all results of one key have in common: all but seconds and memory."""
    return row.method, row.case_id, row.payload


def _cost(row: Stored) -> tuple[bool, float, bool, float]:
    """An order of results that differ only in their seconds and memory."""
    seconds, size = row.seconds, row.mebibytes
    return seconds is None, seconds or 0.0, size is None, size or 0.0


def _payload_of(row: Stored, folder: Path) -> dict[str, Any]:
    try:
        if not KEY.fullmatch(row.key):
            raise ValueError("its key is not one")
        return sound_payload(parse_json(row.payload, nan_is_none=True))
    except ValueError as error:
        raise RunError(
            f"{folder}: the result of {row.method} on case {row.case_id} is damaged; leave this "
            "run out"
        ) from error


def _tell_conflict(one: Row, other: Row) -> str:
    """Two results of one key: where they differ, and both values."""
    (mine, here), there = one, other[1]
    parts = [
        {"method": row.method, "case": row.case_id} | _payload_of(row, f) for row, f in (one, other)
    ]
    where, values = _differ(*parts)
    return (
        f"{mine.method} on case {mine.case_id} has two results: {where} is {values[0]} in {here} "
        f"and {values[1]} in {there}; leave one run out"
    )


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, tuple[str, str]]:
    """The name of the first part in which two payloads differ, and both values of it."""
    for name in sorted({*one, *other}, key=lambda name: (name not in FIRST, name)):
        mine, theirs = one.get(name), other.get(name)
        if mine == theirs:
            continue
        if isinstance(mine, dict) and isinstance(theirs, dict):
            inner, values = _differ(mine, theirs)
            return f"{name} {inner}", values
        return name, (_short(mine), _short(theirs))
    return "the text", ("one", "another")


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


@dataclass(frozen=True)
class Merged:
    """The facts of a merged run, and its number of results of each method."""

    facts: Mapping[str, str]
    found: Mapping[str, int]


def merge_runs(folders: Sequence[Path], out: Path) -> Merged:
    """Merge the runs in *folders* into *out*: a new folder, or a run of the same comparison.

    Raises `RunError` if a folder is not a planned run, if two runs differ in a fact, or if a task
    has two different results; then *out* stays as it was.
    """
    there = (out / FILE).is_file()
    given = {folder.resolve(): folder for folder in [*folders, *([out] if there else [])]}
    several = [given[place] for place in sorted(given)]
    facts = _common_facts(several)
    if there and SHARD in read_run_facts(out):
        raise RunError(f"{out} is a shard, which is not changed; give a new folder to -O")
    if not there and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is not a run of lmedit; give a new folder to -O")
    writing: AbstractContextManager[Path] = nullcontext(out) if there else writing_folder(out)
    with writing as place:
        rows = _Rows(several, place)
        with RunStore(place) as store:
            store.note(facts)
            store.put_all(rows)
        if not there:
            _copy_cases(several, place)
            shutil.rmtree(place / "workers")
    return Merged(facts, dict(sorted(rows.found.items())))


def _common_facts(folders: Sequence[Path]) -> dict[str, str]:
    """The facts of all *folders* together. Raises `RunError` if two of them differ in one."""
    found: dict[str, str] = {}
    owner: dict[str, Path] = {}
    for folder in folders:
        if not (folder / FILE).is_file():
            raise RunError(f"{folder} is not a run of lmedit; name the folders of lmedit work")
        mine = read_run_facts(folder)
        if PLAN not in mine:
            raise RunError(
                f"{folder} was not made by lmedit work, so its plan is not known; leave it out"
            )
        for other in dict.fromkeys(owner.values()):
            theirs = {name: found[name] for name in found if owner[name] == other}
            if told := find_conflict(theirs, mine, (other, folder)):
                raise RunError(f"{told}; leave one run out")
        for name, value in mine.items():
            if not is_own(name):
                found.setdefault(name, value)
                owner.setdefault(name, folder)
    return found


def _copy_cases(folders: Sequence[Path], to: Path) -> None:
    """Copy the list of the cases. Seeds order it differently: the first by its bytes is taken."""
    known = []
    for folder in folders:
        try:
            data = read_bytes(folder / CASES)
            if not isinstance(parse_json(data), list):
                raise ValueError("it is not a list")
        except FileNotFoundError:
            continue  # the run stopped before its first task
        except (OSError, ValueError) as error:
            raise RunError(f"{folder / CASES} is damaged ({error}); leave this run out") from error
        known.append(data)
    if known:
        (to / CASES).write_bytes(min(known))
