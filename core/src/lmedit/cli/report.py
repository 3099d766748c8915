"""`lmedit report RUN`: print a finished run as table, Markdown, CSV or JSON, or write a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmedit.cli.common import PLACE, note, say

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("run", type=PLACE)
@click.option("--html", type=PLACE, help="Also write one HTML page here.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "markdown", "csv", "json"]),
    default="table",
    show_default=True,
    help="The format of the printed rows.",
)
def report(run: Path, html: Path | None, format_: str) -> None:
    """Print the rows of RUN, a folder that `lmedit compare --run` wrote. --html writes a page too.

    The page is one file that needs no network: plots, failures, and a browser of single cases.
    """
    from lmedit.api.comparisons import Comparison
    from lmedit.report.tables import FORMATS
    from lmedit.storage.ours import check_place

    if html is not None:
        check_place(html)
    found = Comparison.read(run)
    if html is not None:
        found.page(html)
        note(f"the page is in {html}")
    say(FORMATS[format_](found.run))
