"""`lmedit compare METHOD...`: edit, score, revert, for every case and method."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import click

from lmedit.cli.common import (
    editors_for,
    json_flag,
    load_methods,
    load_model,
    method_flags,
    model_flags,
    note,
)


@click.command()
@click.argument("names", nargs=-1, metavar="METHOD...")
@click.option(
    "--cases",
    "cases_name",
    default="demo",
    show_default=True,
    help="A world, a file, a pulled set or a hub id; see docs/cases.md.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Only the first N cases.",
)
@click.option(
    "--run",
    "folder",
    type=click.Path(path_type=Path),
    help="Where results are written; default: runs/DATE-TIME.",
)
@model_flags
@method_flags
@json_flag
def compare(
    names: tuple[str, ...], cases_name: str, limit: int, folder: Path | None, model: str,
    device: str, dtype: str, pairs: tuple[tuple[str, str], ...], plugins: tuple[Path, ...],
    seed: int, corpus: str | None, *, download: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare methods on cases; no METHOD named: every installed one that works.

    Each case is edited, scored and reverted; the weights are checked by hash after each.
    """
    from lmedit.artifacts import write_json
    from lmedit.cases import load_cases
    from lmedit.compare.run import compare as run
    from lmedit.compare.table import failures, table

    methods = load_methods(names, plugins)
    cases = load_cases(cases_name, limit, download=download)
    lm = load_model(model, device, dtype, download=download)
    editors = editors_for(lm, methods, pairs, seed=seed, corpus=corpus, download=download)
    folder = folder or Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    results = run(lm, cases, editors, folder, seed)
    write_json(folder / "results.json", results)
    click.echo(json.dumps(results, indent=1, ensure_ascii=False) if as_json
               else table(results["rows"]))  # fmt: skip
    for line in failures(results["rows"]):
        note(line)
    note(f"the model is BASE, checked by hash; results are in {folder}")
