"""`lmedit export` and `lmedit import`: write edits as LoRA adapters, and read adapters as edits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmedit.cli.common import (
    COUNT,
    PLACE,
    model_flags,
    note,
    say,
    tell_notes,
)
from lmedit.cli.patch_files import base_for, parts_for, tell_forced

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = PLACE


@click.command()
@click.argument("patches", nargs=-1, required=True, metavar="PATCH...", type=FOLDER)
@click.option("-O", "--out", type=FOLDER, required=True, help="The adapter folder to write.")
@click.option("--rank", type=COUNT, help="Approximate dense changes with this rank.")
@model_flags
def export(
    patches: tuple[Path, ...],
    out: Path,
    rank: int | None,
    model: str,
    device: str,
    dtype: str,
    *,
    download: bool,
) -> None:
    """Write the edits of the patches as one LoRA adapter, which peft can load.

    Low-rank edits (rome, kn, mend, ke) are exact. For a dense edit (ft), the command prints the
    share that is lost. peft loads the adapter and compares it with the edited model. If the logits
    differ by more than rounding (0.001 of the largest logit), nothing is written and the exit code
    is 1.
    """
    from lmedit.edits.adapter_proof import check_peft, export_adapter
    from lmedit.edits.model_folders import open_folder, read_patches
    from lmedit.plan import quiet_hub
    from lmedit.types import Dense

    check_peft()
    quiet_hub()
    model = base_for(model, patches)
    parts = parts_for(patches)
    base = open_folder(model, device=device, dtype=dtype, download=download, parts=parts)
    tell_notes(base.lm)
    found = read_patches(base, patches)
    tell_forced([(path, facts) for path, (_, facts) in zip(patches, found, strict=True)])
    updates = [update for update, _ in found]
    deltas = [delta for update in updates for delta in update.deltas.values()]
    if rank is not None and not any(isinstance(delta, Dense) for delta in deltas):
        raise click.UsageError("--rank is for dense changes, and these have low rank; remove it")
    done = export_adapter(base.lm, updates, out, {"edits": [facts for _, facts in found]}, rank)
    if done.adapter.lost:
        note(f"{100 * done.adapter.lost:.2f} % of the change's energy is lost at rank {rank}")
    what = f"rank {done.adapter.rank}, largest difference of logits {done.difference:.2g}"
    say(f"{out}: {what}")


@click.command(name="import")
@click.argument("folder", type=FOLDER)
@click.option("-O", "--out", type=FOLDER, required=True, help="The patch file to write.")
@model_flags
def import_(
    folder: Path, out: Path, model: str, device: str, dtype: str, *, download: bool
) -> None:
    """Read a LoRA adapter and write it as a patch of the model.

    If peft is installed, it loads the adapter too. If its logits differ from those of the patch by
    more than rounding, nothing is written and the exit code is 1.
    """
    from lmedit.edits.adapter_proof import check_import
    from lmedit.edits.ledger import base_of
    from lmedit.edits.lora import read_adapter
    from lmedit.edits.patches import save_patch
    from lmedit.plan import Plan
    from lmedit.version import __version__

    lm = Plan(model=model, device=device, dtype=dtype, download=download).load_model()
    tell_notes(lm)
    update = read_adapter(lm, folder)
    if not check_import(lm, update, folder):
        note("peft is not installed, so the patch is not compared with the adapter")
    facts = {
        "lmedit": __version__,
        "method": "import",
        "version": None,
        "request": {},
        "adapter": folder.name,
        "model": base_of(lm, update),
    }
    save_patch(out, update, facts)
    note(f"{out} is a patch of {len(update.deltas)} matrices, read from {folder}")
