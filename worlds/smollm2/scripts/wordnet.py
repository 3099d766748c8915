"""Read the nouns of WordNet 3.0's database files: senses, hypernyms and glosses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Synset:
    """One sense: its names, what it is a kind of or an instance of, and its gloss."""

    id: str
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    instance_of: tuple[str, ...]
    gloss: str


class Nouns:
    """All noun synsets, and for each word its senses, the most frequent first."""

    def __init__(self, folder: Path) -> None:
        """Read `data.noun` and `index.noun` of *folder*."""
        lines = (folder / "data.noun").read_text("utf-8").splitlines()
        self.synsets = {s.id: s for s in map(parse_line, lines) if s}
        self.senses: dict[str, list[str]] = {}
        for line in (folder / "index.noun").read_text("utf-8").splitlines():
            if not line.startswith(" "):
                cells = line.split()
                self.senses[cells[0].replace("_", " ")] = cells[-int(cells[2]) :]

    def first(self, word: str) -> Synset:
        """The most frequent sense of a word."""
        return self.synsets[self.senses[word.casefold()][0]]

    def is_first_sense(self, name: str, synset: Synset) -> bool:
        """Whether *synset* is the most frequent sense of *name*."""
        return self.senses[name.casefold()][0] == synset.id

    def ancestors(self, synset: Synset) -> Iterator[Synset]:
        """Every synset that *synset* is a kind or an instance of, nearest first."""
        queue, seen = [*synset.kinds, *synset.instance_of], set()
        while queue:
            number = queue.pop(0)
            if number not in seen:
                seen.add(number)
                above = self.synsets[number]
                yield above
                queue += [*above.kinds, *above.instance_of]


def parse_line(line: str) -> Synset | None:
    """One line of `data.noun`; None for the licence's lines at its top."""
    if line.startswith(" "):
        return None
    data, _, gloss = line.partition(" | ")
    cells = data.split()
    count = int(cells[3], 16)
    names = tuple(cells[4 + 2 * i].replace("_", " ") for i in range(count))
    at = 4 + 2 * count
    pointers = [cells[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(cells[at]))]
    kinds = tuple(target for sign, target, *_ in pointers if sign == "@")
    instance_of = tuple(target for sign, target, *_ in pointers if sign == "@i")
    return Synset(cells[0], names, kinds, instance_of, gloss.strip())
