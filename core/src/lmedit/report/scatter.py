"""Plots of the rows: efficacy against specificity, quality against cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.report.columns import cell_named, format_number
from lmedit.report.read import BASE
from lmedit.report.svg import (
    Labels,
    Scale,
    line,
    log_scale,
    log_ticks,
    looks,
    picture,
    power_text,
    tag,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.report.read import FinishedRun, Row
    from lmedit.report.svg import Look

WIDTH, HEIGHT = 430.0, 350.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 418.0, 14.0, 300.0
TICKS = (0, 20, 40, 60, 80, 100)
PERCENT = tuple((float(tick), str(tick)) for tick in TICKS)


def looks_of(run: FinishedRun) -> dict[str, Look]:
    """The colour and shape of each method of the run, the same in all plots."""
    return looks([row.method for row in run.results.rows], BASE)


def trade_off(run: FinishedRun) -> str:
    """ES and PS against NS, one panel each; empty if no two of them were measured."""
    panels = [_against_specificity(run, name) for name in ("ES", "PS")]
    return "".join(panel for panel in panels if panel)


def _against_specificity(run: FinishedRun, name: str) -> str:
    across = Scale(0, 100, LEFT + 8, RIGHT - 8)
    up = Scale(0, 100, BOTTOM - 8, TOP + 8)
    points = []
    for row in run.results.rows:
        (x, dx), (y, dy) = cell_named(run, row, "NS"), cell_named(run, row, name)
        if x is not None and y is not None:
            points.append((row, (x, dx or 0.0), (y, dy or 0.0)))
    if not points:
        return ""
    drawn = [axes(f"{name}, %", "NS, %", up), _percent_ticks(across)]
    look = looks_of(run)
    labels = Labels((LEFT + 2, TOP - 8, RIGHT, BOTTOM - 1), [])
    for _, (x, dx), (y, dy) in points:
        labels.taken.append((across(x) - 6, up(y) - 6, across(x) + 6, up(y) + 6))
        labels.taken.append((across(x - dx), up(y) - 2, across(x + dx), up(y) + 2))
        labels.taken.append((across(x) - 2, up(y + dy), across(x) + 2, up(y - dy)))
    for row, (x, dx), (y, dy) in points:
        colour = look[row.method].colour
        drawn += [
            line(across(x - dx), up(y), across(x + dx), up(y), "error", stroke=colour),
            line(across(x), up(y - dy), across(x), up(y + dy), "error", stroke=colour),
            look[row.method].mark(
                across(x), up(y), data_method=row.method, data_x=repr(x), data_y=repr(y)
            ),
            labels.put(across(x), up(y), row.method, colour),
        ]
    return picture(WIDTH, HEIGHT, "".join(drawn), f"{name} against NS, one point for each method")


def axes(
    up_title: str, across_title: str, up: Scale, ticks: Sequence[tuple[float, str]] = PERCENT
) -> str:
    """The axes of a panel, with a grid line at each of *ticks*."""
    middle = (TOP + BOTTOM) / 2
    parts = [line(LEFT, up(t), RIGHT, up(t), "grid") for t, _ in ticks]
    parts += [words(LEFT - 8, up(t) + 4, text, "tick", "end") for t, text in ticks]
    parts += [line(LEFT, BOTTOM, RIGHT, BOTTOM, "axis"), line(LEFT, TOP, LEFT, BOTTOM, "axis")]
    parts.append(words((LEFT + RIGHT) / 2, BOTTOM + 40, across_title, "title", "middle"))
    turned = f"rotate(-90 13 {middle:g})"
    parts.append(
        tag(
            "text", up_title, x=13, y=middle, class_="title", text_anchor="middle", transform=turned
        )
    )
    return "".join(parts)


def _percent_ticks(across: Scale) -> str:
    return "".join(
        line(across(t), TOP, across(t), BOTTOM, "grid")
        + words(across(t), BOTTOM + 18, str(t), "tick", "middle")
        for t in TICKS
    )


def cost(run: FinishedRun) -> str:
    """S against seconds per edit; a hollow mark adds each edit's share of the preparation."""
    timed = [
        (row, s, t)
        for row in run.results.rows
        if (s := cell_named(run, row, "S")[0]) is not None
        and (t := cell_named(run, row, "seconds_per_edit")[0])
        and t > 0
    ]
    if not timed:
        return ""
    across = log_scale(
        [v for row, _, t in timed for v in (t, _with_share(row, t))], LEFT + 8, RIGHT - 8
    )
    up = Scale(0, 100, BOTTOM - 8, TOP + 8)
    drawn = [axes("S, %", "seconds per edit", up)]
    drawn += [
        line(across(t), TOP, across(t), BOTTOM, "grid")
        + words(across(t), BOTTOM + 18, power_text(t), "tick", "middle")
        for t in log_ticks(across)
    ]
    labels = Labels((LEFT + 2, TOP - 8, RIGHT, BOTTOM - 1), [])
    drawn += [_unedited_line(run, up, labels)]
    for row, s, t in timed:
        labels.taken.append((across(t) - 6, up(s) - 6, across(_with_share(row, t)) + 6, up(s) + 6))
    look = looks_of(run)
    drawn += [_costs(row, (s, t), look[row.method], (across, up), labels) for row, s, t in timed]
    return picture(WIDTH, HEIGHT, "".join(drawn), "S against seconds per edit")


def _costs(
    row: Row, at: tuple[float, float], look: Look, scales: tuple[Scale, Scale], labels: Labels
) -> str:
    (s, t), (across, up) = at, scales
    told: dict[str, Any] = {"data_method": row.method, "data_x": repr(t), "data_y": repr(s)}
    drawn = ""
    if (share := _with_share(row, t)) > t:
        drawn = line(across(t), up(s), across(share), up(s), "share", stroke=look.colour)
        drawn += look.mark(across(share), up(s), hollow=True)
    drawn += look.mark(across(t), up(s), **told)
    return drawn + labels.put(across(t), up(s), row.method, look.colour)


def _unedited_line(run: FinishedRun, up: Scale, labels: Labels) -> str:
    """A line at the score of the unedited model."""
    for row in run.results.rows:
        s = cell_named(run, row, "S")[0]
        if row.method == BASE and s is not None:
            text = f"{BASE} {format_number(s)}"
            labels.taken.append((RIGHT - 60, up(s) - 16, RIGHT, up(s) + 2))
            return line(LEFT, up(s), RIGHT, up(s), "base") + words(
                RIGHT - 4, up(s) - 5, text, "tick", "end"
            )
    return ""


def _with_share(row: Row, seconds: float) -> float:
    """Seconds per edit plus the preparation, divided by the cases of this run."""
    return seconds + (row.number("prepare_seconds") or 0.0) / max(row.n, 1)
