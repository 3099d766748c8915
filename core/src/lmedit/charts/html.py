"""Values as notebooks show them: small tables, and charts if matplotlib is installed."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from lmedit.charts.figures import inline
from lmedit.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lmedit.charts import Chart

LONG = 12
"""Longer lists are cut when they are shown."""


def short(value: Any) -> str:
    """A value as text that fits into a line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        more = f", ... {len(value)} in all" if len(value) > LONG else ""
        return f"[{', '.join(short(part) for part in value[:LONG])}{more}]"
    return str(value)


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; with an empty *head* it has no heading."""
    lines = [_row("th", head)] if head else []
    return f"<table>{''.join([*lines, *(_row('td', row) for row in rows)])}</table>"


def html_of(values: Mapping[str, Any], charts: Sequence[Chart] = ()) -> str:
    """*values*, one line each, and *charts* below; or the reason why they cannot be drawn."""
    told = (
        html_table((), ((name, short(value)) for name, value in values.items())) if values else ""
    )
    try:
        return told + (inline(charts) if charts else "")
    except OptionError as error:
        return f"{told}<p>{escape(str(error))}</p>"


def _row(kind: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"
