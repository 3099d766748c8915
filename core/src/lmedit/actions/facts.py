"""Averages of measurements over many facts: means by block with 95 % bands."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from lmedit.charts import Lines
from lmedit.metrics.counterfact import interval, mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit.types import Pooled

    Gathered = dict[str, dict[str, list[Sequence[float]]]]


def average_facts(
    found: Sequence[Mapping[str, Mapping[str, Sequence[float]]]],
) -> dict[str, dict[str, dict[str, Any]]]:
    """By chart and series: the mean at each place, half of its 95 % interval, the number of facts.

    The half interval is 1.96 standard deviations / sqrt(number of facts).
    """
    gathered: Gathered = defaultdict(lambda: defaultdict(list))
    for one in found:
        for chart, series in one.items():
            for name, values in series.items():
                gathered[chart][name].append(values)
    return _means(gathered)


def average_tokens(found: Sequence[Pooled]) -> dict[str, dict[str, dict[str, Any]]]:
    """The same over all tokens of all facts, as the paper's notebook pools them.

    n is the number of tokens, so a fact with a long subject counts more. The mean of the facts'
    baselines is subtracted. Source: `average_causal_effects.ipynb` of Meng et al. 2022.
    """
    gathered: Gathered = defaultdict(lambda: defaultdict(list))
    for one in found:
        for chart, series in one.rows.items():
            for name, rows in series.items():
                gathered[chart][name] += rows
    baseline = mean([one.baseline for one in found]) or 0.0
    return _means(gathered, baseline)


def _means(gathered: Gathered, baseline: float = 0.0) -> dict[str, dict[str, dict[str, Any]]]:
    """Means and half intervals at each place, and the number of rows, for each series."""
    return {
        chart: {
            name: {
                "mean": [
                    (mean(list(place)) or 0.0) - baseline for place in zip(*rows, strict=True)
                ],
                "half_width": [interval(list(place)) for place in zip(*rows, strict=True)],
                "n": len(rows),
            }
            for name, rows in series.items()
        }
        for chart, series in gathered.items()
    }


def charts_of(averages: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> tuple[Lines, ...]:
    """The averages as charts over the blocks."""
    charts = []
    for title, series in averages.items():
        length = max(len(one["mean"]) for one in series.values())
        charts.append(
            Lines(
                title,
                "layer",
                "mean effect",
                tuple(float(i) for i in range(length)),
                {f"{name} (n={one['n']})": tuple(one["mean"]) for name, one in series.items()},
                {
                    f"{name} (n={one['n']})": tuple(half or 0.0 for half in one["half_width"])
                    for name, one in series.items()
                },
            )
        )
    return tuple(charts)
