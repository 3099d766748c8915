"""The results as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.compare.measures import HALF_WIDTH, SPREAD, measure, sort_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit.compare.measure import Measure

HIDDEN = frozenset(
    {
        "seconds_amortised",
        "peak_mebibytes",
        "predicted_mebibytes",
        "patch_bytes",
        "relative_norm",
        "survival",
    }
)
"""Columns that do not fit on a terminal; reports show them."""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text: only measured columns, 95 % half-widths in brackets.

    With several seeds the standard deviation over them follows in the brackets.
    """
    names = {name for row in rows for name in row if measure(name) and row[name] is not None}
    shown = [known for name in sort_columns(names - HIDDEN) if (known := measure(name))]
    lines = [["method", "n", "failed", *(known.label for known in shown)]]
    for row in rows:
        cells = [_cell_of(row, known) for known in shown]
        name = method_title(row["method"], untuned=row.get("untuned", False))
        lines.append([name, str(row["n"]), str(row["n_failed"]), *cells])
    return "\n".join(align(lines))


def method_title(method: str, *, untuned: bool) -> str:
    """A method's name as tables show it, with a mark if its options were not tuned."""
    return f"{method} (untuned)" if untuned else method


def align(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of text: the first column left-aligned, the others right-aligned."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]


def _cell_of(row: Mapping[str, Any], known: Measure) -> str:
    value, half_width = row.get(known.name), row.get(f"{known.name}{HALF_WIDTH}")
    spread = row.get(f"{known.name}{SPREAD}")
    if spread is None or not known.protocol:
        return _cell(value, half_width, known.digits)
    over_cases = "-" if half_width is None else f"{half_width:.{known.digits}f}"
    return f"{_cell(value, None, known.digits)} ({over_cases}, {spread:.{known.digits}f})"


def seed_lines(seeds: Sequence[int]) -> list[str]:
    """What the brackets of the table hold, if there are several seeds."""
    if len(seeds) < 2:
        return []
    brackets = "half of the 95 % interval over cases, and the standard deviation over seeds"
    return [f"means over the seeds {', '.join(map(str, seeds))}; in brackets: {brackets}"]


def _cell(value: float | None, half_width: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + (f" ({half_width:.{digits}f})" if half_width is not None else "")


def with_paper_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows; below each row the paper's row of the same method, if there is one."""
    paper = {row["method"]: row for row in (results.get("published") or {}).get("rows", ())}
    rows: list[dict[str, Any]] = []
    for row in results["rows"]:
        rows.append(row)
        if row["method"] in paper:
            rows.append({**paper[row["method"]], "method": "  published", "n": "", "n_failed": ""})
    return rows


def difference_lines(differences: Sequence[Mapping[str, Any]], score: str = "S") -> list[str]:
    """One line for each two methods: their difference in *score*, with the interval."""
    return [
        f"{d['one']} - {d['other']}: {score} {d['estimate']:+.1f} [{d['low']:.1f}, {d['high']:.1f}]"
        for d in differences
        if d["score"] == score
    ]


def retention_lines(curve: Sequence[Mapping[str, Any]]) -> list[str]:
    """The points of a curve as aligned text: the scores after each number of edits."""
    if not curve:
        return []
    shown = [
        m for name in CURVE if (m := measure(name)) and any(p.get(name) is not None for p in curve)
    ]
    fresh = any(point.get("right_after") for point in curve)
    own = ["ES own"] if fresh else []
    lines = [["method", "edits", "update", *own, *(known.label for known in shown), ""]]
    for point in curve:
        cells = [_cell(point.get(known.name), None, known.digits) for known in shown]
        end = "collapsed" if point["collapsed"] else ""
        after = [_cell((point.get("right_after") or {}).get("ES"), None, 1)] if fresh else []
        how = str(point.get("computed", ""))
        lines.append([point["method"], str(point["size"]), how, *after, *cells, end])
    return align(lines)


def ability_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The abilities as aligned text: each task and metric, the base, and each edited model."""
    lines = [["method", "task", "metric", "documents", "base", "edited", "difference", "95 %"]]
    for row in rows:
        for task, metrics in (row.get("abilities") or {}).items():
            for metric, each in metrics.items():
                if each["edited"] is not None:
                    lines.append([row["method"], task, metric, *ability_cells(each)])
    return align(lines) if len(lines) > 1 else []


def ability_cells(each: Mapping[str, Any]) -> list[str]:
    """The number of documents, both values, their difference and its interval, as text."""
    low, high = each["low"], each["high"]
    between = "-" if low is None else f"[{low:+.4g}, {high:+.4g}]"
    values = f"{each['base']:.4g}", f"{each['edited']:.4g}", f"{each['difference']:+.4g}"
    return [str(each["documents"]), *values, between]


def collapse_lines(points: Mapping[str, int | None]) -> list[str]:
    """One line for each method whose S fell under 60 % of its first value."""
    return [
        f"{method}: S is under 60 % of its first value from {size} edits on"
        for method, size in points.items()
        if size is not None
    ]


CURVE = ("S", "ES", "PS", "NS", "perplexity", "KL", "relative_norm", "spectral_growth")


def failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each method and reason of failure, with its count."""
    return [
        f"{row['method']}: {count} failed: {reason}"
        for row in rows
        for reason, count in row["failures"].items()
    ]


def unsound_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each method with unsound edits: their number, and the first reason."""
    return [
        f"{row['method']}: {row['n_unsound']} of {row['n']} edits are unsound, as the first: "
        f"{row['unsound']}"
        for row in rows
        if row.get("n_unsound")
    ]


def several_lines(how: Mapping[str, str]) -> list[str]:
    """One sentence on the methods of *how* (`candidates.how_several`); none if it is empty."""
    words = {"together": "computes them together", "added": "adds edits computed one by one"}
    told = [f"{name} {words[each]}" for name, each in how.items()]
    return [f"some cases have several edits: {', '.join(told)}"] if told else []
