"""`lmedit report RUN...`: print runs as table, Markdown, CSV, JSON or LaTeX, or write a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmedit.cli.common import note, say
from lmedit.cli.parameter_types import OUT, PLACE

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=PLACE)
@click.option("--html", type=OUT, help="Also write one HTML page here.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "markdown", "csv", "json", "latex"]),
    default="table",
    show_default=True,
    help="The format of the printed rows.",
)
def report(runs: tuple[Path, ...], html: Path | None, format_: str) -> None:
    """Print the rows of RUN, a folder that `lmedit compare --run` wrote. --html writes a page too.

    The page is one file that needs no network: plots, failures, and a browser of single cases.
    Several runs are put side by side, with what may not be compared between them, and why.
    """
    from lmedit.api.comparisons import Comparison
    from lmedit.report.several import side_by_side
    from lmedit.report.tables import FORMATS
    from lmedit.storage.ours import check_place

    if html is not None:
        if len(runs) > 1:
            raise click.UsageError("--html writes the page of one run; give one RUN")
        check_place(html)
    if len(runs) > 1:
        whole, told = side_by_side(runs)
        for line in told:
            note(line)
        say(FORMATS[format_](whole))
        return
    found = Comparison.read(runs[0])
    if html is not None:
        found.page(html)
        note(f"the page is in {html}")
    say(FORMATS[format_](found.run))
