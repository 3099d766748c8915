"""A shard: the part of a comparison that one machine does, as `2/3`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from lmedit.errors import UsageError

if TYPE_CHECKING:
    from lmedit.cases.load import CaseSet

BASELINES = ("base", "retrieve")
"""What has a pile of its own beside the methods."""
MOST = 10**6
"""The largest number of shards."""


@dataclass(frozen=True)
class Shard:
    """Number `number` of `of` parts. Every unit of work belongs to exactly one of the parts."""

    number: int = 1
    of: int = 1
    names: tuple[str, ...] = ()
    """All methods of the comparison, in their order."""

    @classmethod
    def read(cls, text: str, names: tuple[str, ...] = ()) -> Self:
        """The shard that *text* names, as ``2/3``, of methods *names*. Raises `UsageError`."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        number, of = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= of <= MOST:
            raise UsageError(f"{text!r} is no shard; give its number and how many there are: 2/3")
        return cls(number, of, names)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def takes(self, unit: int) -> bool:
        """Whether the *unit* of work with this number belongs to this shard."""
        return unit % self.of == self.number - 1

    def takes_pile(self, name: str, seed: int) -> bool:
        """Whether all edits of the candidate *name* in one model belong to this shard.

        *seed* is 0 where a seed changes no key, so that no two shards store the same result.
        """
        known = [*self.names, *BASELINES]
        place = known.index(name) if name in known else len(known)
        return self.takes(place + seed * (len(known) + 1))

    def cut(self, cases: CaseSet, group: int) -> CaseSet:
        """The cases of this shard: whole groups of *group* usable cases, in turn.

        The groups are those of a run on one machine, so each group is computed as there. Broken
        records belong to the first shard.
        """
        kept, number = [], 0
        good = set(map(id, cases.good))
        for item in cases.items:
            usable = id(item) in good
            if self.takes(number // group) if usable else self.number == 1:
                kept.append(item)
            number += usable
        return replace(cases, items=tuple(kept))
