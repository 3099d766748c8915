"""Run a common beginning of many rows once: the rows go on from a cache of keys and values.

The prompts of a case often begin alike, with words in front of the subject or with examples. A row
is split in two parts at most: a beginning that it shares with others, and the rest.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from lmedit.replay.passes import run_on

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.replay.passes import Kept
    from lmedit.replay.unmerged import RowEdits

    Group = tuple[int, int, int]
    """Rows from one number to another (exclusive), and how many first tokens they share."""


GROUP_TOKENS = 8
"""A group with a beginning of its own costs as much time as this many more tokens: padding."""


def shared_starts(rows: Sequence[Sequence[int]], most: Sequence[int]) -> list[int]:
    """How many first tokens of each of *rows* run once for several rows; 0 for none.

    *rows* are sorted. Of row i at most ``most[i]`` tokens may be shared. A group of rows is split
    where neighbours share least, as long as this saves tokens.
    """
    same = [_count_same(*pair) for pair in pairwise(rows)]
    starts = [0] * len(rows)

    def split(low: int, high: int) -> tuple[int, list[Group]]:
        """What the rows from *low* to *high* cost in tokens, and their groups."""
        if high - low == 1:
            return len(rows[low]), []
        least = min(same[low : high - 1])
        shared = min(least, *most[low:high])
        whole = GROUP_TOKENS + shared + sum(len(row) - shared for row in rows[low:high])
        cuts = [low, *(n + 1 for n in range(low, high - 1) if same[n] == least), high]
        parts = [split(*pair) for pair in pairwise(cuts)]
        if sum(cost for cost, _ in parts) <= whole:
            return sum(cost for cost, _ in parts), [group for _, some in parts for group in some]
        return whole, [(low, high, shared)]

    for low, high, shared in split(0, len(rows))[1] if rows else []:
        starts[low:high] = [shared] * (high - low)
    return starts


def _count_same(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens of two rows are equal."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


@dataclass(frozen=True)
class Beginnings:
    """The keys and values of the beginnings of rows. A key is the number of an edit, then ids."""

    lm: Lm
    keys: Mapping[int, Sequence[int]]
    starts: Mapping[int, int]
    """How many first tokens of a row are its beginning."""
    under: RowEdits | None
    place: Mapping[int, int]
    """The place of a row's beginning in `pairs` and `mask`, if it has one."""
    pairs: Sequence[tuple[Tensor, Tensor]]
    """Keys and values (beginnings, heads, P, d) by block; empty without beginnings."""
    mask: Tensor
    """(beginnings, P): a beginning ends at the last column."""

    def logits_at(self, which: Sequence[int], where: Tensor) -> Tensor:
        """Run the rest of the rows *which* together, under their edits.

        Returns logits (n, V) at the places *where* (2, n): the number in *which*, and the token
        behind the row's beginning.
        """
        with _on(self.under, which):
            if self.under is None or self.pairs:
                kept = self._rest_of(which)
            else:
                kept = self.under.edits.ready([self.keys[m][1:] for m in which])
            whole_mlp = self.under is not None and self.under.edits.in_last
            return kept.logits_at(*where, whole_mlp=whole_mlp)

    def _rest_of(self, which: Sequence[int]) -> Kept:
        """The rows *which*, ready to run behind their beginnings."""
        rows, starts = [self.keys[m][1:] for m in which], [self.starts[m] for m in which]
        at = torch.tensor([self.place.get(m, 0) for m in which], device=self.lm.device)
        cut = self.mask.shape[1] - max(starts)
        mask = self.mask[at, cut:]
        mask[torch.tensor(starts, device=mask.device) == 0] = 0  # it has none of these columns
        pairs = [(keys[at, :, cut:], values[at, :, cut:]) for keys, values in self.pairs]
        return run_on(self.lm, rows, starts, pairs if max(starts) else [], mask)


@torch.no_grad()
def run_beginnings(
    lm: Lm,
    keys: Mapping[int, Sequence[int]],
    starts: Mapping[int, int],
    which: Sequence[int],
    under: RowEdits | None,
) -> Beginnings:
    """Run the beginnings of the rows *which* under their edits, equal ones once."""
    from lmedit.replay.kv_cache import cache_beginnings

    begin = {m: tuple(keys[m][: starts[m] + 1]) for m in which if starts[m]}
    first = {key: m for m, key in reversed(begin.items())}
    number = {key: n for n, key in enumerate(first)}
    with _on(under, [*first.values()]):
        pairs, mask = cache_beginnings(lm, [key[1:] for key in first] or [()])
    place = {m: number[key] for m, key in begin.items()}
    return Beginnings(lm, keys, starts, under, place, pairs, mask)


def _on(under: RowEdits | None, which: Sequence[int]) -> AbstractContextManager[None]:
    """In the block, a batch of the rows *which* runs under their edits."""
    return under.edits.on(under.at(which)) if under and which else nullcontext()
