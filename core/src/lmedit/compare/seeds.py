"""Several seeds of one comparison as one: means over the seeds, and the spread between them.

A row holds the mean over the seeds. Its interval is over cases: each case counts with its mean
over the seeds. `NAME_sd` is the standard deviation of the seeds' values, with n - 1.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from statistics import stdev
from typing import TYPE_CHECKING, Any

from lmedit.compare.comparison import Compared, Outcome, abilities_over
from lmedit.compare.measures import HALF_WIDTH, SPREAD
from lmedit.compare.regimes import collapse_points
from lmedit.compare.rows import summary_row
from lmedit.metrics.counterfact import mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit.cases import CaseSet

OF_ABILITY = ("base", "edited", "difference")
COUNTS = frozenset({"n", "n_failed", "n_unsound", "size"})
"""Numbers of a row that are no measures."""


def order_of(seed: int, cases: int) -> list[int]:
    """The order of the edits under *seed*: numbers of cases. Seed 0 keeps the order of the file."""
    if seed == 0:
        return list(range(cases))

    def draw(number: int) -> str:
        return hashlib.sha256(f"order of edits {seed} {number}".encode()).hexdigest()

    return sorted(range(cases), key=draw)


def reorder(cases: CaseSet, seed: int, most: int) -> CaseSet:
    """*cases* with the first *most* usable ones in the order of *seed*."""
    good = cases.good
    head = iter([good[number] for number in order_of(seed, min(most, len(good)))])
    first = {id(case) for case in good[:most]}
    items = tuple(next(head) if id(item) in first else item for item in cases.items)
    return replace(cases, items=items)


def pool(found: Sequence[Compared], seeds: Sequence[int]) -> Compared:
    """The comparisons *found* of the same candidates and cases, one for each of *seeds*, as one."""
    first = found[0]
    piled = "regime" in first.results
    names = [n for n in first.outcomes if all(n in each.outcomes for each in found)]
    outcomes = {
        name: _mean_outcomes(
            [
                _in_file_order(each.outcomes[name], seed if piled else 0)
                for each, seed in zip(found, seeds, strict=True)
            ]
        )
        for name in names
    }
    rows = _mean_rows([each.results["rows"] for each in found], outcomes)
    for number, row in enumerate(rows):
        if row.get("abilities") and (over := abilities_over(found, row["method"])):
            rows[number] = row | {"abilities": over}
    results = {**first.results, "rows": rows, "seeds": list(seeds)}
    if piled:
        results["curve"] = _mean_rows([each.results["curve"] for each in found], {})
        results["collapse_points"] = collapse_points(results["curve"])
    kept = ("rows", "curve", "collapse_points")
    results["by_seed"] = [
        {"seed": seed, "order": "drawn" if piled and seed else "file"}
        | {name: each.results[name] for name in kept if name in each.results}
        for each, seed in zip(found, seeds, strict=True)
    ]
    return Compared(results, outcomes)


def _in_file_order(outcomes: Sequence[Outcome], seed: int) -> list[Outcome]:
    order = order_of(seed, len(outcomes))
    return [each for _, each in sorted(zip(order, outcomes, strict=True), key=lambda p: p[0])]


def _mean_outcomes(several: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    return [_mean_outcome(each) for each in zip(*several, strict=True)]


def _mean_outcome(each: Sequence[Outcome]) -> Outcome:
    """One case over the seeds: mean scores; it failed if it failed under any seed."""
    first = each[0]
    scored = [outcome.scores for outcome in each if outcome.scores is not None]
    return replace(
        first,
        scores=_means(scored) if scored else None,
        seconds=_mean([outcome.seconds for outcome in each]),
        failure=next((outcome.failure for outcome in each if outcome.failure), None),
        unsound=next((outcome.unsound for outcome in each if outcome.unsound), None),
        extras=_means([outcome.extras for outcome in each]),
    )


def _means(several: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    names = dict.fromkeys(name for each in several for name in each)
    return {name: _mean([each.get(name) for each in several]) for name in names}


def _mean(values: Sequence[float | None]) -> float | None:
    return mean([value for value in values if value is not None])


def _mean_rows(
    several: Sequence[Sequence[Mapping[str, Any]]], outcomes: Mapping[str, Sequence[Outcome]]
) -> list[dict[str, Any]]:
    """The rows (or points of a curve) of all seeds as one: a row for those that every seed has."""
    by_name = [{(row["method"], row.get("size")): row for row in rows} for rows in several]
    if outcomes:  # the rows of a method that stopped early differ in size
        by_name = [{(row["method"], None): row for row in rows} for rows in several]
    return [
        _mean_row([rows[key] for rows in by_name], outcomes.get(key[0]))
        for key in by_name[0]
        if all(key in rows for rows in by_name)
    ]


def _mean_row(
    rows: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome] | None
) -> dict[str, Any]:
    row = dict(rows[0])
    for name in [name for name in row if _is_measure(name, rows)]:
        values = [each.get(name) for each in rows]
        known = [value for value in values if value is not None]
        whole = len(known) == len(rows)
        row[name] = mean(known) if whole else None
        row[f"{name}{SPREAD}"] = stdev(known) if whole and len(known) > 1 else None
    for name in [name for name in row if name.endswith(HALF_WIDTH)]:
        row[name] = None
    if outcomes is not None:
        fresh = summary_row(row["method"], outcomes, None)
        costs = {"seconds_amortised", "prepare_seconds"}
        row |= {n: v for n, v in fresh.items() if v is not None and n not in costs}
        row["keys"] = rows[0]["keys"]
    if "size" in row:
        row["size"] = min(each["size"] for each in rows)
        row["collapsed"] = any(each["collapsed"] for each in rows)
    if row.get("abilities"):
        row["abilities"] = _mean_abilities([each["abilities"] for each in rows])
    if row.get("right_after"):
        row["right_after"] = _means([each["right_after"] for each in rows])
    return row


def _mean_abilities(several: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The abilities of all seeds: means, without intervals."""
    found: dict[str, Any] = {}
    for task, metrics in several[0].items():
        found[task] = {}
        for metric, first in metrics.items():
            each = [one[task][metric] for one in several]
            means: dict[str, Any] = _means([{n: e[n] for n in OF_ABILITY} for e in each])
            edits = sum(one["edits"] for one in each)
            found[task][metric] = {**first, **means, "low": None, "high": None, "edits": edits}
    return found


def _is_measure(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    values = [row.get(name) for row in rows]
    return (
        name not in COUNTS
        and not name.endswith(HALF_WIDTH)
        and any(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    )
