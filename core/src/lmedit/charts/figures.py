"""Draw charts with matplotlib as PNG or SVG; `lmedit.charts.files` writes the files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from lmedit.charts import Bars, Heat
from lmedit.errors import OptionError
from lmedit.storage.escapes import for_terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.charts import Chart, Lines

WIDTH, HEIGHT = 8.0, 3.2
"""The size of one chart in inches; several charts are placed one below the other."""
CHARACTERS, LONGEST = 70, 30
"""The characters that fit below a chart with a legend beside it, and those of one slanted label."""


def draw_file(charts: Sequence[Chart], kind: str) -> bytes:
    """The content of a ``png`` or ``svg`` file with *charts* one below the other.

    Raises `OptionError` if matplotlib is not installed.
    """
    buffer = io.BytesIO()
    written_by = {"png": {"Software": "lmedit"}, "svg": {"Creator": "lmedit"}}[kind]
    pyplot()
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False, "svg.fonttype": "path"}):
        _figure([_escape(chart) for chart in charts]).savefig(
            buffer, format=kind, dpi=150, metadata=written_by
        )
    return buffer.getvalue()


def _escape(value: Any) -> Any:
    """*value*, a chart or a part of one, with unprintable characters escaped."""
    if isinstance(value, str):
        return for_terminal(value)
    if isinstance(value, tuple | list):
        return tuple(map(_escape, value))
    if isinstance(value, Mapping):
        return {_escape(name): _escape(part) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{name: _escape(part) for name, part in vars(value).items()})
    return value


def inline(charts: Sequence[Chart]) -> str:
    """*charts* as an ``<svg>`` element for a page."""
    drawn = draw_file(charts, "svg").decode("utf-8")
    return drawn[drawn.index("<svg") :]


def pyplot() -> Any:
    """The module matplotlib.figure; raises `OptionError` if matplotlib is not installed."""
    try:
        from matplotlib import figure
    except ImportError:
        raise OptionError("drawing needs matplotlib; run: pip install 'lmedit[plots]'") from None
    return figure


def _figure(charts: Sequence[Chart]) -> Any:
    size = (WIDTH, HEIGHT * len(charts))
    figure = pyplot().Figure(figsize=size, layout="constrained")
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


def _label_columns(axes: Any, labels: Sequence[str]) -> None:
    """Write at most some two dozen of *labels* below the columns.

    Labels that do not fit side by side are slanted, and very long ones are cut.
    """
    every = max(1, len(labels) // 24)
    shown, places = labels[::every], range(0, len(labels), every)
    if sum(len(label) + 2 for label in shown) <= CHARACTERS:
        axes.set_xticks(places, shown)
        return
    cut = [x if len(x) <= LONGEST else x[: LONGEST - 1] + "…" for x in shown]
    axes.set_xticks(places, cut, rotation=35, ha="right", rotation_mode="anchor")


def _bars(chart: Bars, axes: Any) -> None:
    """Bars side by side at each label, with their legend beside the chart."""
    width = 0.8 / len(chart.series)
    for number, (name, values) in enumerate(chart.series.items()):
        places = [
            place + width * (number - (len(chart.series) - 1) / 2) for place in range(len(values))
        ]
        axes.bar(places, values, width, label=name)
    _label_columns(axes, chart.labels)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _lines(chart: Lines, axes: Any) -> None:
    """A line for each series, with its band if it has one."""
    for name, values in chart.series.items():
        axes.plot(chart.places, values, marker=".", label=name)
        if name in chart.bands:
            half = chart.bands[name]
            low = [value - width for value, width in zip(values, half, strict=True)]
            high = [value + width for value, width in zip(values, half, strict=True)]
            axes.fill_between(chart.places, low, high, alpha=0.2)
    if chart.bands:  # a legend inside would hide a band
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    else:
        axes.legend()


def _heat(chart: Heat, axes: Any) -> None:
    """A field for each value, the first row at the top, and the colour scale."""
    picture = axes.imshow(chart.values, aspect="auto", cmap="Purples")
    _label_columns(axes, chart.columns)
    axes.set_yticks(range(len(chart.rows)), chart.rows)
    axes.figure.colorbar(picture, ax=axes)
