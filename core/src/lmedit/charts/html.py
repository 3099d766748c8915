"""Values as notebooks show them: small tables, and charts where matplotlib is installed."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from lmedit.charts.figures import inline
from lmedit.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lmedit.charts import Chart

LONG = 12
"""A list with more entries than that is cut where people read it."""


def short(value: Any) -> str:
    """A value as a line has room for it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        more = f", ... {len(value)} in all" if len(value) > LONG else ""
        return f"[{', '.join(short(part) for part in value[:LONG])}{more}]"
    return str(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; without a *head* it has none."""
    lines = [_row("th", head)] if head else []
    return f"<table>{''.join([*lines, *(_row('td', row) for row in rows)])}</table>"


def html_of(values: Mapping[str, Any], charts: Sequence[Chart] = ()) -> str:
    """*values*, a line each, and *charts* below; where these cannot be drawn, why."""
    told = table((), ((name, short(value)) for name, value in values.items())) if values else ""
    try:
        return told + (inline(charts) if charts else "")
    except OptionError as error:
        return f"{told}<p>{escape(str(error))}</p>"


def _row(kind: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"
