"""`lmedit report RUN`: a finished run as a table, Markdown, CSV or JSON, and as one page."""

from __future__ import annotations

from pathlib import Path

import click

from lmedit.cli.common import note


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), help="Also write one page to this file.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "markdown", "csv", "json"]),
    default="table",
    show_default=True,
    help="How to print the rows.",
)
def report(run: Path, html: Path | None, format_: str) -> None:
    """Print the rows of the folder RUN that `compare --run` wrote; or make a page of it.

    The page is one file that needs no network: plots, failures, and a browser of single cases.
    """
    from lmedit.api.comparisons import Comparison
    from lmedit.report.tables import FORMATS

    found = Comparison.read(run)
    if html is not None:
        found.page(html)
        note(f"the page is {html}")
    click.echo(FORMATS[format_](found.run))
