"""`lmedit stats`: list, verify, export and import the stored second moments."""

from __future__ import annotations

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
from lmedit.cli.parameter_types import NUMBER, OUT, PLACE

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.stats import Statistics

COLUMNS = ("id", "model", "layer", "dimensions", "tokens", "documents", "corpus", "MB")


@click.group()
def stats() -> None:
    """List, verify, export and import second moments of keys, which `lmedit prepare` computes."""


@stats.command(name="list")
@json_flag
def list_(*, as_json: bool) -> None:
    """List the stored statistics. Use --corpus stats:ID to prepare a method on one of them."""
    from lmedit.compare.table import align
    from lmedit.stats import damaged_statistics, list_statistics

    for error in damaged_statistics():
        note(f"left out: {error}")
    found = [_row(one) for one in list_statistics()]
    if as_json:
        say(as_json_text(found))
        return
    if not found:
        note("no statistics are stored; lmedit prepare rome computes them")
        return
    lines = [COLUMNS, *([str(one[name]) for name in COLUMNS] for one in found)]
    say("\n".join(align(lines)))


@stats.command()
@click.argument("ids", nargs=-1, metavar="ID...")
@json_flag
def verify(ids: tuple[str, ...], *, as_json: bool) -> None:
    """Verify checksum, symmetry and condition number. Without ID, verify all stored statistics."""
    from lmedit.errors import ArtifactError
    from lmedit.stats import damaged_statistics, list_statistics, statistics_named

    results: list[dict[str, Any]] = []
    if not ids:
        for error in damaged_statistics():
            results.append({"id": None, "condition": None, "error": str(error)})
            note(str(error))
    for one in [statistics_named(name) for name in ids] if ids else list_statistics():
        told = {"id": _row(one)["id"], "condition": None, "error": None}
        try:
            told["condition"] = one.verify()
        except ArtifactError as error:
            told["error"] = str(error)
        results.append(told)
        if not as_json:
            say(f"{told['id']}  " + (told["error"] or f"ok, condition {told['condition']:.3g}"))
    if as_json:
        say(as_json_text(results))
    if any(told["error"] for told in results):
        raise click.exceptions.Exit(1)


@stats.command()
@click.argument("name", metavar="ID")
@click.option(
    "-O",
    "--out",
    type=OUT,
    required=True,
    help="A .safetensors file, or a .npz file in the format of the released ROME code.",
)
def export(name: str, out: Path) -> None:
    """Write the statistics ID to a file, for another machine."""
    from lmedit.stats import export_statistics, statistics_named

    export_statistics(statistics_named(name), out)
    note(f"the statistics are in {out}")


@stats.command(name="import")
@click.argument("file", type=PLACE)
@click.option("--layer", type=NUMBER, help="The layer of a .npz file.")
@model_flags
@json_flag
def import_(
    file: Path,
    layer: int | None,
    model: str,
    device: str,
    dtype: str,
    *,
    download: bool,
    as_json: bool,
) -> None:
    """Store the statistics of FILE: a file of `lmedit stats export`, or a released .npz file."""
    from lmedit.plan import Plan
    from lmedit.stats import import_statistics

    if layer is not None and file.suffix != ".npz":
        raise click.UsageError(f"--layer is for .npz files, and {file} is not one; remove --layer")
    lm = None
    if file.suffix != ".npz":
        flags = ("--model", "--device", "--dtype", "--download")
        refuse_unused("is for .npz files; this file names its model", *flags)
    elif layer is not None:
        lm = Plan(model=model, device=device, dtype=dtype, download=download).load_model()
        tell_notes(lm)
    one = import_statistics(file, lm, layer)
    say(as_json_text(_row(one)) if as_json else one.name)
    note(f"to prepare a method on it, give --corpus {one.name}")


def _row(one: Statistics) -> dict[str, Any]:
    facts = one.facts
    return {
        "id": one.name.partition(":")[2],
        "model": facts["base_name"],
        "base": facts["base"],
        "layer": facts["layer"],
        "parameter": facts["parameter"],
        "dimensions": facts["dimensions"],
        "tokens": facts["tokens"],
        "documents": facts["documents"],
        "corpus": facts["corpus"],
        "MB": round(one.path.stat().st_size / 1e6, 1),
        "path": str(one.path),
    }
