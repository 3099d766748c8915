"""`lmedit export` and `lmedit import`: write edits as LoRA adapters, and read adapters as edits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import (
    model_flags,
    note,
    refuse_unused,
    say,
    tell_notes,
)
from lmedit.cli.parameter_types import COUNT, OUT, PLACE
from lmedit.cli.patch_files import look_at, open_with

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lmedit.edits.gguf_files import BaseFile
    from lmedit.models import Lm
    from lmedit.types import Update

FOLDER = PLACE
GGUF = ".gguf"
TYPES = ("F16", "F32", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""The number types in which a changed matrix of a GGUF file can be stored."""


@click.command()
@click.argument("patches", nargs=-1, required=True, metavar="PATCH...", type=FOLDER)
@click.option("-O", "--out", type=OUT, required=True, help="The folder or file to write.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["peft", "gguf-lora", "gguf"]),
    default="peft",
    show_default=True,
    help="An adapter for peft, an adapter for llama.cpp and Ollama, or a whole GGUF model.",
)
@click.option("--rank", type=COUNT, help="Approximate dense changes with this rank.")
@click.option(
    "--base",
    type=FOLDER,
    metavar="FILE.gguf",
    help="For GGUF: the file of the base.  [default: the file of -m]",
)
@click.option(
    "--type",
    "kind",
    type=click.Choice(TYPES),
    default="F16",
    show_default=True,
    help="With --format gguf: the number type of the changed matrices.",
)
@click.option("--prove", is_flag=True, help="For GGUF: fail if llama.cpp cannot try the result.")
@model_flags
def export(
    patches: tuple[Path, ...],
    out: Path,
    form: str,
    rank: int | None,
    base: Path | None,
    kind: str,
    model: str,
    device: str,
    dtype: str,
    *,
    prove: bool,
    download: bool,
) -> None:
    """Write the edits of the patches as one adapter, or as a GGUF model.

    Low-rank edits (rome, kn, mend, ke) are exact. For a dense edit (ft), the command prints the
    share that is lost. peft loads the adapter and compares it with the edited model. If the logits
    differ by more than rounding (0.001 of the largest logit), nothing is written and the exit code
    is 1.

    A GGUF model is its base's file with the changed matrices. All other tensors are copied byte for
    byte. If llama.cpp is installed (lmedit[llamacpp]), it runs the result. Its probabilities are
    compared with those of the edited model.
    """
    _check_flags(form)
    _check_out(form, out)
    given = look_at(model, patches)
    file = _base_file(base, given.model, form)
    if prove:
        from lmedit.edits.gguf_export import check_prover

        check_prover(file)
    if form == "peft":
        from lmedit.edits.adapter_proof import check_peft

        check_peft()
    opened, found = open_with(given, device=device, dtype=dtype, download=download)
    updates, facts = [update for update, _ in found], {"edits": [facts for _, facts in found]}
    check_rank_used(rank, updates)
    if form == "peft":
        _write_peft(opened.lm, updates, out, facts, rank)
    else:
        _write_gguf(opened.lm, updates, out, facts, form=form, base=file, rank=rank, kind=kind)


def _check_flags(form: str) -> None:
    """Raise `click.UsageError` for a flag of another format."""
    if form == "peft":
        refuse_unused("is for --format gguf-lora and gguf", "--base", "--prove")
    if form == "gguf":
        refuse_unused("is for adapters", "--rank")
    else:
        refuse_unused("is for --format gguf", "--type")


def _check_out(form: str, out: Path) -> None:
    """Check that *out* is free or holds a file of ours."""
    from lmedit.edits.lora import check_adapter_place
    from lmedit.storage.ours import check_place

    if form == "peft":
        check_adapter_place(out)
    else:
        check_place(out)


def _base_file(base: Path | None, model: str, form: str) -> BaseFile | None:
    """The GGUF file of the base: that of --base, else the file of -m; None if there is none."""
    if form == "peft":
        return None
    from lmedit.edits.gguf_export import find_base

    found = find_base(base, model)
    if found is None and form == "gguf":
        raise click.UsageError("--format gguf changes a GGUF file; give --base FILE.gguf")
    return found


def check_rank_used(rank: int | None, updates: Sequence[Update]) -> None:
    """Raise `click.UsageError` for a *rank* if no change of *updates* is dense."""
    from lmedit.types import Dense

    deltas = [delta for update in updates for delta in update.deltas.values()]
    if rank is not None and not any(isinstance(delta, Dense) for delta in deltas):
        raise click.UsageError("--rank is for dense changes, and these have low rank; remove it")


def _write_peft(
    lm: Lm, updates: Sequence[Update], out: Path, facts: dict[str, Any], rank: int | None
) -> None:
    from lmedit.edits.adapter_proof import export_adapter

    done = export_adapter(lm, updates, out, facts, rank)
    _tell_lost(done.adapter.lost, rank)
    what = f"rank {done.adapter.rank}, largest difference of logits {done.difference:.2g}"
    say(f"{out}: {what}")


def _write_gguf(
    lm: Lm,
    updates: Sequence[Update],
    out: Path,
    facts: dict[str, Any],
    *,
    form: str,
    base: BaseFile | None,
    rank: int | None,
    kind: str,
) -> None:
    """Write the edits for llama.cpp, and print the lines of an Ollama Modelfile."""
    from lmedit.edits.gguf_export import export_lora, export_model

    if form == "gguf-lora" or base is None:
        done = export_lora(lm, updates, out, facts, base=base, rank=rank)
        _tell_lost(done.lost, rank)
        say(f"{out}: GGUF adapter of rank {done.rank} for {lm.name}")
        lines = [f"FROM {base.path if base else 'BASE.gguf'}", f"ADAPTER {out}"]
    else:
        done = export_model(lm, updates, out, facts, base=base, kind=kind)
        say(f"{out}: GGUF model of {len(done.kept)} changed tensors")
        for name, share in done.kept.items():
            say(f"  {name}: {100 * share:.1f} % of the edit is kept")
        lines = [f"FROM {out}"]
    if done.agreement:
        say(done.agreement.text)
    else:
        missing = "give --base FILE.gguf" if base is None else "pip install 'lmedit[llamacpp]'"
        note(f"not tried in llama.cpp; {missing}")
    say("\n".join(["Modelfile for Ollama:", *(f"  {line}" for line in lines)]))


def _tell_lost(lost: float, rank: int | None) -> None:
    if lost:
        note(f"{100 * lost:.2f} % of the change's energy is lost at rank {rank}")


@click.command(name="import")
@click.argument("folder", type=FOLDER)
@click.option("-O", "--out", type=OUT, required=True, help="The patch file to write.")
@model_flags
def import_(
    folder: Path, out: Path, model: str, device: str, dtype: str, *, download: bool
) -> None:
    """Read a LoRA adapter of peft (a folder) or of llama.cpp (FILE.gguf) as a patch of the model.

    If peft is installed, it loads the adapter too. If its logits differ from those of the patch by
    more than rounding, nothing is written and the exit code is 1.
    """
    from lmedit.edits.adapter_proof import check_import
    from lmedit.edits.gguf_export import import_lora
    from lmedit.edits.ledger import base_of
    from lmedit.edits.lora import read_adapter
    from lmedit.edits.patches import save_patch
    from lmedit.plan import Plan
    from lmedit.storage.ours import check_place
    from lmedit.version import __version__

    check_place(out)
    lm = Plan(model=model, device=device, dtype=dtype, download=download).load_model()
    tell_notes(lm)
    if folder.suffix == GGUF:
        update = import_lora(lm, folder)
    elif not check_import(lm, update := read_adapter(lm, folder), folder):
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
