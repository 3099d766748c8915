"""The columns of a report: what a number is called, what it means, and which one is best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lmedit.compare.table import COLUMNS
from lmedit.metrics.scores import interval, mean
from lmedit.report.read import BASE, Row, Run

MEANING = {
    "S": "harmonic mean of ES, PS and NS",
    "ES": "efficacy: share of cases in which the new answer is more probable than the true one",
    "PS": "the same after paraphrases of the prompt",
    "NS": "specificity: share of neighbouring subjects for which the true answer still wins",
    "EM": "P(new answer) minus P(true answer) after the prompt",
    "PM": "the same after paraphrases",
    "NM": "P(true answer) minus P(new answer) for neighbouring subjects",
    "GE": "entropy of the n-grams in what the model writes",
    "RS": "likeness of what the model writes to reference texts",
    "relation_specificity": "share of the edited subject's other facts that are still right",
    "seconds_per_edit": "seconds to compute one edit, scoring not included",
    "prepare_seconds": "seconds of preparation, once per model",
}
LESS_IS_BETTER = frozenset({"seconds_per_edit", "prepare_seconds"})
PLAIN = frozenset({"method", "n", "n_failed", "failures", "keys", "options", "version"})
NOTHING = "\u2013"
PROBABILITIES = ("EM", "PM", "NM")


@dataclass(frozen=True)
class Column:
    """A number of each row; `extra` says that this version does not know what it means."""

    name: str
    label: str
    extra: bool = False

    @property
    def seconds(self) -> bool:
        """Whether it is a time rather than a score."""
        return self.name in LESS_IS_BETTER


def columns(run: Run) -> list[Column]:
    """What was measured in any row: the table's columns, then those that it does not know."""
    rows = run.results.rows
    extras = {
        name for row in rows for name in row.model_extra or {} if row.number(name) is not None
    }
    extras = {name for name in extras if name not in PLAIN and not name.endswith("_ci")}
    names = [*COLUMNS, *sorted((extras | set(run.score_names)) - set(COLUMNS))]
    made = [Column(name, COLUMNS.get(name, name), name not in COLUMNS) for name in names]
    return [c for c in made if any(cell(run, row, c.name)[0] is not None for row in rows)]


def cell(run: Run, row: Row, name: str) -> tuple[float | None, float | None]:
    """A row's value and half-width: as `results.json` has them, else from the single cases."""
    if name in (row.model_extra or {}):
        return row.number(name), row.number(f"{name}_ci")
    if row.method not in run.entries or name not in run.score_names:
        return None, None
    values = run.values(row.method, name)
    return _percent(mean(values)), _percent(interval(values))


def best(run: Run, column: Column) -> set[str]:
    """The methods with the best mean, the unedited model aside; none where best means nothing."""
    found = {
        row.method: value
        for row in run.results.rows
        if row.method != BASE and (value := cell(run, row, column.name)[0]) is not None
    }
    if column.extra or len(found) < 2:
        return set()
    goal = min(found.values()) if column.seconds else max(found.values())
    return {method for method, value in found.items() if value == goal}


def filled(run: Run) -> list[dict[str, Any]]:
    """The rows as plain objects, every column of the report in each, `None` where unmeasured."""
    rows = []
    for row in run.results.rows:
        full: dict[str, Any] = dict.fromkeys(COLUMNS)
        full |= row.model_dump(exclude_unset=True, exclude={"keys"})
        for column in columns(run):
            value, half_width = cell(run, row, column.name)
            full[column.name] = value
            if half_width is not None:
                full[f"{column.name}_ci"] = half_width
        rows.append(full)
    return rows


def shown(value: float | None, half_width: float | None = None, *, seconds: bool = False) -> str:
    """A number as every page and table shows it."""
    if value is None:
        return NOTHING
    if seconds:
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    value = round(value, 1) + 0.0  # -0.04 is 0.0, not -0.0
    return f"{value:.1f}" + (f" ± {half_width:.1f}" if half_width is not None else "")


def meaning(name: str) -> str:
    """What a column holds, in a sentence."""
    return MEANING.get(name, "a score that this version of lmedit does not know; mean over cases")


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
