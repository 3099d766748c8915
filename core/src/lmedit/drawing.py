"""Charts as pictures: PNG, SVG, or a page of its own, by the file's ending."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from lmedit.artifacts import written_whole
from lmedit.charts import Bars, Heat
from lmedit.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmedit.charts import Chart, Lines

KINDS = (".png", ".svg", ".html")
WIDTH, HEIGHT = 8.0, 3.2
"""Of one chart, in inches; several stand one below the other."""


def check(path: Path) -> None:
    """Raise `OptionError` where *path* cannot be drawn to: before the long work, not after."""
    if path.suffix.lower() not in KINDS:
        raise OptionError(f"{path}: pictures end in {', '.join(KINDS)}")
    _pyplot()


def draw(charts: Sequence[Chart], path: Path) -> None:
    """Write *charts*, one below the other, to *path*."""
    check(path)
    kind = path.suffix.lower()
    figure = _figure(charts)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png" if kind == ".png" else "svg", dpi=150)
    content = buffer.getvalue()
    if kind == ".html":
        picture = content.decode("utf-8")
        content = _page(picture[picture.index("<svg") :]).encode("utf-8")
    with written_whole(path) as part:
        part.write_bytes(content)


def _pyplot() -> Any:
    try:
        from matplotlib import figure
    except ImportError:
        raise OptionError("drawing needs matplotlib; run: pip install 'lmedit[plots]'") from None
    return figure


def _figure(charts: Sequence[Chart]) -> Any:
    size = (WIDTH, HEIGHT * len(charts))
    figure = _pyplot().Figure(figsize=size, layout="constrained")
    for chart, axes in zip(charts, figure.subplots(len(charts), squeeze=False)[:, 0], strict=True):
        if isinstance(chart, Heat):
            _heat(chart, axes)
        elif isinstance(chart, Bars):
            _bars(chart, axes)
        else:
            _lines(chart, axes)
        axes.set_title(chart.title)
        axes.set_xlabel(chart.along)
        axes.set_ylabel(chart.up)
    return figure


def _bars(chart: Bars, axes: Any) -> None:
    """Bars side by side at each label, with their legend."""
    width = 0.8 / len(chart.series)
    for number, (name, values) in enumerate(chart.series.items()):
        places = [place + width * (number - (len(chart.series) - 1) / 2)
                  for place in range(len(values))]  # fmt: skip
        axes.bar(places, values, width, label=name)
    every = max(1, len(chart.labels) // 24)
    axes.set_xticks(range(0, len(chart.labels), every), chart.labels[::every])
    axes.legend()


def _lines(chart: Lines, axes: Any) -> None:
    """A line for each series, in its band where it has one."""
    for name, values in chart.series.items():
        axes.plot(chart.places, values, marker=".", label=name)
        if name in chart.bands:
            half = chart.bands[name]
            low = [value - width for value, width in zip(values, half, strict=True)]
            high = [value + width for value, width in zip(values, half, strict=True)]
            axes.fill_between(chart.places, low, high, alpha=0.2)
    axes.legend()


def _heat(chart: Heat, axes: Any) -> None:
    """A field for each value, the first row on top, with its scale."""
    picture = axes.imshow(chart.values, aspect="auto", cmap="Purples")
    every = max(1, len(chart.columns) // 24)
    axes.set_xticks(range(0, len(chart.columns), every), chart.columns[::every])
    axes.set_yticks(range(len(chart.rows)), chart.rows)
    axes.figure.colorbar(picture, ax=axes)


def _page(picture: str) -> str:
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>lmedit</title></head>"
        f"<body>{picture}</body></html>\n"
    )
