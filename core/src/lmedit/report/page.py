"""One self-contained page about a run: no network, no dates, the same bytes for the same run.

A section is a function from the run to markup. If it returns an empty string, the page leaves it
out. A new kind of run needs one more section here.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from lmedit.compare.measures import HALF_WIDTH, SPREAD
from lmedit.report.abilities import draw_abilities
from lmedit.report.browser import browser_data
from lmedit.report.columns import best, cell, columns, format_number
from lmedit.report.curves import draw_retention, harm
from lmedit.report.heatmap import MOST_GROUPS, heat_map
from lmedit.report.histograms import magnitudes, norms
from lmedit.report.judged import draw_judged
from lmedit.report.matrix import matrix
from lmedit.report.notes import notes, protocols, setups
from lmedit.report.read import BASE
from lmedit.report.scatter import cost, looks_of, trade_off
from lmedit.report.svg import tag
from lmedit.report.verdict import title_of, verdict_sentences

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lmedit.report.columns import Column
    from lmedit.report.read import FinishedRun, Row


def page(run: FinishedRun) -> str:
    """The whole page."""
    parts = [(name, title, section(run)) for name, title, section in SECTIONS]
    parts = [part for part in parts if part[2]]
    opened = OPEN | (PILED if run.results.curve else frozenset())
    body = "".join(_section(*part, folded=part[0] not in opened) for part in parts)
    links = " · ".join(tag("a", title, href=f"#{name}") for name, title, _ in parts)
    folder = files("lmedit.report")
    read = {name: (folder / f"page.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    return Template(read["html"]).substitute(
        title=escape(title_of(run)),
        facts=_facts(run),
        links=links,
        body=body,
        css=read["css"],
        js=read["js"],
        data=browser_data(run) if run.methods else "null",
    )


def _section(name: str, title: str, inside: str, *, folded: bool) -> str:
    """A section of the page; a *folded* one shows its title until the reader opens it."""
    head = tag("h2", title)
    if folded:
        return tag("section", tag("details", tag("summary", head) + inside), id=name)
    return tag("section", head + inside, id=name)


def _facts(run: FinishedRun) -> str:
    """One line about model, cases and seed, with short digests."""
    results = run.results
    n = max((row.n for row in results.rows), default=0)
    told = [f"{n} case{'' if n == 1 else 's'}"]
    if results.seeds:
        told.append(f"seeds {', '.join(map(str, results.seeds))}")
    elif results.seed is not None:
        told.append(f"seed {results.seed}")
    for name, digest in (("model", results.model.digest), ("cases", results.cases.digest)):
        if digest:
            told.append(f"{name} {digest[:12]}")
    return escape(" · ".join(told))


def _results(run: FinishedRun) -> str:
    wanted = columns(run)
    winners = {column.name: best(run, column) for column in wanted}
    head = "".join(
        tag("th", escape(text), scope="col")
        for text in ("method", "n", "failed", *(column.label for column in wanted))
    )
    look = looks_of(run)
    body = []
    for row in run.results.rows:
        name = look[row.method].sign() + tag("b", escape(row.title))
        cells = tag("th", name, scope="row") + tag("td", str(row.n)) + tag("td", str(row.n_failed))
        for column in wanted:
            value, half_width = cell(run, row, column)
            spread = row.number(f"{column.name}{SPREAD}")
            text = _with_bar(value, half_width, column, spread)
            cells += tag(
                "td",
                text,
                class_="best" if row.method in winners[column.name] else None,
                data_column=column.name,
                data_value=repr(value),
            )
        body.append(
            tag("tr", cells, class_="base" if row.method == BASE else None, data_method=row.method)
        )
        body.append(_paper_row(run, row.method, wanted))
    inside = tag("thead", tag("tr", head)) + tag("tbody", "".join(body))
    table = tag("div", tag("table", inside, class_="results"), class_="wide")
    return table + tag(
        "p",
        "Scores are in percent, but not perplexity, KL, norms, costs. "
        "± is half of the 95 % interval of the mean over cases. "
        + ("sd is the standard deviation over seeds. " if run.results.seeds else "")
        + "The best mean of each column among the methods is bold, even if the intervals overlap.",
        class_="caption",
    )


def _with_bar(
    value: float | None, half_width: float | None, column: Column, spread: float | None = None
) -> str:
    """A value, followed by half of its interval and its spread over seeds in small type."""
    bar = "" if half_width is None else tag("small", f"±{half_width:.{column.digits}f}")
    if spread is not None and column.measure and column.measure.protocol:
        bar += tag("small", f"sd {spread:.{column.digits}f}")
    return format_number(value, digits=column.digits) + bar


def _listing(heads: Sequence[str], rows: Sequence[str], class_: str, caption: str) -> str:
    """A table of *rows* with its caption; empty without rows."""
    if not rows:
        return ""
    head = tag("thead", tag("tr", "".join(tag("th", text) for text in heads)))
    table = tag("table", head + tag("tbody", "".join(rows)), class_=class_)
    return tag("div", table, class_="wide") + tag("p", caption, class_="caption")


def _paper_row(run: FinishedRun, method: str, wanted: Sequence[Column]) -> str:
    """The paper's row for *method*, if there is one."""
    paper = run.results.published
    found = next((row for row in paper.rows if row.method == method), None) if paper else None
    if paper is None or found is None:
        return ""
    cells = tag("th", "published", scope="row", title=paper.source) + tag("td") * 2
    for column in wanted:
        half_width = found.number(f"{column.name}{HALF_WIDTH}")
        cells += tag("td", _with_bar(found.number(column.name), half_width, column))
    return tag("tr", cells, class_="published")


def _verdict(run: FinishedRun) -> str:
    told = "".join(tag("p", escape(sentence)) for sentence in verdict_sentences(run))
    return told and tag("div", told, class_="verdict")


def _retention(run: FinishedRun) -> str:
    return _figure(
        draw_retention(run), "Scores of all edits so far, by number of edits in one model.", "two"
    )


def _harm(run: FinishedRun) -> str:
    return _figure(
        harm(run),
        "The model itself, by number of edits: perplexity on held-out text. "
        "For the tensor that changed most: norm of its change / its own norm, and "
        "growth of its largest singular value.",
        "two",
    )


def _trade_off(run: FinishedRun) -> str:
    return _figure(
        trade_off(run),
        "Each method's efficacy (ES, PS) against its specificity (NS); "
        "bars are 95 % intervals. A good method is at the top right; the "
        "unedited model is grey.",
        "two",
    )


def _cost(run: FinishedRun) -> str:
    return _figure(
        cost(run),
        "S against the seconds per edit, on a logarithmic scale. "
        "Hollow marks add the preparation, divided by the cases of this run. "
        "Times are for this run's machine and its other load.",
        "beside",
    )


def _heat(run: FinishedRun) -> str:
    found = heat_map(run)
    return found and found + tag(
        "p",
        "By kind of fact: the data set's relation if it has one, else the prompt's "
        f"template; the {MOST_GROUPS} most frequent, then all others. Numbers "
        "from few cases (n) scatter widely. Each number links to its cases.",
        class_="caption",
    )


def _magnitudes(run: FinishedRun) -> str:
    return _figure(
        magnitudes(run),
        "Differences of probabilities over the single cases, from -1 "
        "to 1; black lines are means. Heights are shares of cases, on one scale in "
        "each column.",
    )


def _norms(run: FinishedRun) -> str:
    return _figure(
        norms(run),
        "Frobenius norm of each edit's change / norm of the matrix: "
        "smallest, quartiles and largest of all cases.",
    )


def _figure(picture: str, caption: str, class_: str = "") -> str:
    """A figure with its caption; empty without a picture."""
    return picture and tag(
        "figure", tag("div", picture) + tag("figcaption", caption), class_=class_ or None
    )


def _reasons(row: Row) -> list[tuple[str, int]]:
    """The reasons of failures with their counts, the most frequent first; then unsound edits."""
    found = sorted(row.failures.items(), key=lambda item: (-item[1], item[0]))
    unsound = [(f"unsound, as the first: {row.unsound}", row.n_unsound)] if row.n_unsound else []
    return [*found, *unsound]


def _failures(run: FinishedRun) -> str:
    rows = [
        tag(
            "tr",
            tag("th", escape(row.method), scope="row")
            + tag("td", str(count))
            + tag("td", f"{100 * count / max(row.n, 1):.1f} %")
            + tag("td", escape(reason), class_="text"),
        )
        for row in run.results.rows
        for reason, count in _reasons(row)
    ]
    return _listing(
        ("method", "cases", "share", "reason"),
        rows,
        "failures",
        "A failed edit counts with the unedited model's scores. A record that could not be read "
        "has no scores. An unsound edit damages the model; it counts with its own scores.",
    )


def _browser(run: FinishedRun) -> str:
    if not run.methods:
        return ""
    return (files("lmedit.report") / "browser.html").read_text("utf-8")


SECTIONS: tuple[tuple[str, str, Callable[[FinishedRun], str]], ...] = (
    ("verdict", "Verdict", _verdict),
    ("trade-off", "Efficacy against specificity", _trade_off),
    ("results", "Results", _results),
    ("differences", "Differences between methods", matrix),
    ("judged", "Judged by a program", draw_judged),
    ("abilities", "Abilities", draw_abilities),
    ("retention", "Retention", _retention),
    ("harm", "Harm to the model", _harm),
    ("cost", "Cost against quality", _cost),
    ("kinds", "Kinds of facts", _heat),
    ("magnitudes", "Magnitudes", _magnitudes),
    ("norms", "Size of the changes", _norms),
    ("failures", "Failures", _failures),
    ("cases", "Single cases", _browser),
    ("protocols", "What was measured, and how", protocols),
    ("set-up", "Set-up", setups),
    ("notes", "How to read this", notes),
)
OPEN = frozenset({"verdict", "trade-off", "results", "differences", "judged", "abilities"})
"""The sections that are open at first; a reader opens the others."""
PILED = frozenset({"retention", "harm"})
"""The sections that are open too if edits piled up."""
