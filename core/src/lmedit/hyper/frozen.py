"""What the unedited model gives for examples: computed once for each text, kept while memory lasts.

The blocks below the first edited one never change, nor do an edit's gradient factors, nor what
the unedited model says about other texts. A training step runs the edited blocks alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from lmedit.hyper.factors import cut, factors_of, stacked
from lmedit.hyper.losses import edit_loss
from lmedit.replay import enter, resume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from lmedit.hyper.examples import Example, Row
    from lmedit.hyper.factors import Factors
    from lmedit.models import Lm
    from lmedit.replay import Entering, Kept
    from lmedit.types import Site

GIGABYTE = 1024**3
GROUP = 16
"""Texts that are run together, those of about one length."""
Ids = tuple[int, ...]
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


def ids_of(row: Row) -> list[int]:
    """What is run of a prompt and a target: all but the last token."""
    prompt, target = row
    return [*prompt, *target[:-1]]


class Frozen:
    """A model and the matrices that are edited in it, with the memory of what it gave."""

    def __init__(
        self, lm: Lm, sites: Sequence[Site], first: int, examples: Sequence[Example],
        gigabytes: float,
    ) -> None:  # fmt: skip
        """*first* is the lowest edited block; at most *gigabytes* are kept of *examples*."""
        self.lm, self.sites, self.first = lm, tuple(sites), first
        apart = {tuple(ids) for example in examples for ids in example.apart}
        outer = {tuple(ids_of(row)) for example in examples for row in example.outer}
        wide = 4 * sum(sum(lm.weight(site).shape) for site in self.sites)
        state = lm.hidden_size * lm.working_dtype.itemsize
        room = gigabytes * GIGABYTE

        def memory(
            items: Iterable[Item], work: Callable[[list[Item]], list[Value]], size: float,
            length: Callable[[Item], int],
        ) -> _Memory[Item, Value]:  # fmt: skip
            nonlocal room
            ordered = sorted(items, key=lambda item: (length(item), repr(item)))
            needed = size * sum(map(length, ordered))
            kept = ordered if needed <= room else []
            room -= needed if kept else 0
            return _Memory(work, kept)

        def entering(layer: int) -> Callable[[list[Ids]], list[Entering]]:
            return lambda rows: enter(lm, rows, layer)

        self._entering = memory(outer | apart, entering(first), state, len)
        self._leaving = memory(apart, entering(lm.n_layers), state, len)
        self._known = memory(
            examples, self._gradients, wide, lambda e: len(e.inner[0]) + len(e.inner[1])
        )

    def from_first(self, rows: Sequence[list[int]]) -> Kept:
        """*rows* ready to run from the first edited block on."""
        states = self._entering.of([tuple(row) for row in rows])
        return resume(self.lm, rows, self.first, states)

    @torch.no_grad()
    def logits(self, rows: Sequence[list[int]], where: tuple[Tensor, Tensor]) -> Tensor:
        """The unedited model's logits (n, V) at the places *where* (rows, positions)."""
        states = self._leaving.of([tuple(row) for row in rows])
        return resume(self.lm, rows, self.lm.n_layers, states).gathered(*where)

    def factors(self, examples: Sequence[Example]) -> dict[Site, Factors]:
        """The gradient factors of the examples' edits, as one batch."""
        return stacked(self._known.of(list(examples)))

    def _gradients(self, examples: list[Example]) -> list[dict[Site, Factors]]:
        found = edit_factors(self.lm, self.sites, [e.inner for e in examples], self.first)
        return [{site: cut(each, i) for site, each in found.items()} for i in range(len(examples))]


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


class _Memory(Generic[Item, Value]):
    """Values of items, worked out in fixed groups when first asked for, and kept.

    The groups do not depend on what is asked for when, so neither do the values' last bits. What
    is not kept is worked out anew each time.
    """

    def __init__(self, work: Callable[[list[Item]], list[Value]], kept: Sequence[Item]) -> None:
        self.work = work
        self.groups = [list(kept[i : i + GROUP]) for i in range(0, len(kept), GROUP)]
        self.group_of = {item: i for i, group in enumerate(self.groups) for item in group}
        self.values: dict[Item, Value] = {}

    def of(self, items: Sequence[Item]) -> list[Value]:
        """The values of *items*."""
        if not all(item in self.group_of for item in items):
            return self.work(list(items))
        for number in sorted({self.group_of[i] for i in items if i not in self.values}):
            group = self.groups[number]
            self.values |= dict(zip(group, self.work(group), strict=True))
        return [self.values[item] for item in items]
