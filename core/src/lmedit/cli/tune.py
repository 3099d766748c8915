"""`lmedit tune METHOD`: find the options that suit a model, by trial edits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import (
    as_json_text,
    asking_flags,
    json_flag,
    method_flags,
    model_flags,
    note,
    plan_of,
    say,
)
from lmedit.cli.engine_flags import engine_flags, engine_of
from lmedit.cli.foreign import isolate_flag, new_run, runs_tasks
from lmedit.cli.only_flag import note_only, only_flag
from lmedit.cli.parameter_types import COUNT, OUT

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command()
@click.argument("method")
@click.option(
    "--cases",
    "cases_name",
    help="The facts to edit, with paraphrases and neighbours; see docs/reference/cases.md.  "
    "[default: the model's world, or demo]",
)
@click.option(
    "--limit",
    type=COUNT,
    default=36,
    show_default=True,
    help="How many cases to use. tune takes the last ones; compare takes the first.",
)
@only_flag
@click.option(
    "--run",
    "folder",
    type=OUT,
    help="The folder for single results; a second call continues there.  "
    "[default: runs/tune-DATE-TIME]",
)
@engine_flags
@click.option(
    "-O",
    "--out",
    type=OUT,
    help="The options file. Entries of other methods stay in it.  [default: METHOD-tuned.json]",
)
@click.option(
    "--budget",
    metavar="TIME",
    callback=lambda _, __, value: None if value is None else _seconds(value),
    help="Try only as many settings as fit into this time, for example 90s, 10m or 2h.",
)
@asking_flags
@model_flags
@method_flags
@isolate_flag
@json_flag
@runs_tasks
def tune(
    method: str,
    folder: Path | None,
    out: Path | None,
    budget: float | None,
    *,
    as_json: bool,
    **given: Any,
) -> None:
    """Find the best layer of METHOD for a model, and its other tunable options, by trial edits.

    Every setting edits a third of the facts; the best three settings edit all of them. The
    unedited model and the method at random layers are scored as controls. The best setting is
    written with its evidence; -o @FILE uses it. Causal tracing (lmedit locate rome --probe) shows
    where a model recalls a fact. It does not predict which layer edits best (Hase et al. 2023),
    so tune tries the layers.
    """
    from lmedit.actions.tune import set_up_tuning
    from lmedit.options import MODEL_KEY, parts_of, read_tuned
    from lmedit.storage.json_files import write_entries
    from lmedit.storage.locks import being_changed
    from lmedit.storage.ours import check_place

    given["methods"] = (method,)
    plan, engine = plan_of(given), engine_of(given)
    path = out or Path(f"{method}-tuned.json")
    check_place(path)
    tuning = set_up_tuning(plan, note).within(budget, engine.most, note)
    folder = folder or new_run("tune")
    entry = tuning(folder, click.get_current_context().obj, engine, note)
    parts = parts_of(plan.options)
    named = {MODEL_KEY: {"options": parts}} if parts else {}
    with being_changed(path):
        check_place(path)
        others = read_tuned(path) if path.exists() else {}
        write_entries(path, {**others, **named, method: entry})
    say(as_json_text(entry) if as_json else _text(entry))
    note_only(entry["evidence"])
    note(f"the options are in {path}; use them with -o @{path}")


UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
"""The units of a time, in seconds."""
LONGEST = 1e9
"""The longest time, in seconds."""


def _seconds(text: str) -> float:
    """A time such as 90s, 10m or 2h in seconds; a bare number is in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST:
        raise click.BadParameter(f"{text!r} is not a time; write for example 90s, 10m or 2h")
    return seconds


def _text(entry: Mapping[str, Any]) -> str:
    """The rows of the sweep, the controls, and the chosen setting."""
    from lmedit.compare.table import table

    evidence = entry["evidence"]
    rows = [
        {"method": _words(row["setting"]), **row} for row in [*evidence["heat"], *evidence["final"]]
    ]
    rows += [{"method": name, **row} for name, row in evidence["controls"].items()]
    return f"{table(rows)}\n\nbest: {_words(entry['options'])}"


def _words(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={json.dumps(value)}" for name, value in options.items())
