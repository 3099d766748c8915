"""The abilities of each method's edited models, as a table of the page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from lmedit.report.svg import tag

if TYPE_CHECKING:
    from lmedit.report.read import Ability, FinishedRun

HEADS = ("method", "task", "metric", "documents", "base", "edited", "difference", "95 % interval")
CAPTION = (
    "Tasks of the lm-evaluation-harness on the unedited and on the edited models. Intervals are "
    "paired over the documents of a task; with several edits, over their mean. Bold if the "
    "interval does not contain 0."
)


def draw_abilities(run: FinishedRun) -> str:
    """A table with one line for each method, task and metric; empty if none was measured."""
    rows = [
        _row(row.title, task, metric, found)
        for row in run.results.rows
        for task, metrics in (row.abilities or {}).items()
        for metric, found in metrics.items()
        if found.edited is not None
    ]
    if not rows:
        return ""
    head = tag("thead", tag("tr", "".join(tag("th", text, scope="col") for text in HEADS)))
    table = tag("table", head + tag("tbody", "".join(rows)), class_="differences")
    return tag("div", table, class_="wide") + tag("p", CAPTION, class_="caption")


def _row(method: str, task: str, metric: str, found: Ability) -> str:
    low, high = found.low, found.high
    between = "" if low is None or high is None else f"{low:+.4g} … {high:+.4g}"
    clear = low is not None and high is not None and (low > 0 or high < 0)
    cells = [task, metric, str(found.documents), _number(found.base), _number(found.edited)]
    change = "" if found.difference is None else f"{found.difference:+.4g}"
    inside = tag("th", escape(method), scope="row")
    inside += "".join(tag("td", escape(text)) for text in [*cells, change, between])
    return tag("tr", inside, class_="clear" if clear else None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
