"""The rows of a run as a LaTeX table, with booktabs rules and siunitx columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit.compare.measures import SPREAD
from lmedit.compare.table import HIDDEN
from lmedit.report.columns import best, cell, columns
from lmedit.report.verdict import title_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.report.columns import Column
    from lmedit.report.read import FinishedRun, Row

HEAD = r"""% \usepackage{booktabs}
% \usepackage{siunitx}
% \sisetup{separate-uncertainty=true, detect-weight=true, mode=text}"""
ESCAPES = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "|": r"\textbar{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "\n": " ",
        "\r": " ",
    }
)


def for_latex(text: str) -> str:
    """*text* with every character that LaTeX would read as a command escaped."""
    return text.translate(ESCAPES)


def as_latex(run: FinishedRun) -> str:
    """A table of the columns that the terminal shows.

    A number is ``value(half-width)``, the half-width of its 95 % interval in units of the last
    digit, as siunitx reads it. The best mean of a column among the methods is bold.
    """
    wanted = [c for c in columns(run) if c.name not in HIDDEN and not c.extra]
    winners = {column.name: best(run, column) for column in wanted}
    kinds = " ".join(_column_kind(run, column) for column in wanted)
    lines = [HEAD, r"\begin{table}", r"\centering", f"\\caption{{{_caption(run)}}}"]
    lines += [f"\\begin{{tabular}}{{l {kinds}}}", r"\toprule"]
    lines.append(_line(["method", *(f"{{{for_latex(column.label)}}}" for column in wanted)]))
    lines.append(r"\midrule")
    for row in run.results.rows:
        cells = [_cell(run, row, c, bold=row.method in winners[c.name]) for c in wanted]
        lines.append(_line([for_latex(row.title), *cells]))
        if run.results.seeds:
            spreads = [_spread(row, column) for column in wanted]
            lines.append(_line([r"\quad sd over seeds", *spreads]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _caption(run: FinishedRun) -> str:
    over = f" Means over the seeds {', '.join(map(str, run.results.seeds))}." * bool(
        run.results.seeds
    )
    told = "Half of the 95 % interval over cases follows each mean. Bold: the best mean."
    return for_latex(f"{title_of(run)}. {told}{over}")


def _cell(run: FinishedRun, row: Row, column: Column, *, bold: bool) -> str:
    value, half_width = cell(run, row, column)
    if value is None:
        return "{--}"
    text = f"{round(value, column.digits) + 0.0:.{column.digits}f}"
    if half_width is not None:
        text += f"({round(half_width * 10**column.digits)})"
    return rf"\bfseries {text}" if bold else text


def _spread(row: Row, column: Column) -> str:
    value = row.number(f"{column.name}{SPREAD}")
    return "{--}" if value is None else f"{value:.{column.digits}f}"


def _column_kind(run: FinishedRun, column: Column) -> str:
    """The siunitx column: signs, digits before and behind the point, and digits of the interval."""
    found = [cell(run, row, column) for row in run.results.rows]
    values = [round(value, column.digits) for value, _ in found if value is not None]
    widths = [round(half * 10**column.digits) for _, half in found if half is not None]
    whole = max(len(str(int(abs(value)))) for value in values)
    sign = "-" if min(values) < 0 else ""
    bar = f"({max(len(str(width)) for width in widths)})" if widths else ""
    return f"S[table-format={sign}{whole}.{column.digits}{bar}]"
