"""`lmedit work PLAN --shard 2/3`: do one shard of a planned comparison in a folder of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import note
from lmedit.cli.compare import check_chain, show_results
from lmedit.cli.engine_flags import engine_flags, engine_of
from lmedit.cli.parameter_types import OUT, PLACE

if TYPE_CHECKING:
    from lmedit.actions.planned import Planned
    from lmedit.cases.shards import Shard
    from lmedit.compare.comparison import Compared
    from lmedit.executors.engine import Engine


@click.command()
@click.argument("plan", type=PLACE)
@click.option(
    "--shard",
    "text",
    metavar="NUMBER/COUNT",
    help="Which part to do, as 2/3.  [default: that of the run, or everything]",
)
@click.option(
    "--run",
    "folder",
    type=OUT,
    help="The folder for the results.  [default: runs/PLAN-NUMBER-of-COUNT, or the run itself]",
)
@engine_flags
def work(plan: Path, text: str | None, folder: Path | None, **given: Any) -> None:
    """Do a shard of PLAN, a file of lmedit plan-run, or the folder of a run to continue.

    A shard that was stopped continues where it was. Without a shard, everything that is left is
    done, and the table is printed.
    """
    from lmedit.actions.planned import begin_shard, end_shard, read_planned, shard_in, working
    from lmedit.actions.reproduce import origin
    from lmedit.cases.shards import Shard
    from lmedit.storage.json_files import write_json

    planned, engine = read_planned(plan), engine_of(given)
    check_chain(planned.measuring, engine)
    text = text or (shard_in(plan) if plan.is_dir() else None)
    shard = Shard.read(text or "1/1", planned.plan.methods)
    planned.check_cases()
    if folder is None:
        own = plan.is_dir() and text == shard_in(plan)
        folder = plan if own else Path("runs") / _name(plan, shard)
    with working(folder):
        begin_shard(folder, planned, shard)
        found = _compare(planned, shard, folder, engine)
        count = end_shard(folder, shard)
        if shard.of == 1:
            made = origin(planned.plan, planned.measuring, planned.seeds)
            results = {**found.finish(), "made_by": made}
            write_json(folder / "results.json", results)
            show_results(results, as_json=False)
    name = "everything" if shard.of == 1 else f"shard {shard}"
    note(f"{name} is finished: {count} results are in {folder}")


def _name(plan: Path, shard: Shard) -> str:
    stem = plan.name if plan.is_dir() else plan.stem
    return stem if shard.of == 1 else f"{stem}-{shard.number}-of-{shard.of}"


def _compare(planned: Planned, shard: Shard, folder: Path, engine: Engine) -> Compared:
    """Do the tasks of *shard* in *folder*."""
    from dataclasses import replace

    from lmedit.cli.alone import compare_seeds, compare_shared, share

    plan, measuring = replace(planned.plan, shard=shard), planned.measuring
    sharing = share(plan, measuring, isolate=planned.isolate)
    task = (plan, measuring, sharing, partial(_same, folder), engine)
    seeds = planned.seeds
    return (compare_seeds(*task, seeds) if seeds else compare_shared(*task))[0]


def _same(folder: Path) -> Path:
    return folder
