"""A run as a table for the terminal, Markdown, CSV, JSON or LaTeX."""

from __future__ import annotations

import csv
import io
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING

from lmedit.compare.measures import HALF_WIDTH
from lmedit.compare.table import align, table
from lmedit.report.columns import best, cell, columns, complete_rows, format_number
from lmedit.report.judged import HEADS, judged_rows
from lmedit.report.latex import as_latex
from lmedit.report.svg import tag
from lmedit.storage.escapes import for_csv, for_json, for_markdown
from lmedit.storage.json_files import dump_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lmedit.report.read import FinishedRun


def as_table(run: FinishedRun) -> str:
    """The comparison's own table; unknown columns follow below it."""
    lines = [table(complete_rows(run))]
    for column in columns(run):
        if column.extra:
            values = [(row.method, cell(run, row, column)) for row in run.results.rows]
            told = ", ".join(f"{method} {format_number(*value)}" for method, value in values)
            lines.append(f"{column.label}: {told}")
    return "\n".join([*lines, *_judged_lines(run)])


def as_markdown(run: FinishedRun) -> str:
    """A Markdown table with the best value of each column in bold."""
    head, rows = _cells(run)
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    lines += [_line([f"**{text}**" if won else text for text, won in row]) for row in rows]
    return "\n".join([*lines, *_judged_markdown(run)])


def _judged_lines(run: FinishedRun) -> list[str]:
    """The shares of judges as aligned text, with an empty line before it."""
    rows = judged_rows(run)
    return ["", *align([HEADS, *rows])] if rows else []


def _judged_markdown(run: FinishedRun) -> list[str]:
    """The shares of judges as a Markdown table, with an empty line before it."""
    head, *lines = [_line(row) for row in ([*HEADS], *judged_rows(run))]
    return ["", head, "|---|---|" + "---:|" * (len(HEADS) - 2), *lines] if lines else []


def as_html(run: FinishedRun, remarks: Sequence[str] = ()) -> str:
    """The same table as HTML without a style, with *remarks* below."""
    head, rows = _cells(run)
    lines = ["".join(tag("th", escape(text)) for text in head)]
    lines += [
        "".join(tag("td", tag("b", escape(text)) if won else escape(text)) for text, won in row)
        for row in rows
    ]
    told = tag("p", "<br>".join(map(escape, remarks))) if remarks else ""
    return tag("table", "".join(tag("tr", line) for line in lines)) + told


def _cells(run: FinishedRun) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """The headings, and for each row its texts; and whether each text is the best of its column."""
    wanted = columns(run)
    head = ["method", "n", "failed", *(column.label for column in wanted)]
    winners = {column.name: best(run, column) for column in wanted}
    rows = []
    for row in run.results.rows:
        cells = [(row.title, False), (str(row.n), False), (str(row.n_failed), False)]
        for column in wanted:
            text = format_number(*cell(run, row, column), digits=column.digits)
            cells.append((text, row.method in winners[column.name]))
        rows.append(cells)
    return head, rows


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(map(for_markdown, cells)) + " |"


def as_csv(run: FinishedRun) -> str:
    """All digits, with the names of `results.json`; empty cells for missing values."""
    rows = complete_rows(run)
    names = ["method", "n", "n_failed"]
    for column in columns(run):
        names.append(column.name)
        if any(f"{column.name}{HALF_WIDTH}" in row for row in rows):
            names.append(f"{column.name}{HALF_WIDTH}")
    written = io.StringIO()
    writer = csv.DictWriter(written, names, extrasaction="ignore", lineterminator="\n")
    writer.writerow({name: for_csv(name) for name in names})
    writer.writerows({name: for_csv(value) for name, value in row.items()} for row in rows)
    return written.getvalue().rstrip("\n")


def as_json(run: FinishedRun) -> str:
    """`results.json` with every column in every row, without the keys of the run's store."""
    return for_json(dump_json({**run.raw, "rows": complete_rows(run)}))


FORMATS: Mapping[str, Callable[[FinishedRun], str]] = MappingProxyType(
    {"table": as_table, "markdown": as_markdown, "csv": as_csv, "json": as_json, "latex": as_latex}
)
