"""The differences between methods as a matrix: the row's method minus the column's, in points."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from lmedit.report.columns import cell_named
from lmedit.report.heatmap import radio_buttons
from lmedit.report.svg import tag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.report.read import Claim, Difference, FinishedRun

CORRECTED = """Row minus column, in points, with an interval over cases. ▲ and ▼: the row's method
is shown to be better or worse, by a permutation test with Holm's correction for all pairs of the
score; the interval then has the corrected level. In brackets: no difference is shown; 95 %
interval."""
PLAIN = """Row minus column, in points, with the 95 % bootstrap interval over cases. ▲ and ▼: the
interval does not contain 0. This run has no claims, so nothing is corrected for comparing many
methods."""


def matrix(run: FinishedRun) -> str:
    """A table for each score, the first one visible; empty without differences."""
    found = run.results.differences
    scores = list(dict.fromkeys(d.score for d in found))
    if not scores:
        return ""
    tables = [_table(run, score, hidden=score != scores[0]) for score in scores]
    caption = " ".join((CORRECTED if run.results.claims else PLAIN).split())
    shown = radio_buttons("matrix", scores) + tag("div", "".join(tables), class_="wide")
    return shown + tag("p", caption, class_="caption")


def _table(run: FinishedRun, score: str, *, hidden: bool) -> str:
    names = _rank(run, score)
    differences = {(d.one, d.other): d for d in run.results.differences if d.score == score}
    claims = {(c.one, c.other): c for c in run.results.claims if c.score == score}
    head = "".join(tag("th", escape(text), scope="col") for text in (f"{score}, points", *names))
    body = [
        tag(
            "tr",
            tag("th", escape(row), scope="row")
            + "".join(_cell(row, column, differences, claims) for column in names),
        )
        for row in names
    ]
    inside = tag("thead", tag("tr", head)) + tag("tbody", "".join(body))
    return tag("table", inside, class_="matrix", data_score=score, hidden="" if hidden else None)


def _rank(run: FinishedRun, score: str) -> list[str]:
    """The methods with differences, the best first."""
    names = methods_of(run.results.differences)
    values = {row.method: cell_named(run, row, score)[0] for row in run.results.rows}
    return sorted(names, key=lambda name: -(values.get(name) or 0.0))


def _cell(
    row: str,
    column: str,
    differences: dict[tuple[str, str], Difference],
    claims: dict[tuple[str, str], Claim],
) -> str:
    turned = (row, column) not in differences
    pair = (column, row) if turned else (row, column)
    if pair not in differences:
        return tag("td", "", class_="self")
    found, claim = differences[pair], claims.get(pair)
    estimate, low, high = found.estimate, found.low, found.high
    shown = low > 0 or high < 0
    if claims:
        shown = claim is not None and claim.shown
        if claim is not None and claim.low is not None and claim.high is not None:
            low, high = claim.low, claim.high
    if turned:
        estimate, low, high = -estimate, -high, -low
    ends = tag("small", f"{low:.1f} … {high:.1f}")
    if not shown:
        return tag("td", f"({estimate:+.1f}){ends}", class_="open", data_value=repr(estimate))
    sign, class_ = ("▲", "more") if estimate > 0 else ("▼", "less")
    return tag("td", f"{sign} {estimate:+.1f}{ends}", class_=class_, data_value=repr(estimate))


def methods_of(differences: Sequence[Difference]) -> list[str]:
    """The methods that *differences* compare, in their order."""
    return list(dict.fromkeys(n for d in differences for n in (d.one, d.other)))
