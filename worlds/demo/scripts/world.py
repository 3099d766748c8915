"""Load the embedded world: subject tables and relations, validated and frozen."""

from __future__ import annotations

import csv
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Key = TypeVar("Key")

WORLD_DIR = Path(__file__).resolve().parent.parent / "world"
PACKAGE_DIR = Path(__file__).resolve().parent.parent / "src" / "lmedit_demo"
MIN_PHRASINGS = 9


@dataclass(frozen=True)
class Subject:
    """One thing the model knows about, with the table it comes from."""

    name: str
    table: str


@dataclass(frozen=True)
class Relation:
    """A property with its phrasings; `covers` holds (table, column) pairs."""

    id: str
    name: str
    type: str
    covers: tuple[tuple[str, str], ...]
    phrasings: tuple[str, ...]

    @property
    def rewrite(self) -> str:
        """The phrasing used as CounterFact's rewrite prompt."""
        return self.phrasings[0]


@dataclass(frozen=True)
class Fact:
    """One (subject, relation, answer) triple."""

    subject: Subject
    relation: Relation
    answer: str


@dataclass(frozen=True)
class World:
    """All subjects, relations and facts, plus what validation dropped.

    `dropped` lists "table:subject" of every row whose subject had occurred before.
    """

    subjects: tuple[Subject, ...]
    relations: tuple[Relation, ...]
    facts: tuple[Fact, ...]
    subject_types: dict[str, str]
    dropped: tuple[str, ...]

    def answers(self) -> dict[str, tuple[str, ...]]:
        """The distinct answers of each relation id, sorted."""
        found: dict[str, set[str]] = defaultdict(set)
        for fact in self.facts:
            found[fact.relation.id].add(fact.answer)
        return {key: tuple(sorted(values)) for key, values in found.items()}

    def by_subject(self) -> dict[str, tuple[Fact, ...]]:
        """The facts of each subject name, in relation order."""
        return _group(self.facts, lambda fact: fact.subject.name)

    def by_relation(self) -> dict[str, tuple[Fact, ...]]:
        """The facts of each relation id, in the order of the tables."""
        return _group(self.facts, lambda fact: fact.relation.id)

    def by_answer(self) -> dict[tuple[str, str], tuple[Fact, ...]]:
        """The facts of each (relation id, answer), in the order of the tables."""
        return _group(self.facts, lambda fact: (fact.relation.id, fact.answer))


def _group(facts: Iterable[Fact], key: Callable[[Fact], Key]) -> dict[Key, tuple[Fact, ...]]:
    """Facts under the key that each of them has, in their order."""
    found: dict[Key, list[Fact]] = defaultdict(list)
    for fact in facts:
        found[key(fact)].append(fact)
    return {name: tuple(members) for name, members in found.items()}


def read_table(path: Path) -> list[dict[str, str]]:
    """Read one tab-separated table; whitespace is normalised and empty cells are refused."""
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
    header = [cell.strip() for cell in rows[0]]
    if not header or header[0] != "subject":
        raise ValueError(f"{path.name}: first column must be 'subject', got {header[:1]}")
    table = []
    for number, row in enumerate(rows[1:], start=2):
        cells = [" ".join(cell.split()) for cell in row]
        if not any(cells):
            continue
        if len(cells) != len(header) or not all(cells):
            raise ValueError(f"{path.name}:{number}: expected {len(header)} filled cells: {row}")
        table.append(dict(zip(header, cells, strict=True)))
    return table


def read_relations(path: Path) -> tuple[tuple[Relation, ...], dict[str, str]]:
    """Read the relations and the subject type of each table."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    relations = tuple(
        Relation(
            id=entry["id"],
            name=entry["name"],
            type=entry["type"],
            covers=tuple((table, column) for table, column in entry["covers"]),
            phrasings=tuple(entry["phrasings"]),
        )
        for entry in data["relation"]
    )
    for relation in relations:
        check_phrasings(relation)
    return relations, dict(data["subject_types"])


def check_phrasings(relation: Relation) -> None:
    """Refuse phrasings that the sampler or the records could not use."""
    if len(set(relation.phrasings)) < MIN_PHRASINGS:
        raise ValueError(f"{relation.id}: fewer than {MIN_PHRASINGS} distinct phrasings")
    for phrasing in relation.phrasings:
        if phrasing.count("{}") != 1 or phrasing != phrasing.strip():
            raise ValueError(f"{relation.id}: bad phrasing {phrasing!r}")


def load_world(folder: Path = WORLD_DIR) -> World:
    """Load and validate the whole world from its folder."""
    relations, types = read_relations(folder / "relations.toml")
    seen: set[str] = set()
    subjects: list[Subject] = []
    facts: list[Fact] = []
    dropped: list[str] = []
    for table in types:
        columns = [(r, column) for r in relations for t, column in r.covers if t == table]
        for row in read_table(folder / f"{table}.tsv"):
            # Two things of one name would make the truth of a prompt ambiguous.
            if row["subject"].casefold() in seen:
                dropped.append(f"{table}:{row['subject']}")
                continue
            seen.add(row["subject"].casefold())
            subject = Subject(row["subject"], table)
            subjects.append(subject)
            facts.extend(Fact(subject, relation, row[column]) for relation, column in columns)
    return World(tuple(subjects), relations, tuple(facts), types, tuple(dropped))
