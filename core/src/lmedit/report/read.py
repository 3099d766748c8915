"""Read a run folder: the results, their cases, and the result of each method on each case.

Only `results.json` is required. If its rows name results in the store (`keys`), these are read too;
`cases.json` adds the texts. Without them a report shows less, but never an invented number.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from lmedit.compare.measures import sort_columns
from lmedit.compare.store import FILE, Stored, read_results
from lmedit.compare.table import method_title
from lmedit.errors import RunError
from lmedit.storage.json_files import check_schema, parse_json, read_json
from lmedit.types import first_complaint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

BASE = "base"
RESULTS, CASES = "results.json", "cases.json"
Value = TypeVar("Value")


class Lenient(BaseModel):
    """A part of a run's files; unknown fields are kept, not refused."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Numbers(Lenient):
    """A method's name, and numbers by the names of columns."""

    method: str

    def number(self, name: str) -> float | None:
        """The value of a column; None if it was not measured."""
        value = (self.model_extra or {}).get(name)
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if known else None


class Ability(Lenient):
    """A metric of a task on the base and on edited models; None if it was not measured."""

    documents: int
    base: float | None = None
    edited: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


class Row(Numbers):
    """One method's row of the results."""

    n: int
    n_failed: int
    failures: dict[str, int] = {}
    n_unsound: int = 0
    unsound: str | None = None
    keys: list[str] = []
    options: dict[str, Any] = {}
    version: str | None = None
    untuned: bool = False
    abilities: dict[str, dict[str, Ability]] | None = None
    """By task and metric: the base, the edited model, and their difference."""

    @property
    def title(self) -> str:
        """The method's name as tables show it."""
        return method_title(self.method, untuned=self.untuned)


class Point(Numbers):
    """The scores after a number of edits."""

    size: int
    collapsed: bool = False


class Difference(Lenient):
    """The lead of one method over another in points, with the 95 % interval."""

    one: str
    other: str
    score: str
    estimate: float
    low: float
    high: float


class Claim(Lenient):
    """What may be claimed about two methods and a score."""

    one: str
    other: str
    score: str
    shown: bool
    winner: str | None = None
    low: float | None = None
    high: float | None = None


class Published(Lenient):
    """A paper's rows for the methods of the run."""

    source: str
    rows: list[Numbers] = []


class JudgedBy(Lenient):
    """The shares that a program of the user judged right: the program, and a row per method."""

    name: str
    version: str | None = None
    rows: list[Numbers] = []

    @property
    def title(self) -> str:
        """The program's name and version."""
        return f"{self.name} {self.version or ''}".strip()


class Named(Lenient):
    """The model, or the set of cases."""

    name: str
    digest: str = ""


class Results(Lenient):
    """The content of `results.json`."""

    model: Named
    cases: Named
    seed: int | None = None
    protocol: dict[str, Any] = {}
    rows: list[Row]
    curve: list[Point] = []
    differences: list[Difference] = []
    claims: list[Claim] = []
    seeds: list[int] = []
    regime: dict[str, Any] = {}
    collapse_points: dict[str, int | None] = {}
    published: Published | None = None
    judged: list[JudgedBy] = []
    trained_on: dict[str, int] = Field(default_factory=dict)
    several_edits: dict[str, str] = Field(default_factory=dict)


class Fact(Lenient):
    """The request of a case."""

    prompt: str
    subject: str | None = None
    target_new: str
    target_true: str | None = None


class Text(Lenient):
    """A case of the run: the request, and the prompts that judge it."""

    id: str
    request: Fact
    paraphrases: list[str] = []
    neighbours: list[str] = []
    relation: str | None = None
    relation_id: str | None = None

    @property
    def group(self) -> str:
        """The kind of the fact: its relation if the data set has one, else its prompt."""
        return self.relation or self.relation_id or self.request.prompt


def _texts(value: Any) -> Any:
    """Generated texts by prompt; numbers and nested values become JSON."""
    if not isinstance(value, dict):
        return {"text": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
    return {
        name: text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        for name, text in value.items()
    }


class Payload(Lenient):
    """The stored result of one method on one case."""

    scores: dict[str, float | None] | None = None
    failure: str | None = None
    bytes: int | None = None
    norms: dict[str, float | None] = {}
    generated: Annotated[dict[str, str], BeforeValidator(_texts)] = {}


@dataclass(frozen=True)
class StoredCase:
    """One method on one case: its scores, or the reason of its failure."""

    case_id: str
    payload: Payload
    seconds: float | None

    @property
    def scores(self) -> Mapping[str, float | None]:
        """The scores by name; empty if the edit failed."""
        return self.payload.scores or {}


@dataclass(frozen=True)
class FinishedRun:
    """A run that was read; `entries` and `texts` are in the order of `ids`."""

    results: Results
    raw: Mapping[str, Any]
    ids: tuple[str, ...] = ()
    entries: Mapping[str, tuple[StoredCase, ...]] = field(default_factory=dict)
    texts: tuple[Text | None, ...] = ()

    @property
    def methods(self) -> list[str]:
        """The methods with known single results, in the order of the rows."""
        return [row.method for row in self.results.rows if row.method in self.entries]

    @cached_property
    def score_names(self) -> list[str]:
        """The scores of single cases: known ones in the table's order, then the others."""
        found = {
            name
            for row in self.entries.values()
            for entry in row
            for name, value in entry.scores.items()
            if value is not None
        }
        return sort_columns(found)

    def counting_scores(self, method: str, index: int) -> Mapping[str, float | None]:
        """The scores that count: after a failed edit, those of the unedited model."""
        entry = self.entries[method][index]
        if entry.payload.failure is not None and BASE in self.entries:
            return self.entries[BASE][index].scores
        return entry.scores

    def values(self, method: str, score: str) -> list[float]:
        """The counted values of a score over all cases, without the missing ones."""
        found = (self.counting_scores(method, index).get(score) for index in range(len(self.ids)))
        return [value for value in found if value is not None]


def read_run(folder: Path) -> FinishedRun:
    """Read the run in *folder*. Raises `RunError` if there is no run or if it is damaged."""
    if not (folder / RESULTS).is_file():
        raise RunError(
            f"no finished run in {folder}: it has no {RESULTS}; give the folder that "
            "lmedit compare --run wrote"
        )
    raw = _json(folder / RESULTS)
    results = _validate(folder / RESULTS, Results.model_validate, raw)
    names = [row.method for row in results.rows]
    if len(set(names)) < len(names):
        raise RunError(f"{folder / RESULTS} has two rows of one method; run compare again")
    entries = _entries(folder, results)
    ids = tuple(entry.case_id for entry in next(iter(entries.values()), ()))
    if any(tuple(entry.case_id for entry in row) != ids for row in entries.values()):
        raise RunError(f"{folder / RESULTS} has rows about different cases; run compare again")
    return FinishedRun(results, raw, ids, entries, _case_texts(folder, ids))


def _entries(folder: Path, results: Results) -> dict[str, tuple[StoredCase, ...]]:
    """The stored results that the rows name by key."""
    named = {row.method: row.keys for row in results.rows if row.keys}
    if not named:
        return {}
    if not (folder / FILE).is_file():
        raise RunError(f"{folder / FILE} is missing; run compare again")
    stored = {result.key: result for result in read_results(folder)}
    lost = sum(key not in stored for keys in named.values() for key in keys)
    if lost:
        raise RunError(
            f"{folder / FILE} lacks {lost} of the results that {RESULTS} names; "
            "run compare again to finish them"
        )
    return {
        method: tuple(_entry(folder, stored[key]) for key in keys) for method, keys in named.items()
    }


def _entry(folder: Path, stored: Stored) -> StoredCase:
    try:
        found = parse_json(stored.payload, nan_is_none=True)
    except ValueError as error:
        raise RunError(f"{folder / FILE}, {stored.key}: {error}; run compare again") from error
    payload = _validate(f"{folder / FILE}, {stored.key}", Payload.model_validate, found)
    return StoredCase(stored.case_id, payload, stored.seconds)


def _case_texts(folder: Path, ids: tuple[str, ...]) -> tuple[Text | None, ...]:
    """The cases of *ids*; None for a case that is not in the file."""
    path = folder / CASES
    if not path.is_file():
        return (None,) * len(ids)
    texts = _validate(path, TypeAdapter(list[Text]).validate_python, _json(path))
    if tuple(text.id for text in texts) == ids:
        return tuple(texts)
    by_id = {text.id: text for text in texts}
    return tuple(by_id.get(case_id) for case_id in ids)


def _json(path: Path) -> Any:
    try:
        found = read_json(path, nan_is_none=True)
        check_schema(found.get("schema") if isinstance(found, dict) else None)
        return found
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}; run compare again") from error


def _validate(where: object, validate: Callable[[Any], Value], found: Any) -> Value:
    try:
        return validate(found)
    except ValidationError as error:
        raise RunError(f"{where}: {first_complaint(error)}; run compare again") from None
