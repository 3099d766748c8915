"""What commands tell and take from the patch files that they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import note

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def base_for(model: str, patches: Sequence[Path]) -> str:
    """The model of *patches*: that of -m if the user gave one, else the base that they name.

    Its digest is checked when the patches are read.
    """
    source = click.get_current_context().get_parameter_source("model")
    if source is not None and source.name != "DEFAULT":
        return model
    from lmedit.edits.patches import base_named

    found = next((name for name in map(base_named, patches) if name), model)
    if found != model:
        note(f"the base is {found}, as the patch says; -m names another place of it")
    return found


def tell_forced(patches: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    """Print a note for each of *patches*, with their facts, that was written with --force."""
    for path, facts in patches:
        if facts.get("forced"):
            note(f"{path} was written with --force, although {facts['forced']}")


def parts_for(patches: Sequence[Path]) -> dict[str, str]:
    """The parts of the model that the user named when the *patches* were made."""
    from lmedit.edits.patches import parts_in

    return {name: path for patch in patches for name, path in parts_in(patch).items()}
