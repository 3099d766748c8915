"""`lmedit prepare METHOD...`: compute statistics or train an editor, once per model."""

from __future__ import annotations

from functools import partial
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
    refuse_unused,
    say,
)
from lmedit.cli.engine_flags import engine_flags, engine_of
from lmedit.cli.foreign import isolate_flag, runs_method
from lmedit.cli.parameter_types import COUNT, OUT
from lmedit.cli.unused import check_prepared_options

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.actions.preparing import Preparing
    from lmedit.executors.engine import Engine
    from lmedit.plan import Plan


@click.command()
@click.argument("methods", nargs=-1, required=True, metavar="METHOD...")
@asking_flags
@model_flags
@method_flags
@isolate_flag
@click.option("--limit", type=COUNT, help="Train on at most this many cases.")
@click.option(
    "--layers", help="Prepare each of these layers, for example 3,4,5; in one pass if possible."
)
@engine_flags
@click.option(
    "--plot",
    type=OUT,
    metavar="FILE",
    help="Draw the training curves into a .png, .svg or .html file.",
)
@json_flag
@runs_method
def prepare(
    methods: tuple[str, ...],
    limit: int | None,
    layers: str | None,
    plot: Path | None,
    *,
    as_json: bool,
    **given: Any,
) -> None:
    """Prepare each METHOD for a model. You can stop it and start it again; the result is cached.

    Options that only an edit uses are refused. A preset or an options file may hold them. --limit
    and --layers are for the methods that have such an option. With several workers, or with
    --executor, each method and each of --layers has a pass of its own.
    """
    from lmedit.actions.preparing import Preparing, fill_cache, find_wanted, load_preparing
    from lmedit.charts import files
    from lmedit.plan import set_up

    refuse_unused("limits the hooks of an edit, and nothing is edited", "--edit-timeout")
    if plot is not None:
        files.check_ending(plot)
    methods = given["methods"] = tuple(dict.fromkeys(methods))
    plan = plan_of(given)
    engine = _engine(given, several=layers is not None or len(methods) > 1)
    each = _each(limit, layers)
    _check_flags(plan, layers, plot)
    setup = set_up(plan, note, more=each)
    preparing = Preparing(setup, find_wanted(setup, each))
    for loaded in setup.methods:
        if loaded.method.prepares_on is None:
            note(f"{loaded.name} needs no preparation")
    if engine is not None:
        fill_cache(preparing, engine, partial(load_preparing, plan, each, preparing.home), note)
    found = _editors(preparing)
    if plot is not None:
        _draw(found[0]["facts"], plot)
    if as_json:
        say(as_json_text(found if layers or len(methods) > 1 else found[0]))
        return
    say("\n\n".join(_text(**one) for one in found if one["facts"]))


def _editors(preparing: Preparing) -> list[dict[str, Any]]:
    """Prepare what the cache lacks, the layers of a method in one pass; the facts of each."""
    found: list[dict[str, Any]] = []
    for loaded, options in preparing.wanted:
        if not options.needs_preparation:
            note(f"{loaded.name} needs no preparation with these options")
        sweep = [other for method, other in preparing.wanted if method is loaded]
        editor = preparing.setup.editor(loaded, options, train=True, sweep=sweep)
        path = str(preparing.path(loaded, options))
        facts = dict(editor.prepared.facts)
        found.append({"method": loaded.name, "path": path, "facts": facts})
    return found


def _engine(given: dict[str, Any], *, several: bool) -> Engine | None:
    """Who makes each preparation by itself; None: this process makes all layers in one pass.

    *several* tells whether there is something to divide.
    """
    workers = given["workers"][1]
    if workers > 1 and not several:
        raise click.UsageError(
            "--workers divides --layers and METHODs; name several of one of them, or remove it"
        )
    divided = given["executor"] is not None or workers > 1
    engine = engine_of(given)
    return engine if divided else None


def _check_flags(plan: Plan, layers: str | None, plot: Path | None) -> None:
    """Refuse options and flags of *plan* that would not be used; no model is loaded."""
    keys = {key for key, _ in plan.options}
    if layers is not None and keys & {"layer", *(f"{name}.layer" for name in plan.methods)}:
        raise click.UsageError("-o layer is not used beside --layers; remove one of them")
    if plan.corpora and all(keys & {"checkpoint", f"{name}.checkpoint"} for name in plan.methods):
        raise click.UsageError("--corpus is not used, since checkpoint names an editor; remove it")
    if plot is not None and len(plan.methods) > 1:
        raise click.UsageError("--plot draws the training of one method; name one METHOD")
    methods = plan.load_methods()
    for loaded in methods:
        check_prepared_options(plan, loaded)
    if any(loaded.method.prepares_on == "cases" for loaded in methods):
        return
    unused = [("--plot", plot is not None), ("--chat", plan.chat), ("--join", plan.join != "auto")]
    for flag, given in unused:
        if given:
            raise click.UsageError(f"{flag} is for methods that train on cases; remove it")


def _text(path: str, facts: dict[str, Any], **_: Any) -> str:
    """The facts of a preparation, one line each."""
    lines = [f"{name:<22} {value}" for name, value in facts.items() if name != "curve"]
    return "\n".join([*lines, f"{'kept in':<22} {path}"])


def _each(limit: int | None, layers: str | None) -> list[dict[str, int]]:
    """The options that --limit and --layers set, one dict for each layer."""
    once = {} if limit is None else {"limit": limit}
    if layers is None:
        return [once]
    try:
        return [once | {"layer": int(part)} for part in layers.split(",")]
    except ValueError:
        raise click.UsageError(f"--layers {layers!r}: give numbers, for example 3,4,5") from None


def _draw(facts: dict[str, Any], path: Path) -> None:
    from lmedit.charts import files
    from lmedit.errors import OptionError
    from lmedit.hyper.training import curves

    if "curve" not in facts:
        raise OptionError("there is no training curve, because nothing was trained; remove --plot")
    files.draw(curves(facts["curve"]), path)
    note(f"the curves are in {path}")
