"""`lmedit compare METHOD...`: edit, score, revert, for every case and method."""

from __future__ import annotations

import json
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from lmedit.cli.common import flags, json_flag, method_flags, model_flags, note, plan_of
from lmedit.cli.workers import worker_processes
from lmedit.compare.measures import GROUPS, HELDOUT_LINES

PAPER_TABLES = ("rome-table4", "rome-table1")
"""The keys of `compare.paper_tables.PRESETS`, which --help does not import."""
LIMIT = 100

case_flags = flags(
    click.option("--cases", "cases_name",
                 help="A world, a file, a pulled set or a hub id; see docs/reference/cases.md.  "
                 "[default: demo]"),
    click.option("--limit", type=click.IntRange(1),
                 help=f"Only the first N cases.  [default: {LIMIT}]"),
    click.option("--run", "folder", type=click.Path(path_type=Path),
                 help="Where results are written; default: runs/DATE-TIME."),
    click.option("--workers", type=click.IntRange(1), default=1, show_default=True,
                 help="Processes that share the work, each with a model of its own."),
    click.option("--preset", type=click.Choice(PAPER_TABLES),
                 help="A table of the ROME paper: its cases, how many, its metrics, and its "
                 "figures with_paper_rows where the model is one of the paper's."),
)  # fmt: skip

metric_flags = flags(
    click.option("--metrics", multiple=True, type=click.Choice([*GROUPS, "all"]),
                 help="Measure this too; repeatable. "
                 + "; ".join(f"{name}: {what}" for name, what in GROUPS.items()) + "."),
    click.option("--heldout", type=click.Path(path_type=Path),
                 help="Text for the metrics of health, a line a document; default: the model's."),
    click.option("--heldout-lines", type=click.IntRange(1), default=HELDOUT_LINES,
                 show_default=True, help="How many of its lines."),
    click.option("--references", type=click.Path(path_type=Path),
                 help="Folder with attribute_snippets.json, tfidf_vocab.json and idf.npy, for RS "
                 "and essence."),
)  # fmt: skip

regime_flags = flags(
    click.option("--in-context", is_flag=True,
                 help="Add a baseline: the new fact as a sentence in front of each prompt, no "
                 "weight touched."),
    click.option("--random-layer", metavar="METHOD",
                 help="Add a baseline: METHOD at a layer drawn for each case."),
    click.option("--regime", type=click.Choice(["single", "batch", "sequential"]),
                 default="single", show_default=True,
                 help="One edit at a time; many computed on the base model; or one edit upon "
                 "another."),
    click.option("--sizes",
                 help="Batch and sequential: after how many edits to measure, as 1,10,100; "
                 "default: powers of ten, and all cases."),
    click.option("--collapse", type=click.FloatRange(min=1), default=10.0, show_default=True,
                 help="Batch and sequential: a model whose perplexity grew so many times has "
                 "collapsed."),
    click.option("--stop-on-collapse", is_flag=True, help="Edit a collapsed model no further."),
)  # fmt: skip


@click.command()
@click.argument("names", nargs=-1, metavar="METHOD...")
@case_flags
@metric_flags
@regime_flags
@model_flags
@method_flags
@json_flag
def compare(
    names: tuple[str, ...],
    folder: Path | None,
    workers: int,
    *,
    as_json: bool,
    **given: Any,
) -> None:
    """Compare methods on cases; no METHOD named: every installed one that works.

    Each case is edited and scored by itself; the weights are checked by hash.
    """
    from lmedit.actions.compare import Measuring, set_up_comparison, take_part
    from lmedit.storage.json_files import write_json

    given["methods"] = names
    plan = plan_of(given)
    measuring = Measuring(**given)
    folder = folder or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    comparing = set_up_comparison(plan, measuring, note)
    with worker_processes(workers, partial(take_part, plan, measuring, folder)):
        results = comparing(folder)
    write_json(folder / "results.json", results)
    _show(results, as_json=as_json)
    note(f"the model is BASE, checked by hash; results are in {folder}")


def _show(results: dict[str, Any], *, as_json: bool) -> None:
    from lmedit.compare.table import difference_lines, failures, retention, table, with_paper_rows

    if as_json:
        click.echo(json.dumps(results, indent=1, ensure_ascii=False))
    else:
        parts = [[table(with_paper_rows(results))], retention(results.get("curve", [])),
                 difference_lines(results["differences"])]  # fmt: skip
        click.echo("\n\n".join("\n".join(part) for part in parts if part))
    for line in failures(results["rows"]):
        note(line)
    for name, count in results["trained_on"].items():
        if count:
            note(f"{name} was trained on {count} of these {results['cases']['n']} cases")
    if results.get("published"):
        note(f"published: {results['published']['source']}")
