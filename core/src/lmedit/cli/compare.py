"""`lmedit compare METHOD...`: for every case and method, edit, score and revert."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.ability_flags import ability_flags
from lmedit.cli.common import (
    as_json_text,
    asking_flags,
    flags,
    json_flag,
    method_flags,
    model_flags,
    note,
    plan_of,
    refuse_unused,
    say,
)
from lmedit.cli.engine_flags import engine_flags, engine_of
from lmedit.cli.only_flag import note_only, only_flag
from lmedit.cli.parameter_types import COUNT, OUT, PLACE, NumberType
from lmedit.compare.measures import COLLAPSE, GROUPS, HELDOUT_LINES
from lmedit.executors.engine import ALONE

if TYPE_CHECKING:
    from lmedit.actions.compare import Measuring
    from lmedit.executors.engine import Engine
    from lmedit.plan import Plan

PAPER_TABLES = ("rome-table4", "rome-table1")
"""The keys of `compare.paper_tables.PRESETS`; `--help` does not import that module."""
LIMIT = 100

which_flags = flags(
    click.option(
        "--cases",
        "cases_name",
        help="A world, a file, a pulled set or a hub id; see docs/reference/cases.md.  "
        "[default: the model's world, or demo]",
    ),
    click.option("--limit", type=COUNT, help=f"Use only the first N cases.  [default: {LIMIT}]"),
    only_flag,
)

run_flags = flags(
    click.option(
        "--run",
        "folder",
        type=OUT,
        help="The folder for the results.  [default: runs/DATE-TIME]",
    ),
    engine_flags,
)

way_flags = flags(
    click.option(
        "--isolate/--no-isolate",
        default=None,
        help="Give each method a process and a fresh model of its own, or none.  [default: only "
        "methods of other projects; with observers, each]",
    ),
    click.option(
        "--preset",
        type=click.Choice(PAPER_TABLES),
        help="Repeat a table of the ROME paper: its cases, their number and its metrics. "
        "The paper's figures are printed too if the model is one of the paper's.",
    ),
)

case_flags = flags(which_flags, run_flags, way_flags)

metric_flags = flags(
    click.option(
        "--metrics",
        multiple=True,
        type=click.Choice([*GROUPS, "all"]),
        help="Measure also this group; repeatable. "
        + "; ".join(f"{name}: {what}" for name, what in GROUPS.items())
        + ".",
    ),
    click.option(
        "--wild-prompt",
        type=click.Choice(["question", "qa", "chat"]),
        help="How --metrics wild asks: the prompt alone, an instruction with question and "
        "answer, or the tokenizer's own chat template.  [default: question]",
    ),
    click.option(
        "--heldout",
        type=PLACE,
        help="A text file for the health metrics, one document per line; default: the "
        "model's text.",
    ),
    click.option(
        "--heldout-lines",
        type=COUNT,
        help=f"How many lines of the held-out text to use.  [default: {HELDOUT_LINES}]",
    ),
    click.option(
        "--references",
        type=PLACE,
        help="A folder with attribute_snippets.json, tfidf_vocab.json and idf.npy, for RS "
        "and essence.",
    ),
)

regime_flags = flags(
    click.option(
        "--in-context",
        is_flag=False,
        flag_value="own",
        multiple=True,
        type=click.Choice(["own", "retrieve"]),
        help="Add a baseline that changes no weight; own: it puts the new fact as a sentence "
        "before each prompt; retrieve: it puts the facts of all cases that fit the prompt best "
        "(BM25).  [own if no value follows]",
    ),
    click.option(
        "--random-layer",
        metavar="METHOD",
        help="Add a baseline: METHOD at a random layer for each case.",
    ),
    click.option(
        "--regime",
        type=click.Choice(["single", "batch", "sequential", "batched"]),
        default="single",
        show_default=True,
        help="single: one edit at a time; batch: compute many edits on the base model; "
        "sequential: compute each edit on the edited model; batched: compute --batch facts at a "
        "time on the edited model. Methods with a joint update make one change of them.",
    ),
    click.option("--batch", type=COUNT, help="With --regime batched: facts at a time."),
    click.option(
        "--sizes",
        help="For all regimes but single: measure after these numbers of edits, for "
        "example 1,10,100.  [default: powers of ten, or multiples of --batch, and all cases]",
    ),
    click.option(
        "--collapse",
        type=NumberType(1, 10**9, whole=False),
        help="For all regimes but single: a model has collapsed if its perplexity grew by "
        f"this factor.  [default: {COLLAPSE:g}]",
    ),
    click.option("--stop-on-collapse", is_flag=True, help="Stop editing a collapsed model."),
    click.option(
        "--seeds",
        callback=lambda _, __, value: read_seeds(value),
        metavar="N,N,...",
        help="Run everything for each of these seeds, and report means and spread. A seed decides "
        "contexts, samples, and the order of edits in one model (0: that of the file).",
    ),
)


def read_seeds(text: str | None) -> tuple[int, ...]:
    """The seeds in *text*; empty without it. Raises `click.UsageError` if they are not seeds."""
    if text is None:
        return ()
    seeds = [
        int(part) if part.strip().isascii() and part.strip().isdigit() else -1
        for part in text.split(",")
    ]
    if min(seeds) < 0 or max(seeds) >= 2**31 or len(set(seeds)) != len(seeds) or len(seeds) < 2:
        raise click.UsageError(
            f"--seeds {text!r} names no two different seeds; give whole numbers, as 0,1,2"
        )
    return tuple(seeds)


what_flags = flags(
    metric_flags, ability_flags, regime_flags, asking_flags, model_flags, method_flags
)
"""What a comparison measures, and with what; the flags of cases and of the run are apart."""


def check_seeds(seeds: tuple[int, ...]) -> None:
    """Raise `click.UsageError` if both *seeds* and --seed are given."""
    if seeds:
        refuse_unused("and --seeds name the seed twice", "--seed")


@click.command()
@click.argument("names", nargs=-1, metavar="METHOD...")
@case_flags
@what_flags
@json_flag
def compare(
    names: tuple[str, ...],
    folder: Path | None,
    *,
    isolate: bool | None,
    seeds: tuple[int, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Compare methods on cases. Without METHOD, compare every installed method that works.

    Each case is edited, scored and reverted on its own. Hashes prove that the weights are restored.
    """
    from lmedit.actions.compare import Measuring

    check_seeds(seeds)
    given["methods"] = names
    plan, engine = plan_of(given), engine_of(given)
    measuring = Measuring(**given)
    check_chain(measuring, engine)
    results, place = run_comparison(plan, measuring, seeds, folder, engine, isolate=isolate)
    show_results(results, as_json=as_json)
    note(f"the model is BASE, checked by hash; results are in {place}")


def check_chain(measuring: Measuring, engine: Engine) -> None:
    """Edits that pile up are a chain. Only processes of this machine can share it."""
    if measuring.regime != "single" and engine.name not in {"local", "processes"}:
        raise click.UsageError(
            f"--executor {engine.name} needs edits that do not pile up; give --regime single, or "
            "--workers N without --executor"
        )


def run_comparison(
    plan: Plan,
    measuring: Measuring,
    seeds: tuple[int, ...],
    folder: Path | None,
    engine: Engine = ALONE,
    *,
    isolate: bool | None = None,
) -> tuple[dict[str, Any], Path]:
    """Compare, write `results.json`, and return the results and the folder of the run."""
    from lmedit.actions.reproduce import origin
    from lmedit.cli.alone import compare_seeds, compare_shared, share
    from lmedit.storage.atomic import new_folder
    from lmedit.storage.json_files import write_json

    sharing = share(plan, measuring, isolate=isolate)

    def folder_of() -> Path:
        name = datetime.now().strftime("%Y%m%d-%H%M%S")
        return folder or new_folder(Path("runs"), name)

    task = (plan, measuring, sharing, folder_of, engine)
    found, place = compare_seeds(*task, seeds) if seeds else compare_shared(*task)
    results = {**found.finish(), "made_by": origin(plan, measuring, seeds)}
    write_json(place / "results.json", results)
    return results, place


def show_results(results: dict[str, Any], *, as_json: bool) -> None:
    """Print *results* on stdout, and what the table cannot tell on stderr."""
    from lmedit.compare.claims import claim_lines
    from lmedit.compare.table import (
        ability_lines,
        collapse_lines,
        difference_lines,
        failures,
        retention_lines,
        seed_lines,
        several_lines,
        table,
        unsound_lines,
        with_paper_rows,
    )

    if as_json:
        say(as_json_text(results))
    else:
        parts = [
            [table(with_paper_rows(results))],
            ability_lines(results["rows"]),
            retention_lines(results.get("curve", [])),
            collapse_lines(results.get("collapse_points", {})),
            seed_lines(results.get("seeds", ())),
            difference_lines(results["differences"]),
            claim_lines(results["claims"]),
        ]
        say("\n\n".join("\n".join(part) for part in parts if part))
    for line in [*failures(results["rows"]), *unsound_lines(results["rows"])]:
        note(line)
    note_only(results["cases"])
    for line in several_lines(results.get("several_edits", {})):
        note(line)
    for name, count in results["trained_on"].items():
        if count:
            note(f"{name} was trained on {count} of these {results['cases']['n']} cases")
    if results.get("published"):
        note(f"published: {results['published']['source']}")
