"""`lmedit audit FOLDER`: what differs from the base, and what the ledger explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmedit.cli.common import (
    as_json_text,
    json_flag,
    note,
    say,
)
from lmedit.cli.parameter_types import PLACE

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("folder", type=PLACE)
@click.option(
    "--base",
    metavar="MODEL",
    help="The base: a world, a pulled model, FOLDER, FILE.gguf, or a hub id.  [default: the one "
    "that the ledger names]",
)
@click.option("--download", is_flag=True, help="Allow downloads from the hub.")
@json_flag
def audit(folder: Path, base: str | None, *, download: bool, as_json: bool) -> None:
    """Compare the model in FOLDER with its base: tensors, config and tokenizer.

    Each changed tensor is compared with the base plus the edits of the ledger. For a change that no
    edit explains, the command prints the tensor, the rank, the energy and the norm. Then the exit
    code is 1. The files are read tensor by tensor, and no model is loaded. FOLDER needs no ledger.
    """
    from lmedit.actions.audit import audit_folder, audit_text, check_audit
    from lmedit.models.quiet import quiet_hub

    quiet_hub()
    told = audit_folder(folder, base, download=download)
    if base is None:
        note(f"the base is {told['base']}, as the ledger says; --base names another place of it")
    say(as_json_text(told) if as_json else audit_text(told))
    check_audit(told)
