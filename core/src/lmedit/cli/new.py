"""`lmedit new NAME`: a project for a method of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from lmedit.cli.common import note


@click.command()
@click.argument("name")
@click.option(
    "-O",
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder to write.  [default: lmedit-NAME]",
)
def new(name: str, out: Path | None) -> None:
    """Write the project of a new method NAME: it works, passes its tests, and waits for yours."""
    from lmedit.actions.scaffold import write_project

    folder = out or Path(f"lmedit-{name}")
    for file in write_project(name, folder):
        click.echo(folder / file)
    note(f"go on with: cd {folder} && pip install -e '.[test]' && python -m pytest")
