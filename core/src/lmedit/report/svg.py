"""Small drawings as SVG text: elements, axes, and a colour and a shape for each method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b4b8a")
"""The colours of Okabe and Ito, which differ for any colour vision, and one more."""
GREY = "#6b6b6b"
SHAPES = ("circle", "square", "up", "diamond", "down")


def tag(name: str, inside: str = "", **attributes: object) -> str:
    """An element. `inside` is markup; attribute values are escaped; `_` in names becomes `-`."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{told}>{inside}</{name}>"


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def words(x: float, y: float, text: str, class_: str = "", anchor: str = "start") -> str:
    """A line of text with its baseline at (x, y)."""
    return tag("text", escape(text), x=x, y=y, class_=class_ or None, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str, **more: str) -> str:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_, **more)


def picture(width: float, height: float, inside: str, label: str) -> str:
    """A whole drawing that scales with its place; *label* describes it."""
    return tag(
        "svg",
        inside,
        viewBox=f"0 0 {_text(width)} {_text(height)}",
        role="img",
        aria_label=label,
        style=f"max-width:{_text(width)}px",
    )


@dataclass(frozen=True)
class Look:
    """The colour and shape of a method in every plot of a page."""

    colour: str
    shape: str

    def mark(self, x: float, y: float, *, hollow: bool = False, **data: str) -> str:
        """The method's mark at (x, y)."""
        paint: dict[str, Any] = {
            "fill": "#fff" if hollow else self.colour,
            "stroke": self.colour,
            "stroke_width": 1.5,
        }
        if self.shape == "circle":
            return tag("circle", cx=x, cy=y, r=4.5, **paint, **data)
        corners = {
            "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
            "up": ((0, -5.5), (5, 4), (-5, 4)),
            "diamond": ((0, -5.8), (5.8, 0), (0, 5.8), (-5.8, 0)),
            "down": ((0, 5.5), (5, -4), (-5, -4)),
        }[self.shape]
        points = " ".join(f"{_text(x + dx)},{_text(y + dy)}" for dx, dy in corners)
        return tag("polygon", points=points, **paint, **data)

    def sign(self) -> str:
        """The method's mark as a small picture in a line of text."""
        return tag("svg", self.mark(7, 7), viewBox="0 0 14 14", class_="sign", aria_hidden="true")


def looks(methods: Sequence[str], base: str) -> dict[str, Look]:
    """A look for each method: grey for the unedited model, the others by their order."""
    others = [method for method in methods if method != base]
    found = {
        method: Look(COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)])
        for i, method in enumerate(others)
    }
    return {base: Look(GREY, "circle"), **found}


@dataclass(frozen=True)
class Scale:
    """Maps values to places on the paper; `log` is for positive values of many magnitudes."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of *value*, limited to the ends."""
        low, high = self._at(self.low), self._at(self.high)
        share = (self._at(value) - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def _at(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value


def log_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """A scale from the power of ten below all *values* to the power of ten above them."""
    low = 10.0 ** math.floor(math.log10(min(values)))
    high = 10.0 ** math.ceil(math.log10(max(values)))
    return Scale(low, high if high > low else 10 * low, start, end, log=True)


def log_ticks(scale: Scale) -> list[float]:
    """Round values of a logarithmic scale: powers of ten; also 2 and 5 if there are few."""
    first, last = round(math.log10(scale.low)), round(math.log10(scale.high))
    powers = [10.0**power for power in range(first, last + 1, 1 + (last - first) // 8)]
    if last - first > 2:
        return powers
    return [power * step for power in powers for step in (1, 2, 5) if power * step <= scale.high]


def power_text(value: float) -> str:
    """A value as a tick shows it: 0.02, 1, 500, 1e+06."""
    return f"{value:g}"


DIRECTIONS = ((1, -1.1), (1, 1.1), (-1, -1.1), (-1, 1.1), (1, 0), (-1, 0), (0, -1.6), (0, 1.6))
LETTER, TALL = 7.4, 12.0
Box = tuple[float, float, float, float]


@dataclass
class Labels:
    """Texts next to points. A text does not cover points or earlier texts."""

    room: Box
    taken: list[Box]

    def put(self, x: float, y: float, text: str, colour: str) -> str:
        """*text* in the free place nearest to (x, y); if that is far, a thin line leads to it."""
        text = clip(text, 18)
        boxes = [
            self._box(x, y, way, 9 + 11 * far, text) for far in range(14) for way in DIRECTIONS
        ]
        free = (place for place, box in enumerate(boxes) if self._free(box))
        place = next(free, 0)
        box = boxes[place]
        self.taken.append(box)
        drawn = tag("text", escape(text), x=box[0], y=box[3] - 2, class_="label")
        if place < len(DIRECTIONS):
            return drawn
        near = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        return line(x, y, *near, "leader", stroke=colour) + drawn

    def _box(self, x: float, y: float, way: tuple[float, float], far: float, text: str) -> Box:
        """The box of *text*, at the distance *far* from (x, y) in the direction *way*."""
        wide = LETTER * len(text)
        left = x + far * way[0] - (wide if way[0] < 0 else 0 if way[0] > 0 else wide / 2)
        top = y + far * way[1] - TALL / 2
        return left, top, left + wide, top + TALL

    def _free(self, box: Box) -> bool:
        left, top, right, bottom = self.room
        inside = box[0] >= left and box[1] >= top and box[2] <= right and box[3] <= bottom
        return inside and not any(_meet(box, one) for one in self.taken)


def clip(text: str, most: int) -> str:
    """*text*, cut at the end if it is longer than *most*."""
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"


def _meet(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
