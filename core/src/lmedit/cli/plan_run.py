"""`lmedit plan-run METHOD...`: a file that says what to compare, for several machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import note, plan_of, refuse_unused
from lmedit.cli.compare import check_seeds, way_flags, what_flags, which_flags
from lmedit.cli.parameter_types import OUT

if TYPE_CHECKING:
    from pathlib import Path


@click.command("plan-run")
@click.argument("names", nargs=-1, required=True, metavar="METHOD...")
@click.option("-O", "--out", type=OUT, required=True, help="The plan file to write.")
@which_flags
@way_flags
@what_flags
def plan_run(
    names: tuple[str, ...],
    out: Path,
    *,
    isolate: bool | None,
    seeds: tuple[int, ...],
    **given: Any,
) -> None:
    """Write a plan of a comparison for several machines. The options are those of lmedit compare.

    It checks the options and the cases, and loads no weights. Then lmedit work does one shard of
    the plan on each machine, and lmedit merge makes one run of them.
    """
    from lmedit.actions.compare import Measuring
    from lmedit.actions.planned import plan_run as plan_it
    from lmedit.actions.planned import read_planned
    from lmedit.cli.alone import share
    from lmedit.errors import RunError
    from lmedit.storage.json_files import write_json

    check_seeds(seeds)
    for flag in ("--edit-timeout", "--prepare-timeout"):
        variable = f"LMEDIT_{flag.strip('-').upper().replace('-', '_')}"
        refuse_unused(f"is not part of a plan: set {variable} where lmedit work runs", flag)
    if out.exists():
        try:
            read_planned(out)
        except RunError:
            raise click.UsageError(f"{out} exists and is not a plan; choose another -O") from None
    given["methods"] = names
    plan = plan_of(given)
    measuring = Measuring(**given)
    together = share(plan, measuring, isolate=isolate).together(plan)
    planned, most = plan_it(plan, measuring, seeds, together, isolate=isolate, tell=note)
    write_json(out, planned.as_json())
    note(
        f"the plan is in {out}; at most {most} shards have work: lmedit work {out} --shard 1/{most}"
    )
