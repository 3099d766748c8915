"""`lmedit reproduce RESULTS`: run a comparison again as its results file says, and compare both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmedit.cli.common import note, say
from lmedit.cli.parameter_types import OUT, PLACE

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("results", type=PLACE)
@click.option(
    "--run", "folder", type=OUT, help="The folder of the new run.  [default: runs/DATE-TIME]"
)
@click.pass_context
def reproduce(context: click.Context, results: Path, folder: Path | None) -> None:
    """Run again what RESULTS says, a results.json or the folder of a run.

    Other versions are named before the run starts. Another model, other cases or a missing method
    is an error. At the end the numbers of both runs are compared. The exit code is 1 if a score
    differs in its last shown digit or a row is missing. Times and memory are not compared.
    """
    from lmedit.actions.reproduce import (
        check_sources,
        compare_tables,
        plan_of_results,
        read_origin,
        tell_versions,
    )
    from lmedit.cli.compare import run_comparison

    old = read_origin(results)
    plan, measuring, seeds = plan_of_results(old)
    for line in tell_versions(old):
        note(line)
    check_sources(old, plan, measuring)
    new, place = run_comparison(plan, measuring, seeds, folder)
    note(f"the new results are in {place}")
    lines, same = compare_tables(old, new)
    say("\n".join(lines))
    if not same:
        context.exit(1)
