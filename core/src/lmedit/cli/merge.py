"""`lmedit merge RUN...`: runs of the same plan from several machines become one run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmedit.cli.common import note
from lmedit.cli.parameter_types import OUT, PLACE

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PLACE, metavar="RUN...")
@click.option(
    "-O",
    "--out",
    type=OUT,
    required=True,
    help="The folder of the merged run: a new one, or one that gets these runs too.",
)
def merge(runs: tuple[Path, ...], out: Path) -> None:
    """Merge each RUN, a folder of lmedit work, into one run. Their order does not matter.

    Unfinished runs can be merged too. Runs of other models, cases, options or versions are
    refused, and so are two different results of one task. lmedit work continues the merged run
    and prints the table.
    """
    from lmedit.actions.planned import list_unfinished
    from lmedit.compare.merge import merge_runs

    merged = merge_runs(runs, out)
    counts = ", ".join(f"{name} {count}" for name, count in merged.found.items()) or "none"
    note(f"the merged run is in {out}; results: {counts}")
    left = list_unfinished(merged.facts)
    if left == []:
        note(f"all shards are finished; lmedit work {out} prints the table")
    else:
        told = f"unfinished shards: {', '.join(left)}" if left else "no shard is finished"
        note(f"{told}; lmedit work {out} does the rest")
