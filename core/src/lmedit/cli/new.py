"""`lmedit new NAME`: write a project for your own method."""

from __future__ import annotations

from pathlib import Path

import click

from lmedit.cli.common import note, say
from lmedit.cli.parameter_types import OUT


@click.command()
@click.argument("name")
@click.option(
    "-O",
    "--out",
    type=OUT,
    metavar="DIR",
    help="The folder to write.  [default: lmedit-NAME]",
)
def new(name: str, out: Path | None) -> None:
    """Write a project for a new method NAME. It works and passes its tests; add your method."""
    from lmedit.actions.scaffold import write_project

    folder = out or Path(f"lmedit-{name}")
    for file in write_project(name, folder):
        say(folder / file)
    note(f"next: cd {folder} && pip install -e '.[test]' && python -m pytest")
