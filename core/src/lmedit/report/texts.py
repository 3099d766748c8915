"""A run as a table for the terminal, Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from types import MappingProxyType
from typing import TYPE_CHECKING

from lmedit.compare.measures import HALF_WIDTH
from lmedit.compare.table import table
from lmedit.report.columns import best, cell, columns, filled, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lmedit.report.read import Run


def as_table(run: Run) -> str:
    """The comparison's own table; columns that it does not know stand below."""
    lines = [table(filled(run))]
    for column in columns(run):
        if column.extra:
            values = [(row.method, cell(run, row, column)) for row in run.results.rows]
            told = ", ".join(f"{method} {shown(*value)}" for method, value in values)
            lines.append(f"{column.label}: {told}")
    return "\n".join(lines)


def as_markdown(run: Run) -> str:
    """A table for a page, the best value of each column in bold."""
    wanted = columns(run)
    head = ["method", "n", "failed", *(column.label for column in wanted)]
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    winners = {column.name: best(run, column) for column in wanted}
    for row in run.results.rows:
        cells = [row.title, str(row.n), str(row.n_failed)]
        for column in wanted:
            text = shown(*cell(run, row, column), digits=column.digits)
            cells.append(f"**{text}**" if row.method in winners[column.name] else text)
        lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(" ".join(c.replace("|", "\\|").split()) for c in cells) + " |"


def as_csv(run: Run) -> str:
    """All digits, by the names of `results.json`; empty where nothing was measured."""
    rows = filled(run)
    names = ["method", "n", "n_failed"]
    for column in columns(run):
        names.append(column.name)
        if any(f"{column.name}{HALF_WIDTH}" in row for row in rows):
            names.append(f"{column.name}{HALF_WIDTH}")
    written = io.StringIO()
    writer = csv.DictWriter(written, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue().rstrip("\n")


def as_json(run: Run) -> str:
    """`results.json` with every column in every row, the keys of the run's store left out."""
    return json.dumps({**run.raw, "rows": filled(run)}, indent=1, ensure_ascii=False)


FORMATS: Mapping[str, Callable[[Run], str]] = MappingProxyType(
    {"table": as_table, "markdown": as_markdown, "csv": as_csv, "json": as_json}
)
