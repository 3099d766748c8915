"""What commands tell and take from the patch files that they are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import note, tell_notes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lmedit.edits.model_folders import EditedModel
    from lmedit.types import Update

    Read = list[tuple[Update, dict[str, Any]]]


@dataclass(frozen=True)
class Given:
    """Patches that the user named, and how to load their base."""

    patches: Sequence[Path]
    model: str
    parts: Mapping[str, str]
    """The parts of the model that the user named when the patches were made."""


def look_at(model: str, patches: Sequence[Path], base: str | None = None) -> Given:
    """Read what *patches* say about their base. Each is read once here, and once with its tensors.

    The model is *base*, else that of -m if the user gave one, else the base that the patches name.
    Its digest is checked when the patches are read whole.
    """
    from lmedit.edits.patches import base_in

    bases = [base_in(path) for path in patches]
    parts = {name: path for base in bases for name, path in base.parts.items()}
    source = click.get_current_context().get_parameter_source("model")
    if base is not None or (source is not None and source.name != "DEFAULT"):
        return Given(patches, base or model, parts)
    found = next((base.name for base in bases if base.name), model)
    if found != model:
        note(f"the base is {found}, as the patch says; -m names another place of it")
    return Given(patches, found, parts)


def tell_forced(patches: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    """Print a note for each of *patches*, with their facts, that was written with --force."""
    for path, facts in patches:
        if facts.get("forced"):
            note(f"{path} was written with --force, although {facts['forced']}")


def open_with(given: Given, **how: Any) -> tuple[EditedModel, Read]:
    """Load the model of *given* (*how*: see `load_lm`); read its patches' updates and facts.

    The model's notes, and patches that were written with --force, are told. The updates are not in
    the model. Raises the errors of `open_folder` and `read_patches`.
    """
    from lmedit.edits.model_folders import open_folder, read_patches
    from lmedit.models.quiet import quiet_hub

    quiet_hub()
    opened = open_folder(given.model, **how, parts=given.parts)
    tell_notes(opened.lm)
    found = read_patches(opened, given.patches)
    tell_forced([(path, facts) for path, (_, facts) in zip(given.patches, found, strict=True)])
    return opened, found


def fact_line(facts: Mapping[str, Any]) -> str:
    """The fact in a patch's *facts* as one line: prompt and new answer, or the adapter's name."""
    request, requests = facts.get("request", {}), facts.get("requests", [])
    if requests:
        return f"{len(requests)} facts: {fact_line({'request': requests[0]})}, ..."
    if not request:
        return f"adapter {facts['adapter']}" if "adapter" in facts else "no request"
    text = str(request.get("prompt", "")).replace("{}", str(request.get("subject") or "{}"))
    return f"{text} -> {request.get('target_new')}"
