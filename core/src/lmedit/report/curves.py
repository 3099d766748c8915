"""Retention as edits pile up: scores, perplexity and norms over the number of edits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit.compare.measures import MEASURES
from lmedit.report.scatter import BOTTOM, HEIGHT, LEFT, PERCENT, RIGHT, TOP, WIDTH, axes, looks_of
from lmedit.report.svg import (
    Labels,
    Scale,
    line,
    log_scale,
    log_ticks,
    picture,
    power_text,
    tag,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.report.read import FinishedRun, Point

RETAINED = ("ES", "PS", "NS")
HARM = ("perplexity", "relative_norm", "spectral_growth")
Line = tuple[str, list[tuple[float, float]]]


def draw_retention(run: FinishedRun) -> str:
    """ES, PS and NS of all edits so far, one panel each; empty if edits did not pile up."""
    return "".join(_panel(run, name, percent=True) for name in RETAINED)


def harm(run: FinishedRun) -> str:
    """Perplexity, size of the change and largest singular value, on logarithmic scales."""
    return "".join(_panel(run, name, percent=False) for name in HARM)


def _panel(run: FinishedRun, name: str, *, percent: bool) -> str:
    lines = _lines(run.results.curve, name)
    values = [point for _, points in lines for point in points]
    if not values:
        return ""
    across = log_scale([x for x, _ in values], LEFT + 8, RIGHT - 8)
    up, ticks = Scale(0, 100, BOTTOM - 8, TOP + 8), PERCENT
    if not percent:
        up = log_scale([y for _, y in values], BOTTOM - 8, TOP + 8)
        ticks = tuple((t, power_text(t)) for t in log_ticks(up))
    known = MEASURES[name]
    drawn = [axes(f"{known.label}, %" if percent else known.label, "edits", up, ticks)]
    drawn += [
        line(across(t), TOP, across(t), BOTTOM, "grid")
        + words(across(t), BOTTOM + 18, power_text(t), "tick", "middle")
        for t in log_ticks(across)
    ]
    look = looks_of(run)
    labels = Labels((LEFT + 2, TOP - 8, RIGHT, BOTTOM - 1), [])
    for method, points in lines:
        places = [(across(x), up(y)) for x, y in points]
        labels.taken += [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(
            tag("polyline", points=path, fill="none", stroke=look[method].colour, stroke_width=1.5)
        )
        drawn += [
            look[method].mark(
                place[0], place[1], data_method=method, data_x=repr(x), data_y=repr(y)
            )
            for place, (x, y) in zip(places, points, strict=True)
        ]
    for method, points in lines:
        x, y = points[-1]
        drawn.append(labels.put(across(x), up(y), method, look[method].colour))
    return picture(WIDTH, HEIGHT, "".join(drawn), f"{known.label} over the number of edits")


def _lines(curve: Sequence[Point], name: str) -> list[Line]:
    """For each method, its measured points (edits, value), in order."""
    methods = list(dict.fromkeys(point.method for point in curve))
    lines = [
        (
            method,
            [
                (float(p.size), value)
                for p in curve
                if p.method == method
                and (value := p.number(name)) is not None
                and (name in RETAINED or value > 0)
            ],
        )
        for method in methods
    ]
    return [(method, points) for method, points in lines if points]
