"""What the unedited model gives for examples: computed once for each text, kept while memory lasts.

The blocks below the first edited one never change, nor do an edit's gradient factors, nor what
the unedited model says about other texts. A training step runs the edited blocks alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from lmedit.hyper.factors import Factors, cut, factors_of, stacked
from lmedit.hyper.losses import edit_loss
from lmedit.replay import enter, resume

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmedit.hyper.examples import Example, Ids, Row
    from lmedit.models import Lm
    from lmedit.replay import Entering, Kept
    from lmedit.types import Site

GIGABYTE = 1024**3
GROUP = 32
"""Texts that are run together at most."""
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Targets:
    """Where target tokens are predicted: row and position of each (n,), the token, its edit."""

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    edit_of: Tensor


def targets_of(rows: Sequence[Row], device: torch.device) -> Targets:
    """For rows of a prompt and a target, run as prompt + target[:-1]."""
    flat = [
        (i, len(prompt) - 1 + place, token)
        for i, (prompt, target) in enumerate(rows)
        for place, token in enumerate(target)
    ]
    i, positions, tokens = (
        torch.tensor(column, device=device) for column in zip(*flat, strict=True)
    )
    return Targets(i, positions, tokens, i)


def ids_of(row: Row) -> Ids:
    """What is run of a prompt and a target: all but the last token."""
    prompt, target = row
    return (*prompt, *target[:-1])


class Frozen:
    """A model and the matrices that are edited in it, with the memory of what it gave."""

    def __init__(self, lm: Lm, sites: Sequence[Site], first: int, gigabytes: float) -> None:
        """*first* is the lowest edited block; at most *gigabytes* are kept."""
        self.lm, self.sites, self.first = lm, tuple(sites), first
        room = _Room(gigabytes * GIGABYTE)
        self._entering: _Memory[Ids, Entering] = _Memory(
            lambda rows: enter(lm, rows, first), lambda states: states.hidden.nbytes, room
        )
        self._leaving: _Memory[Ids, Entering] = _Memory(
            lambda rows: enter(lm, rows, lm.n_layers, self.from_first(rows)),
            lambda states: states.hidden.nbytes, room,
        )  # fmt: skip
        self._known = _Memory(self._gradients, _bytes_of, room)

    def expect(
        self, outer: Sequence[Ids], apart: Sequence[Ids], examples: Sequence[Example]
    ) -> None:
        """Note that a training asked for these together, without working anything out."""
        self._leaving.note(apart)
        self._entering.note(apart)
        self._known.note(examples)
        self._entering.note([*outer, *apart])

    def from_first(self, rows: Sequence[Ids]) -> Kept:
        """*rows* ready to run from the first edited block on."""
        return resume(self.lm, rows, self.first, self._entering.of(rows))

    @torch.no_grad()
    def logits(self, rows: Sequence[Ids], where: tuple[Tensor, Tensor]) -> Tensor:
        """The unedited model's logits (n, V) at the places *where* (rows, positions)."""
        states = self._leaving.of(rows)
        return resume(self.lm, rows, self.lm.n_layers, states).gathered(*where)

    def factors(self, examples: Sequence[Example]) -> dict[Site, Factors]:
        """The gradient factors of the examples' edits, as one batch."""
        return stacked(self._known.of(examples))

    def _gradients(self, examples: Sequence[Example]) -> list[dict[Site, Factors]]:
        found = edit_factors(self.lm, self.sites, [e.inner for e in examples], self.first)
        return [{site: cut(each, i) for site, each in found.items()} for i in range(len(examples))]


def _bytes_of(factors: dict[Site, Factors]) -> int:
    return sum(f.x.nbytes + f.delta.nbytes for f in factors.values())


def edit_factors(
    lm: Lm, sites: Sequence[Site], rows: Sequence[Row], first: int
) -> dict[Site, Factors]:
    """Factors at *sites* of -log P(target | prompt), the mean over each row's target tokens.

    *first* is the lowest block with one of the *sites*.
    """
    ids = [ids_of(row) for row in rows]
    kept = resume(lm, ids, first, enter(lm, ids, first))
    at = targets_of(rows, lm.device)

    def loss() -> Tensor:
        log_p = kept.gathered(at.rows, at.positions).float().log_softmax(-1)
        return edit_loss(log_p, at.tokens, at.edit_of, len(rows)).sum()

    return factors_of(lm, sites, len(rows), loss)


@dataclass
class _Room:
    """Bytes that may still be kept."""

    left: float

    def take(self, size: float) -> bool:
        """Take *size* bytes if they are there."""
        if size > self.left:
            return False
        self.left -= size
        return True


class _Memory(Generic[Item, Value]):
    """Values of items, worked out together with those that were first asked for with them.

    So a value's last bits depend on what was asked for first, never on what is still kept: a
    training that goes on after an interruption, and notes what it asked for before, finds the same
    values. What has no room is worked out anew each time.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Sequence[Value]], size: Callable[[Value], int],
        room: _Room,
    ) -> None:  # fmt: skip
        self.work, self.size, self.room = work, size, room
        self.groups: list[list[Item]] = []
        self.group_of: dict[Item, int] = {}
        self.values: dict[Item, Value] = {}

    def note(self, items: Sequence[Item]) -> None:
        """Make a group of those *items* that are in none."""
        new = [item for item in dict.fromkeys(items) if item not in self.group_of]
        for start in range(0, len(new), GROUP):
            group = new[start : start + GROUP]
            self.group_of |= dict.fromkeys(group, len(self.groups))
            self.groups.append(group)

    def of(self, items: Sequence[Item]) -> list[Value]:
        """The values of *items*."""
        self.note(items)
        fresh: dict[Item, Value] = {}
        for number in sorted({self.group_of[i] for i in items if i not in self.values}):
            group = self.groups[number]
            found = dict(zip(group, self.work(group), strict=True))
            fresh |= found
            if self.room.take(sum(map(self.size, found.values()))):
                self.values |= found
        return [self.values.get(item) or fresh[item] for item in items]
