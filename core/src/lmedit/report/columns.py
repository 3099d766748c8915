"""The columns of a report: label, meaning, and the best value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmedit.compare.measures import HALF_WIDTH, SPREAD, measure, sort_columns
from lmedit.metrics.counterfact import interval, mean
from lmedit.report.read import BASE, FinishedRun, Row

if TYPE_CHECKING:
    from lmedit.compare.measure import Measure

PLAIN = frozenset(
    {
        *("method", "n", "n_failed", "n_unsound", "failures", "unsound", "keys", "options"),
        *("version", "untuned"),
    }
)
NOTHING = "\u2013"
PROBABILITIES = ("EM", "PM", "NM")


@dataclass(frozen=True)
class Column:
    """A number of each row. `measure` is None if this version does not know the column."""

    name: str
    measure: Measure | None

    @property
    def label(self) -> str:
        """The heading."""
        return self.measure.label if self.measure else self.name

    @property
    def extra(self) -> bool:
        """Whether this version does not know the column."""
        return self.measure is None

    @property
    def scale(self) -> float:
        """The factor from a stored score to the shown value."""
        return self.measure.scale if self.measure else 100.0

    @property
    def digits(self) -> int:
        """The number of decimal places."""
        return self.measure.digits if self.measure else 1

    @property
    def less_is_better(self) -> bool:
        """Whether a small value is good."""
        return self.measure is not None and self.measure.less_is_better


def columns(run: FinishedRun) -> list[Column]:
    """The columns that any row has: known ones in their order, then unknown ones."""
    rows = run.results.rows
    found = {name for row in rows for name in row.model_extra or {} if row.number(name) is not None}
    names = {
        name for name in found if name not in PLAIN and not name.endswith((HALF_WIDTH, SPREAD))
    }
    made = [Column(name, measure(name)) for name in sort_columns(names | set(run.score_names))]
    return [c for c in made if any(cell(run, row, c)[0] is not None for row in rows)]


def cell(run: FinishedRun, row: Row, column: Column) -> tuple[float | None, float | None]:
    """A row's value and half-width, from `results.json` or else from the single cases."""
    name = column.name
    if name in (row.model_extra or {}):
        return row.number(name), row.number(f"{name}{HALF_WIDTH}")
    if row.method not in run.entries or name not in run.score_names:
        return None, None
    values = run.values(row.method, name)
    return _scale(mean(values), column.scale), _scale(interval(values), column.scale)


def cell_named(run: FinishedRun, row: Row, name: str) -> tuple[float | None, float | None]:
    """The `cell` of the column *name*."""
    return cell(run, row, Column(name, measure(name)))


def best(run: FinishedRun, column: Column) -> set[str]:
    """The methods with the best mean, without the unedited model; empty if best has no meaning."""
    found = {
        row.method: value
        for row in run.results.rows
        if row.method != BASE and (value := cell(run, row, column)[0]) is not None
    }
    if column.extra or len(found) < 2:
        return set()
    goal = min(found.values()) if column.less_is_better else max(found.values())
    return {method for method, value in found.items() if value == goal}


def complete_rows(run: FinishedRun) -> list[dict[str, Any]]:
    """The rows as plain objects with every column of the report; None for missing values."""
    rows = []
    for row in run.results.rows:
        full: dict[str, Any] = {}
        full |= row.model_dump(exclude_unset=True, exclude={"keys"})
        for column in columns(run):
            value, half_width = cell(run, row, column)
            full[column.name] = value
            if half_width is not None:
                full[f"{column.name}{HALF_WIDTH}"] = half_width
        rows.append(full)
    return rows


def format_number(value: float | None, half_width: float | None = None, digits: int = 1) -> str:
    """A number as every page and table shows it."""
    if value is None:
        return NOTHING
    value = round(value, digits) + 0.0  # -0.04 is 0.0, not -0.0
    behind = "" if half_width is None else f" ± {half_width:.{digits}f}"
    return f"{value:.{digits}f}{behind}"


def meaning(column: Column) -> str:
    """The meaning of a column, in a sentence."""
    if column.measure is None:
        return "a score that this version of lmedit does not know; mean over cases"
    return column.measure.meaning


def _scale(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value
