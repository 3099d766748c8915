"""Results of the unedited model for examples: computed once per text, stored while memory allows.

Three things never change in a training: the outputs of the blocks below the first edited one, an
edit's gradient factors, and the unedited model's predictions for other texts. So a training step
runs only the edited blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from lmedit.hyper.factors import Factors, cut_out, factors_of, only_at, stack
from lmedit.hyper.losses import edit_loss
from lmedit.replay import enter, resume

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmedit.hyper.examples import Example, Ids, Row
    from lmedit.models import Lm
    from lmedit.replay import Entering, Kept
    from lmedit.types import Site

    Hear = Callable[[Tensor], object]

GIGABYTE = 1024**3
GROUP = 32
"""Largest number of texts that run together."""
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Targets:
    """Where target tokens are predicted: row, position, token and edit of each, (n,)."""

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    edit_of: Tensor


def targets_of(rows: Sequence[Row], device: torch.device) -> Targets:
    """The targets of rows that run as prompt + target[:-1]."""
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
    """The tokens to run of a prompt and a target: all but the last one."""
    prompt, target = row
    return (*prompt, *target[:-1])


class FrozenModel:
    """A model, the matrices to edit, and the stored results of the unedited model."""

    def __init__(
        self,
        lm: Lm,
        sites: Sequence[Site],
        first: int,
        gigabytes: float,
        *,
        answers: bool = False,
        hear: Hear | None = None,
    ) -> None:
        """*first* is the lowest edited block; *gigabytes* limits the stored results.

        With *answers* the factors are those of the tokens that predict an answer. `edit_factors`
        describes *hear*.
        """
        self.lm, self.sites, self.first, self.answers = lm, tuple(sites), first, answers
        self._hear = hear
        room = _Room(gigabytes * GIGABYTE)
        self._entering: _Memory[Ids, Entering] = _Memory(
            lambda rows: enter(lm, rows, first), lambda states: states.hidden.nbytes, room
        )
        self._leaving: _Memory[Ids, Entering] = _Memory(
            lambda rows: enter(lm, rows, lm.n_layers, self.from_first(rows)),
            lambda states: states.hidden.nbytes,
            room,
        )
        self._known = _Memory(self._gradients, _bytes_of, room)

    def expect(
        self, outer: Sequence[Ids], apart: Sequence[Ids], examples: Sequence[Example]
    ) -> None:
        """Register that a training asked for these together, without computing anything."""
        self._leaving.note(apart)
        self._entering.note(apart)
        self._known.note(examples)
        self._entering.note([*outer, *apart])

    def from_first(self, rows: Sequence[Ids]) -> Kept:
        """*rows*, ready to run from the first edited block."""
        return resume(self.lm, rows, self.first, self._entering.of(rows))

    @torch.no_grad()
    def logits(self, rows: Sequence[Ids], where: tuple[Tensor, Tensor]) -> Tensor:
        """The unedited model's logits (n, V) at *where* (rows, positions)."""
        states = self._leaving.of(rows)
        return resume(self.lm, rows, self.lm.n_layers, states).logits_at(*where)

    def factors(self, examples: Sequence[Example]) -> dict[Site, Factors]:
        """The gradient factors of the examples' edits, as one batch."""
        return stack(self._known.of(examples))

    def _gradients(self, examples: Sequence[Example]) -> list[dict[Site, Factors]]:
        rows = [e.inner for e in examples]
        found = edit_factors(
            self.lm, self.sites, rows, self.first, answers=self.answers, hear=self._hear
        )
        return [{site: cut_out(each, i) for site, each in found.items()} for i in range(len(rows))]


def _bytes_of(factors: dict[Site, Factors]) -> int:
    return sum(f.x.nbytes + f.delta.nbytes for f in factors.values())


def edit_factors(
    lm: Lm,
    sites: Sequence[Site],
    rows: Sequence[Row],
    first: int,
    *,
    answers: bool = False,
    hear: Hear | None = None,
) -> dict[Site, Factors]:
    """Factors at *sites* of -log P(target | prompt), the mean over each row's target tokens.

    *first* is the lowest block with one of the *sites*. With *answers* the loss is the sum over
    the target's tokens, so each weighs the same, and only the tokens that predict them count.
    *hear* gets the mean losses (rows,) in nats per token.
    """
    ids = [ids_of(row) for row in rows]
    kept = resume(lm, ids, first, enter(lm, ids, first))
    at = targets_of(rows, lm.device)
    counts = torch.tensor([len(target) for _, target in rows], device=lm.device)

    def loss() -> Tensor:
        log_p = kept.logits_at(at.rows, at.positions).float().log_softmax(-1)
        each = edit_loss(log_p, at.tokens, at.edit_of, len(rows))
        if hear is not None:
            hear(each.detach())
        return (each * counts).sum() if answers else each.sum()

    found = factors_of(lm, sites, len(rows), loss)
    if not answers:
        return found
    return {site: only_at(each, at.rows, at.positions) for site, each in found.items()}


@dataclass
class _Room:
    """The number of bytes that may still be stored."""

    left: float

    def take(self, size: float) -> bool:
        """Reserve *size* bytes; return False if there are fewer."""
        if size > self.left:
            return False
        self.left -= size
        return True


class _Memory(Generic[Item, Value]):
    """Values of items. Items that were first requested together are always computed together.

    So a value's last bits depend on the first request, never on the stored values. A training that
    continues after an interruption registers its old requests and finds the same values. Values
    without room are computed again each time.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Value]],
        size: Callable[[Value], int],
        room: _Room,
    ) -> None:
        self.work, self.size, self.room = work, size, room
        self.groups: list[list[Item]] = []
        self.group_of: dict[Item, int] = {}
        self.values: dict[Item, Value] = {}

    def note(self, items: Sequence[Item]) -> None:
        """Put those *items* that are in no group into new groups."""
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
