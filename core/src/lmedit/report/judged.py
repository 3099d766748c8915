"""The shares that `lmedit judge` wrote into a run: the rows, and the table of the page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from lmedit.report.columns import format_number
from lmedit.report.svg import tag

if TYPE_CHECKING:
    from lmedit.report.read import FinishedRun, Numbers

HEADS = ("judge", "method", "cases", "right", "cases with paraphrases", "right after paraphrases")
KINDS = ("rewrite", "paraphrase")
CAPTION = (
    "Shares of free answers that a program of the user judged right, in percent. A failed edit "
    "counts with the unedited model's answer. \u00b1 is half of the 95 % interval over cases."
)


def judged_rows(run: FinishedRun) -> list[list[str]]:
    """For each judge and method the cells under `HEADS`; empty if nothing was judged."""
    return [
        [each.title, row.method, *_cells(row)] for each in run.results.judged for row in each.rows
    ]


def _cells(row: Numbers) -> list[str]:
    found = []
    for kind in KINDS:
        count = row.number(f"{kind}_n")
        share = format_number(row.number(kind), row.number(f"{kind}_ci"))
        found += ["" if count is None else str(int(count)), share]
    return found


def draw_judged(run: FinishedRun) -> str:
    """A table with one line for each judge and method; empty if nothing was judged."""
    rows = judged_rows(run)
    if not rows:
        return ""
    head = tag("thead", tag("tr", "".join(tag("th", text, scope="col") for text in HEADS)))
    body = [
        tag("th", escape(judge), scope="row") + "".join(tag("td", escape(text)) for text in cells)
        for judge, *cells in rows
    ]
    inside = head + tag("tbody", "".join(tag("tr", line) for line in body))
    table = tag("table", inside, class_="differences")
    return tag("div", table, class_="wide") + tag("p", CAPTION, class_="caption")
