"""Paired permutation test of two methods, and Holm's correction for many comparisons.

If two methods are equally good, the two records of a case can be swapped. The test compares the
observed difference with the differences after swaps (Good 2005, section 3.1). It needs no normal
distribution, and few cases never give a small p-value: n cases have only 2^n ways to swap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    Record = Sequence[float | None]

SWAPS = 10_000
"""How many random swaps are drawn if there are more than this in all."""
AT_ONCE = 2_000_000
TINY = 1e-12
"""Differences that are closer than this are equal, because sums are rounded."""


def permutation_p(
    one: Sequence[Record], other: Sequence[Record], seed: int = 0, swaps: int = SWAPS
) -> float | None:
    """The two-sided p-value of "both methods are equally good"; None without a score.

    *one* and *other* are the records of the same cases. The statistic is the difference of the
    harmonic means of the columns' means; with one column it is the difference of means. A missing
    score (None) is not part of its column's mean. All ways to swap are used if there are at most
    *swaps*; else *swaps* random ones are, and p is (hits + 1) / (swaps + 1).
    """
    if len(one) != len(other):
        raise ValueError(f"{len(one)} and {len(other)} records; give the same cases on both sides")
    if not one:
        return None
    a, b = _table(one), _table(other)
    observed = _difference(torch.zeros(1, len(a), dtype=torch.float64), a, b)
    if bool(observed.isnan()):
        return None
    least = float(observed.abs()) - TINY
    every = 2 ** len(a) <= swaps
    drawn = _all_masks(len(a)) if every else _random_masks(len(a), swaps, seed)
    hits = sum(int((_difference(masks, a, b).abs() >= least).sum()) for masks in drawn)
    return hits / 2 ** len(a) if every else (hits + 1) / (swaps + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in their order (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    found, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        found[place] = min(1.0, largest)
    return found


def _all_masks(cases: int) -> Iterator[Tensor]:
    numbers = torch.arange(2**cases)[:, None]
    yield ((numbers >> torch.arange(cases)) & 1).to(torch.float64)


def _random_masks(cases: int, swaps: int, seed: int) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(seed)
    at_once = max(1, AT_ONCE // cases)
    for done in range(0, swaps, at_once):
        size = (min(at_once, swaps - done), cases)
        yield torch.randint(2, size, generator=random).to(torch.float64)


def _difference(masks: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The statistic (R,) after the swaps *masks* (R, cases) of the records (cases, columns)."""
    return _mean_of(1 - masks, a, b) - _mean_of(masks, a, b)


def _mean_of(taken: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The harmonic mean (R,) of the columns' means, with *a* where *taken* is 1, else *b*."""
    sums, counts = (
        taken @ first + (1 - taken) @ second
        for first, second in (
            (a.nan_to_num(), b.nan_to_num()),
            ((~a.isnan()).to(torch.float64), (~b.isnan()).to(torch.float64)),
        )
    )
    means = (sums / counts).clamp(min=0)
    return a.shape[-1] / (1 / means).sum(-1)


def _table(records: Sequence[Record]) -> Tensor:
    nan = float("nan")
    rows = [[nan if score is None else score for score in record] for record in records]
    return torch.tensor(rows, dtype=torch.float64)
