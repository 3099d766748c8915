"""Abilities before and after edits: differences with intervals that are paired over documents."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

from lmedit.metrics.bootstrap import paired_difference, paired_statistic_difference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.metrics.abilities import Abilities, Values

NUMBERS = ("base", "edited", "difference", "low", "high")


def ability_differences(
    of: Abilities, edited: Sequence[Values], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """For each wanted name and metric: the base, the mean over *edited*, and their difference.

    `low` and `high` bound the 95 % interval of a paired bootstrap over the documents. A document
    brings its values under all edits. A group has the mean over all its documents. Numbers that
    are not finite are None.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in of.parts}
    for name, metrics in found.items():
        for metric in of.metrics_of(name):
            metrics[metric] = _difference(of, name, metric, edited, seed)
    return found


def _difference(
    of: Abilities, name: str, metric: str, edited: Sequence[Values], seed: int
) -> dict[str, Any]:
    base = of.join_documents(name, metric, of.base)
    after = [of.join_documents(name, metric, each) for each in edited]
    sum_up = of.way_of(name, metric)
    found: dict[str, float | None] = dict.fromkeys(NUMBERS)
    found["base"] = was = float(sum_up(base))
    if after and of.is_mean(of.parts[name][0], metric):
        means = [sum(column) / len(column) for column in zip(*after, strict=True)]
        interval = paired_difference(means, base, seed)
    else:
        interval = paired_statistic_difference(after, base, sum_up, seed)
    if interval is not None:
        found |= {"edited": was + interval.estimate, "difference": interval.estimate}
    if interval is not None and len(base) > 1:
        found |= {"low": interval.low, "high": interval.high}
    finite = {k: v if v is not None and isfinite(v) else None for k, v in found.items()}
    return finite | {"documents": len(base), "edits": len(edited)}
