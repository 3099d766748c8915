"""`lmedit check NAME|FILE`: test each law for a method on a model."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import as_json_text, json_flag, method_flags, model_flags, note, plan_of, say
from lmedit.cli.foreign import isolate_flag, runs_method

if TYPE_CHECKING:
    from lmedit.laws import Trial
    from lmedit.models import Lm
    from lmedit.plan import Setup
    from lmedit.types import Prepared, Request


@click.command()
@click.argument("method", metavar="METHOD|FILE.py")
@model_flags
@method_flags
@isolate_flag
@json_flag
@runs_method
def check(method: str, *, as_json: bool, **given: Any) -> None:
    """Test each law (docs/reference/hooks.md) for a method. The exit code is 1 if a law is broken.

    `check` computes ROME's statistics itself. Train MEND and KE with `lmedit prepare` first.
    """
    from lmedit.laws import Verdict, verdicts
    from lmedit.plan import set_up
    from lmedit.registry import load_file

    if method.endswith(".py"):
        given["plugins"] += (Path(method),)
        method = load_file(Path(method)).name
    given["methods"] = (method,)
    setup = set_up(plan_of(given), note)
    (loaded,) = setup.methods
    found: list[Verdict] = []
    for verdict in verdicts(_trial(setup)):
        found.append(verdict)
        if not as_json:
            say(_text(verdict))
    if as_json:
        say(as_json_text([asdict(verdict) for verdict in found]))
    broken = [str(verdict.law) for verdict in found if verdict.state != "pass"]
    if loaded.method.prepares_on == "cases":
        note(f"{loaded.name} was prepared before; check did not test its training")
    if broken:
        note(f"{loaded.name} on {setup.lm.name}: laws not kept: {', '.join(broken)}")
        raise click.exceptions.Exit(1)
    note(f"{loaded.name} on {setup.lm.name}: all laws are kept")


def _text(verdict: Any) -> str:
    reason = f"\n    {verdict.reason}" if verdict.reason else ""
    return f"{verdict.law}  {verdict.state:<9}  {verdict.says}{reason}"


def _trial(setup: Setup) -> Trial:
    from lmedit.laws import OTHER, REQUEST, THIRD, Trial
    from lmedit.pipeline import call_prepare
    from lmedit.storage.tensors import Checkpoint

    (loaded,) = setup.methods
    options = setup.options(loaded)

    def prepare() -> Prepared:
        if loaded.method.prepares_on == "cases":
            return setup.editor(loaded, options).prepared
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Checkpoint(Path(folder) / "state")
            return call_prepare(loaded, setup.lm, options, setup.material(loaded), checkpoint)

    facts = _facts(setup.lm) or (REQUEST, OTHER, THIRD)
    return Trial(loaded, setup.lm, options, prepare, loaded.name, *facts)


def _facts(lm: Lm) -> tuple[Request, Request, Request] | None:
    """Three facts that the world's model knows; None if the model is not a world's."""
    from lmedit.cases import load_cases
    from lmedit.models import worlds

    if lm.name not in worlds():
        return None
    one, other, third = load_cases(lm.name, 3).good
    return one.request, other.request, third.request
