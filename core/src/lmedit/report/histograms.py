"""The spread of single cases: histograms of the magnitudes, and the sizes of the changes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lmedit.metrics.counterfact import mean
from lmedit.report.columns import PROBABILITIES
from lmedit.report.scatter import looks_of
from lmedit.report.svg import clip, line, log_scale, log_ticks, picture, power_text, tag, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.report.read import FinishedRun
    from lmedit.report.svg import Scale

BINS = 20
LEFT, COLUMN, GAP, ROW, HEAD = 92.0, 228.0, 36.0, 46.0, 24.0
MOST_ROWS = 24


def counts(values: Sequence[float]) -> list[int]:
    """Count the *values* in [-1, 1] by bin; 1 belongs to the last bin."""
    found = [0] * BINS
    for value in values:
        place = math.floor((value + 1) / 2 * BINS)
        found[min(max(place, 0), BINS - 1)] += 1
    return found


def magnitudes(run: FinishedRun) -> str:
    """A histogram for each method and magnitude, with its mean; one scale per column."""
    names = [name for name in PROBABILITIES if name in run.score_names]
    if not names:
        return ""
    drawn = []
    for j, name in enumerate(names):
        values = {method: run.values(method, name) for method in run.methods}
        tallest = max(max(counts(v)) / max(len(v), 1) for v in values.values())
        left = LEFT + j * (COLUMN + GAP)
        drawn.append(words(left + COLUMN / 2, 12, name, "title", "middle"))
        for i, method in enumerate(run.methods):
            drawn.append(_histogram(run, method, values[method], tallest, (left, HEAD + i * ROW)))
        drawn.append(_ticks(left, HEAD + len(run.methods) * ROW))
    for i, method in enumerate(run.methods):
        drawn.append(words(LEFT - 10, HEAD + i * ROW + ROW - 8, clip(method, 13), "label", "end"))
    width = LEFT + len(names) * (COLUMN + GAP)
    height = HEAD + len(run.methods) * ROW + 22
    return picture(width, height, "".join(drawn), "Histograms of " + ", ".join(names))


def _histogram(
    run: FinishedRun,
    method: str,
    values: Sequence[float],
    tallest: float,
    corner: tuple[float, float],
) -> str:
    left, top = corner
    floor, room, step = top + ROW - 4, ROW - 10, COLUMN / BINS
    colour = looks_of(run)[method].colour
    parts = [line(left, floor, left + COLUMN, floor, "axis")]
    for i, count in enumerate(counts(values)):
        if count:
            high = count / len(values) / tallest * room
            told = f"{count} of {len(values)}"
            parts.append(
                tag(
                    "rect",
                    tag("title", told),
                    x=left + i * step + 0.5,
                    y=floor - high,
                    width=step - 1,
                    height=high,
                    fill=colour,
                )
            )
    parts.append(line(left + COLUMN / 2, top, left + COLUMN / 2, floor, "zero"))
    if (middle := mean(values)) is not None:
        at = left + (middle + 1) / 2 * COLUMN
        parts.append(line(at, top, at, floor, "mean"))
    return "".join(parts)


def _ticks(left: float, floor: float) -> str:
    return "".join(
        words(left + (value + 1) / 2 * COLUMN, floor + 12, f"{value:g}", "tick", "middle")
        for value in (-1, -0.5, 0, 0.5, 1)
    )


def norms(run: FinishedRun) -> str:
    """The relative norms of the changes by parameter: quartiles, smallest and largest."""
    found: dict[tuple[str, str], list[float]] = {}
    for method in run.methods:
        for entry in run.entries[method]:
            for parameter, value in entry.payload.norms.items():
                if value is not None and value > 0:
                    found.setdefault((method, parameter), []).append(value)
    if not found:
        return ""
    rows = list(found.items())[:MOST_ROWS]
    scale = log_scale([value for _, values in rows for value in values], 320.0, 840.0)
    floor = HEAD + len(rows) * 24
    drawn = [
        line(scale(tick), 6, scale(tick), floor, "grid")
        + words(scale(tick), floor + 16, power_text(tick), "tick", "middle")
        for tick in log_ticks(scale)
    ]
    look = looks_of(run)
    for i, ((method, parameter), values) in enumerate(rows):
        at = HEAD + i * 24
        drawn.append(words(4, at + 4, clip(method, 13), "label"))
        drawn.append(words(310, at + 4, _tail(parameter), "tick", "end"))
        drawn.append(_quartiles(sorted(values), scale, at, look[method].colour))
    return picture(860, floor + 26, "".join(drawn), "Relative norms of the changes")


def _quartiles(values: Sequence[float], scale: Scale, at: float, colour: str) -> str:
    low, first, middle, third, high = (
        scale(values[round(share * (len(values) - 1))]) for share in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        line(low, at, high, at, "error", stroke=colour)
        + tag("rect", x=first, y=at - 5, width=max(third - first, 1.0), height=10, fill=colour)
        + line(middle, at - 7, middle, at + 7, "mean")
    )


def _tail(parameter: str, most: int = 34) -> str:
    """The name of a parameter; of a long name the end, because the ends differ."""
    return parameter if len(parameter) <= most else f"\u2026{parameter[-most + 1 :]}"
