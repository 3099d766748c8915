"""`lmedit prepare METHOD`: compute statistics or train an editor, once per model."""

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

    from lmedit.executors.engine import Engine
    from lmedit.plan import Plan


@click.command()
@click.argument("method")
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
    method: str,
    limit: int | None,
    layers: str | None,
    plot: Path | None,
    *,
    as_json: bool,
    **given: Any,
) -> None:
    """Prepare METHOD for a model. You can stop it and start it again; the result is cached.

    Options that only an edit uses are refused. A preset or an options file may hold them. With
    several workers, or with --executor, each of --layers has a pass of its own.
    """
    from lmedit.actions.preparing import Preparing, fill_cache, load_preparing
    from lmedit.charts import files
    from lmedit.plan import set_up

    refuse_unused("limits the hooks of an edit, and nothing is edited", "--edit-timeout")
    if plot is not None:
        files.check_ending(plot)
    given["methods"] = (method,)
    plan, engine = plan_of(given), _engine(given, layers)
    each = _each(limit, layers)
    _check_flags(plan, layers, plot)
    setup = set_up(plan, note, more=each)
    (loaded,) = setup.methods
    if loaded.method.prepares_on is None:
        note(f"{method} needs no preparation")
    several = [setup.options(loaded, **more) for more in each]
    preparing = Preparing(setup, tuple(several))
    if engine is not None:
        fill_cache(preparing, engine, partial(load_preparing, plan, each, preparing.home), note)
    found: list[dict[str, Any]] = []
    for options in several:
        if not options.needs_preparation:
            note(f"{method} needs no preparation with these options")
        editor = setup.editor(loaded, options, train=True, sweep=several)
        path = str(preparing.path(options))
        found.append({"method": method, "path": path, "facts": dict(editor.prepared.facts)})
    if plot is not None:
        _draw(found[0]["facts"], plot)
    if as_json:
        say(as_json_text(found if layers else found[0]))
        return
    say("\n\n".join(_text(**one) for one in found if one["facts"]))


def _engine(given: dict[str, Any], layers: str | None) -> Engine | None:
    """Who prepares each layer by itself; None: this process prepares all in one pass."""
    divided = given["executor"] is not None or given["workers"][1] > 1
    if layers is None and given["workers"][1] > 1:
        raise click.UsageError("--workers divides --layers; name several layers, or remove it")
    engine = engine_of(given)
    return engine if divided else None


def _check_flags(plan: Plan, layers: str | None, plot: Path | None) -> None:
    """Refuse options and flags of *plan* that would not be used; no model is loaded."""
    (method,), keys = plan.methods, {key for key, _ in plan.options}
    if layers is not None and keys & {"layer", f"{method}.layer"}:
        raise click.UsageError("-o layer is not used beside --layers; remove one of them")
    if plan.corpora and keys & {"checkpoint", f"{method}.checkpoint"}:
        raise click.UsageError("--corpus is not used, since checkpoint names an editor; remove it")
    (loaded,) = plan.load_methods()
    check_prepared_options(plan, loaded)
    if loaded.method.prepares_on == "cases":
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
