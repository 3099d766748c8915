"""Charts of a location or a probe as plain data; `lmedit.charts.files` draws them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Bars:
    """A chart with one bar of each series for each label."""

    title: str
    along: str
    up: str
    labels: tuple[str, ...]
    series: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Lines:
    """A chart with a line for each series; NaN interrupts the line."""

    title: str
    along: str
    up: str
    places: tuple[float, ...]
    series: Mapping[str, tuple[float, ...]]
    bands: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Half of the 95 % interval around each point, for the series that have one."""


@dataclass(frozen=True)
class Heat:
    """A chart with a coloured field for each row and column."""

    title: str
    along: str
    up: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


Chart = Bars | Lines | Heat
