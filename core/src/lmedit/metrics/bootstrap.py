"""Paired percentile bootstrap over cases: differences between two methods, and the score S.

Efron & Tibshirani 1993, chapter 13. Cases are drawn with replacement. A drawn case brings its
scores under both methods. 10 000 resamples, 95 %; the seed determines the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Record = Sequence[float | None]

Item = TypeVar("Item")
RESAMPLES, LEVEL = 10_000, 0.95
DRAWN_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate on the given cases, and the interval of its resamples."""

    estimate: float
    low: float
    high: float


def paired_difference(
    one: Record,
    other: Record,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval | None:
    """mean(one) - mean(other) over the same cases, in their order; None without cases.

    If a case has no score (None) with one method, it is dropped for both. *level* is the coverage
    of the interval, between 0 and 1.
    """
    pairs = zip(one, other, strict=True)
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    values = torch.tensor(differences, dtype=torch.float64)
    return _interval(len(values), lambda drawn: values[drawn].mean(-1), seed, resamples, level)


def paired_score_difference(
    one: Sequence[Record],
    other: Sequence[Record],
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval | None:
    """S of *one* minus S of *other* over the same cases; both are records (ES, PS, NS).

    S is the harmonic mean of the columns' means. A missing score (None) is not part of its column's
    mean. A resample in which a column has no score is dropped. None if the cases themselves have no
    score in a column.
    """
    a, b = _table(one), _table(other)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} records; give the same cases on both sides")
    return _interval(len(a), lambda drawn: _s(a[drawn]) - _s(b[drawn]), seed, resamples, level)


def paired_statistic_difference(
    edited: Sequence[Sequence[Item]],
    base: Sequence[Item],
    statistic: Callable[[Sequence[Item]], float],
    seed: int = 0,
    resamples: int = 1000,
) -> Interval | None:
    """The mean of *statistic* over *edited* minus *statistic* of *base*; all have the same items.

    For statistics that are no mean, such as perplexity. A drawn item is drawn in every part.
    """

    def differ(places: Sequence[int]) -> float:
        after = [statistic([each[i] for i in places]) for each in edited]
        return sum(after) / len(after) - statistic([base[i] for i in places])

    def of_rows(drawn: Tensor) -> Tensor:
        return torch.tensor([differ(row) for row in drawn.tolist()], dtype=torch.float64)

    return _interval(len(base) if edited else 0, of_rows, seed, resamples, LEVEL)


def _interval(
    cases: int,
    statistic: Callable[[Tensor], Tensor],
    seed: int,
    resamples: int,
    level: float,
) -> Interval | None:
    """*statistic* maps case numbers (R, cases) to (R,); it returns NaN if there is no value."""
    if not cases:
        return None
    estimate = float(statistic(torch.arange(cases)[None])[0])
    if estimate != estimate:  # noqa: PLR0124  (NaN)
        return None
    random = torch.Generator().manual_seed(seed)
    at_once = max(1, DRAWN_AT_ONCE // cases)
    found = [
        statistic(torch.randint(cases, (min(at_once, resamples - done), cases), generator=random))
        for done in range(0, resamples, at_once)
    ]
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.cat(found).nanquantile(tails).tolist()
    return Interval(estimate, low, high)


def _table(records: Sequence[Record]) -> Tensor:
    nan = float("nan")
    return torch.tensor(
        [[nan if score is None else score for score in record] for record in records],
        dtype=torch.float64,
    )


def _s(drawn: Tensor) -> Tensor:
    """S of drawn records (R, cases, columns): 0 if a mean is 0, NaN if a mean is missing."""
    means = drawn.nanmean(-2)
    inverse = (1 / means.clamp(min=0)).sum(-1)
    return means.shape[-1] / inverse
