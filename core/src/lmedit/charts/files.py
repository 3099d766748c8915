"""Write charts to files: PNG, SVG, or an HTML page, by the file's ending."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmedit.charts.figures import draw_file, inline, pyplot
from lmedit.errors import OptionError
from lmedit.storage.atomic import write_result
from lmedit.storage.ours import check_place

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmedit.charts import Chart

KINDS = (".png", ".svg", ".html")


def check_ending(path: Path) -> None:
    """Raise `OptionError` if a chart cannot be written to *path*; call it before long work."""
    if path.suffix.lower() not in KINDS:
        raise OptionError(f"{path}: give a file that ends in {', '.join(KINDS)}")
    check_place(path)
    pyplot()


def draw(charts: Sequence[Chart], path: Path) -> None:
    """Write *charts*, one below the other, to *path*."""
    check_ending(path)
    kind = path.suffix.lower().removeprefix(".")
    content = _page(inline(charts)).encode("utf-8") if kind == "html" else draw_file(charts, kind)
    check_place(path)
    with write_result(path) as part:
        part.write_bytes(content)


def _page(inside: str) -> str:
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='generator' content='lmedit'><title>lmedit</title></head>"
        f"<body>{inside}</body></html>\n"
    )
