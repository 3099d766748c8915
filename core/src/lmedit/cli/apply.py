"""`lmedit apply`, `revert`, `log` and `verify`: put edits into model folders and take them out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import (
    as_json_text,
    json_flag,
    model_flags,
    note,
    refuse_unused,
    say,
    tell_notes,
)
from lmedit.cli.gate import gate_flags, gate_of, refuse_without_gate, through_gate
from lmedit.cli.parameter_types import OUT, PLACE
from lmedit.cli.patch_files import fact_line, look_at, tell_forced

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmedit.cli.patch_files import Given
    from lmedit.edits.model_folders import EditedModel
    from lmedit.edits.recipes import Recipe
    from lmedit.types import Update

FOLDER = PLACE
TELLING = 0.99
"""If rounding keeps less than this share of an edit, `apply` prints a note."""


@click.command()
@click.argument("patches", nargs=-1, metavar="PATCH...", type=FOLDER)
@click.option("-O", "--out", type=OUT, required=True, help="The model folder to write.")
@click.option(
    "--recipe",
    type=FOLDER,
    metavar="FILE.toml",
    help="Read the base, the patches and the expected digests from this file.",
)
@click.option("--force", is_flag=True, help="Apply also edits that are mostly lost by rounding.")
@gate_flags
@model_flags
def apply(
    patches: tuple[Path, ...],
    out: Path,
    recipe: Path | None,
    model: str,
    device: str,
    dtype: str,
    *,
    force: bool,
    download: bool,
    **of_gate: Any,
) -> None:
    """Write a model folder that contains the edits of the patches, in the given order.

    The transformers library loads the folder as any other model. `lmedit revert` can take out each
    edit again, in any order. The model of -m can be the base or a folder with other edits; it is
    not changed. The written weights are compared with the model, bit for bit, before they are kept.

    With --gate, the edited model is measured against its base. If a limit does not hold, the exit
    code is 1 and nothing is written. The ledger of the folder keeps the measured values.
    """
    from lmedit.edits import model_folders
    from lmedit.models.quiet import quiet_hub
    from lmedit.storage.locks import being_changed

    refuse_without_gate(recipe, of_gate["gate"])
    chosen, given = _choose(recipe, model, patches)
    patches = tuple(given.patches)
    limits = gate_of(chosen, recipe, **of_gate, download=download)
    quiet_hub()
    model_folders.check_model_place(out)
    with being_changed(out):
        edited = model_folders.open_folder(
            given.model, device=device, dtype=dtype, download=download, parts=given.parts
        )
        tell_notes(edited.lm)
        model_folders.check_in_place(edited.lm)
        if chosen:
            chosen.check_base(edited)
        found = model_folders.read_patches(edited, patches)
        if chosen:
            chosen.check_edits([update for update, _ in found])
        _check_rounding(edited, patches, [update for update, _ in found], force=force)
        _tell_missing(edited, patches, found)
        model_folders.add_edits(edited, found)
        if chosen:
            chosen.check_result(edited)
        model_folders.write_folder(through_gate(edited, limits, f"{out} is not written: it"), out)
    tell_forced([(path, facts) for path, (_, facts) in zip(patches, found, strict=True)])
    note(f"{out} holds {len(edited.ledger.entries)} edit(s) of {edited.base['name']}")


def _recipe(path: Path | None) -> Recipe | None:
    from lmedit.edits.recipes import read_recipe

    return read_recipe(path) if path else None


def _choose(
    path: Path | None, model: str, patches: tuple[Path, ...]
) -> tuple[Recipe | None, Given]:
    """The recipe at *path*, if one is given, and the patches with their base."""
    recipe = _recipe(path)
    if bool(patches) == bool(recipe):
        raise click.UsageError("name patches or give --recipe, not both")
    if recipe is None or path is None:
        return None, look_at(model, patches)
    refuse_unused(f"is not used, since {path} names the base, {recipe.base}", "--model")
    if look_at(model, ()).model != "demo":
        raise click.UsageError(f"{path} names the base, {recipe.base}; remove -m")
    return recipe, look_at(model, tuple(recipe.patches(path)), recipe.base)


@click.command()
@click.argument("folder", type=FOLDER)
@click.argument("edits", nargs=-1, required=True, metavar="EDIT...")
@click.option("-O", "--out", type=OUT, help="Write to this folder instead of FOLDER.")
def revert(folder: Path, edits: tuple[str, ...], out: Path | None) -> None:
    """Take edits out of a FOLDER that `lmedit apply` wrote.

    EDIT is the patch file or the id of an edit. The result is, bit for bit, the base with the
    remaining edits.
    """
    from lmedit.edits.model_folders import (
        check_model_place,
        count_dependents,
        find_edits,
        open_folder,
        read_log,
        write_folder,
    )
    from lmedit.models.quiet import quiet_hub
    from lmedit.storage.locks import being_changed

    quiet_hub()
    read_log(folder)
    check_model_place(out or folder)
    with being_changed(out or folder):
        edited = open_folder(str(folder), device="cpu")
        gone = find_edits(edited, edits)
        resting = count_dependents(edited, gone)
        edited.ledger.take_out(*gone)
        write_folder(edited, out or folder)
    left = len(edited.ledger.entries)
    what = f"{left} edit(s) are left" if left else f"it is {edited.base['name']} again, to the bit"
    note(f"{out or folder}: {what}")
    if resting:
        note(
            f"{resting} later edit(s) were computed with it in the model; their answers may differ"
        )


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--facts", is_flag=True, help="List every fact of an edit of many facts.")
@json_flag
def log(folder: Path, *, facts: bool, as_json: bool) -> None:
    """List the edits in the model of FOLDER, the oldest first."""
    from lmedit.edits.model_folders import read_log

    head = read_log(folder)
    if as_json:
        say(as_json_text(head))
        return
    say(f"base  {head['base']['name']} {head['base']['digest'][:12]}, {head['number_type']}")
    for edit in head["edits"]:
        say(f"{edit['id'][:12]}  {edit.get('method')}: {fact_line(edit)}")
        for request in edit.get("requests", []) if facts else []:
            say(f"  {fact_line({'request': request})}")
    if head.get("gate"):
        from lmedit.actions.gate import gate_text

        say(f"gate  {gate_text(head['gate'])}")


@click.command()
@click.argument("folder", type=FOLDER)
@click.option(
    "--recipe",
    type=FOLDER,
    metavar="FILE.toml",
    help="Also check that the model is what this recipe describes.",
)
@gate_flags
def verify(folder: Path, recipe: Path | None, **of_gate: Any) -> None:
    """Check that the weights in FOLDER are, to the bit, the base plus the edits of its ledger.

    With --gate, or if the recipe has a gate, the model is also measured against its base.
    """
    from lmedit.edits.model_folders import open_folder, read_log, verify_folder
    from lmedit.models.quiet import quiet_hub

    chosen = _recipe(recipe)
    limits = gate_of(chosen, recipe, **of_gate)
    quiet_hub()
    read_log(folder)
    edited = open_folder(str(folder), device="cpu")
    if chosen:
        chosen.check_base(edited)
        chosen.check_result(edited)
    count = len(edited.ledger.entries)
    digest = verify_folder(edited)
    say(f"{folder}: {edited.base['name']} ({digest[:12]}) with {count} edit(s), to the bit")
    if limits is not None:
        from lmedit.actions.gate import gate_text

        measured = through_gate(edited, limits, str(folder)).gate
        say(f"gate  {gate_text(measured or {})}")


def _tell_missing(
    edited: EditedModel, patches: Sequence[Path], found: Sequence[tuple[Update, dict[str, Any]]]
) -> None:
    """Print a note for each edit that was computed with edits that the model does not hold."""
    from lmedit.edits.ledger import update_digest
    from lmedit.edits.model_folders import missing_for

    earlier: list[str] = []
    for path, (update, facts) in zip(patches, found, strict=True):
        missing = missing_for(edited, facts, earlier)
        if missing:
            names = ", ".join(id_[:12] for id_ in missing)
            note(
                f"{path} was computed with edit {names} in the model, which is not there; its "
                "answers may differ"
            )
        earlier.append(update_digest(update))


def _check_rounding(
    edited: EditedModel, patches: Sequence[Path], updates: Sequence[Update], *, force: bool
) -> None:
    """Print, for each edit, the share that survives rounding to the model's number type.

    Raises `RequestError` if it is less than `LEAST_KEPT`, unless *force*.
    """
    from lmedit.errors import RequestError
    from lmedit.metrics.weights import survival
    from lmedit.models.rounding import LEAST_KEPT

    for path, update in zip(patches, updates, strict=True):
        left = min(survival(edited.lm, update).values(), default=1.0)
        what = f"{100 * left:.1f} % of it survives rounding to {edited.lm.dtype_name}"
        if left < LEAST_KEPT and not force:
            raise RequestError(
                f"{path}: only {what}; lmedit export keeps all of it, --force applies the rest"
            )
        if left < TELLING:
            note(f"{path}: {what}; lmedit export keeps all of it")
