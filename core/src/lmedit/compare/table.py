"""The results as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COLUMNS = {
    "S": "S", "ES": "ES", "PS": "PS", "NS": "NS", "EM": "EM", "PM": "PM", "NM": "NM",
    "GE": "GE", "RS": "RS", "relation_specificity": "RelS",
    "seconds_per_edit": "s/edit", "prepare_seconds": "prepare s",
}  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text: only the columns that were measured, 95 % half-widths in brackets."""
    shown = [key for key in COLUMNS if any(row[key] is not None for row in rows)]
    lines = [["method", "n", "failed", *(COLUMNS[key] for key in shown)]]
    for row in rows:
        cells = [_cell(row[key], row.get(f"{key}_ci"), key) for key in shown]
        lines.append([row["method"], str(row["n"]), str(row["n_failed"]), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def _cell(value: float | None, half_width: float | None, key: str) -> str:
    if value is None:
        return "-"
    if key.endswith(("s_per_edit", "seconds")):
        return f"{value:.2f}"
    return f"{value:.1f}" + (f" ({half_width:.1f})" if half_width is not None else "")


def failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each method and reason of failure, with how often it struck."""
    return [
        f"{row['method']}: {count} failed: {reason}"
        for row in rows
        for reason, count in row["failures"].items()
    ]
