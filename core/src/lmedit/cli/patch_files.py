"""What commands tell and take from the patch files that they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import note, tell_notes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lmedit.edits.model_folders import EditedModel
    from lmedit.types import Update

    Read = list[tuple[Update, dict[str, Any]]]


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


def open_with(patches: Sequence[Path], model: str, **how: Any) -> tuple[EditedModel, Read]:
    """Load *model* (*how*: see `load_lm`), and read the updates and facts of *patches* of it.

    The model's notes, and patches that were written with --force, are told. The updates are not in
    the model. Raises the errors of `open_folder` and `read_patches`.
    """
    from lmedit.edits.model_folders import open_folder, read_patches
    from lmedit.plan import quiet_hub

    quiet_hub()
    opened = open_folder(model, **how, parts=parts_for(patches))
    tell_notes(opened.lm)
    found = read_patches(opened, patches)
    tell_forced([(path, facts) for path, (_, facts) in zip(patches, found, strict=True)])
    return opened, found
