"""The flag --only of `compare` and `tune`, and the line that tells what it kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import note

if TYPE_CHECKING:
    from collections.abc import Mapping

only_flag = click.option(
    "--only",
    type=click.Choice(["wrong", "right", "unknown"]),
    help="Keep only the cases whose true answer the unedited model gets wrong, or right, or whose "
    "record names none (unknown). --limit counts the kept cases.",
)


def note_only(about: Mapping[str, Any]) -> None:
    """Print a note of what --only kept and dropped, if *about* holds it."""
    from lmedit.cases import Only

    if found := about.get("only"):
        note(str(Only(**found)))
