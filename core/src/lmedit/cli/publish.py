"""`lmedit publish`: a folder with edits that is ready for the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmedit.cli.common import (
    model_flags,
    note,
    refuse_unused,
    say,
)
from lmedit.cli.export import check_rank_used
from lmedit.cli.parameter_types import COUNT, OUT, PLACE
from lmedit.cli.patch_files import look_at, open_with

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.actions.card import Card
    from lmedit.cli.patch_files import Given


@click.command()
@click.argument("patches", nargs=-1, required=True, metavar="PATCH...", type=PLACE)
@click.option("-O", "--out", type=OUT, required=True, help="The folder to write.")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["adapter", "model"]),
    default="adapter",
    show_default=True,
    help="A LoRA adapter beside the base, or the whole edited model.",
)
@click.option("--base-id", metavar="OWNER/NAME", help="The id of the base at the hub.")
@click.option(
    "--licence",
    metavar="NAME",
    help="The licence of the base, such as apache-2.0.  [default: as the base's source says]",
)
@click.option("--rank", type=COUNT, help="For adapters: cut dense changes to this rank.")
@click.option("--push", metavar="OWNER/NAME", help="Upload the folder to this repository too.")
@click.option("--public", is_flag=True, help="With --push: a new repository is public.")
@model_flags
def publish(
    patches: tuple[Path, ...],
    out: Path,
    kind: str,
    base_id: str | None,
    licence: str | None,
    rank: int | None,
    push: str | None,
    model: str,
    device: str,
    dtype: str,
    *,
    public: bool,
    download: bool,
) -> None:
    """Write a folder for the hub: the edits of the patches, and a card (README.md).

    The card lists the facts, the methods, the digests, what was measured, the licence of the base,
    and how to take the edits out. No path of this machine is in the folder. Read the card before
    you share it.

    Nothing is uploaded without --push. Then huggingface_hub uploads the folder with your own login.
    """
    from lmedit.actions.card import check_hub_id, check_licence
    from lmedit.actions.publish import check_login, push_folder

    if kind == "model":
        refuse_unused("is for adapters", "--rank")
    if push is None:
        refuse_unused("is for --push", "--public")
    else:
        check_hub_id(push, "--push")
        check_login()
    if base_id is not None:
        check_hub_id(base_id, "--base-id")
    licence = check_licence(licence) if licence else None
    given = look_at(model, patches)
    how = {"device": device, "dtype": dtype, "download": download}
    card = _write(kind, given, out, how, (base_id, licence, rank))
    say(f"{out}: {len(card.facts)} edit(s) of {card.base} as {_article(kind)}, with README.md")
    if card.licence is None:
        note("the licence of the base is unknown; name it: --licence NAME")
    if card.base_id is None:
        note("the card does not link to the base; name its id at the hub: --base-id OWNER/NAME")
    if push is not None:
        say(f"pushed: {push_folder(out, push, public=public)}")


def _article(kind: str) -> str:
    return "an adapter" if kind == "adapter" else "a model"


def _write(
    kind: str,
    given: Given,
    out: Path,
    how: dict[str, object],
    told: tuple[str | None, str | None, int | None],
) -> Card:
    """Write the folder; *told* are the base's id, the licence and the rank."""
    from lmedit.actions.publish import publish_adapter, publish_model
    from lmedit.edits.adapter_proof import check_peft
    from lmedit.edits.lora import check_adapter_place
    from lmedit.edits.model_folders import check_model_place

    base_id, licence, rank = told
    if kind == "adapter":
        check_peft()
        check_adapter_place(out)
        opened, found = open_with(given, **how)
        check_rank_used(rank, [update for update, _ in found])
        return publish_adapter(opened, found, out, base_id=base_id, licence=licence, rank=rank)
    check_model_place(out)
    opened, found = open_with(given, **how)
    return publish_model(opened, found, out, base_id=base_id, licence=licence)
