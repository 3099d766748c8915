"""`lmedit abilities`: tasks of the lm-evaluation-harness before and after edits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.ability_flags import include_flag
from lmedit.cli.common import (
    as_json_text,
    json_flag,
    model_flags,
    note,
    refuse_unused,
    say,
    tell_notes,
)
from lmedit.cli.engine_flags import engine_flags, engine_of
from lmedit.cli.parameter_types import COUNT, NUMBER
from lmedit.cli.patch_files import look_at, open_with

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.edits.model_folders import EditedModel
    from lmedit.types import Update

    Source = tuple[str, dict[str, Any], dict[str, str]]
    """The arguments of `load_states` for the model: its name, `load_lm`'s arguments, its parts."""

ENDING = ".safetensors"


@click.command()
@click.argument("given", nargs=-1, required=True, metavar="MODEL|PATCH...")
@click.option(
    "--tasks", required=True, metavar="TASKS", help="Names of tasks with commas, as arc_easy,piqa."
)
@include_flag
@click.option("--limit", type=COUNT, help="Ask only the first N documents of each task.")
@click.option("--seed", type=NUMBER, default=0, help="Seed of the intervals.  [default: 0]")
@engine_flags
@model_flags
@json_flag
def abilities(
    given: tuple[str, ...],
    tasks: str,
    include_path: Path | None,
    limit: int | None,
    seed: int,
    model: str,
    *,
    as_json: bool,
    **how: Any,
) -> None:
    """Measure tasks of the lm-evaluation-harness on the base and on the edited model.

    MODEL is a model, or a folder with edits: then its base is measured too. With patches, each is
    measured on its base, and then all together. A difference has a 95 % interval, paired over the
    documents of the task. Nothing is written. Install lmedit[abilities] first. Workers share the
    base, the edited models and the model with all patches.
    """
    from lmedit.actions.abilities import (
        AbilityStates,
        abilities_text,
        load_states,
        measure_abilities,
    )
    from lmedit.metrics.ability_tasks import Wanted, check_include, load_tasks, tasks_in

    engine = engine_of(how)
    wanted = Wanted(tasks_in(tasks, "--tasks"), include_path, limit, how["download"])
    patches = _patches(given)
    check_include(include_path)
    load_tasks(wanted)
    opened, updates, source = _open(given, patches, model, how)
    states = AbilityStates(opened, list(updates.values()), wanted, quiet=engine.most > 1)
    there = replace(wanted, include=include_path and include_path.absolute())
    load = partial(load_states, *source, [path.absolute() for path in patches], there)
    found = measure_abilities(states, list(updates), load, engine, seed, note)
    say(as_json_text(found) if as_json else abilities_text(found))


def _patches(given: Sequence[str]) -> list[Path]:
    """The patches in *given*; empty if it names one model. Raises `click.UsageError`."""
    patches = [Path(text) for text in given if text.endswith(ENDING)]
    if patches and len(patches) < len(given):
        raise click.UsageError("give one MODEL, or patches; -m names the base of patches")
    if not patches and len(given) > 1:
        raise click.UsageError(f"{given[1]!r} is no patch file; give one MODEL, or patches")
    if len(set(patches)) < len(patches):
        raise click.UsageError("a patch is named twice; name each patch once")
    return patches


def _open(
    given: Sequence[str], patches: Sequence[Path], model: str, how: dict[str, Any]
) -> tuple[EditedModel, dict[str, Update], Source]:
    """The loaded model, the updates of *patches* by name, and how to load the model again."""
    from lmedit.models import check_files

    if patches:
        looked = look_at(model, patches)
        check_files(looked.model, download=how["download"], chat=False)
        opened, found = open_with(looked, **how)
        names = [path.stem for path in patches]
        shown = [n if names.count(n) == 1 else str(p) for n, p in zip(names, patches, strict=True)]
        updates = {name: update for name, (update, _) in zip(shown, found, strict=True)}
        return opened, updates, (looked.model, how, dict(looked.parts))
    refuse_unused("is for the base of patches, and a MODEL is given", "-m", "--model")
    from lmedit.edits.model_folders import open_folder
    from lmedit.models.quiet import quiet_hub

    check_files(given[0], download=how["download"], chat=False)
    quiet_hub()
    opened = open_folder(given[0], **how)
    tell_notes(opened.lm)
    return opened, {}, (given[0], how, {})
