"""Options of methods that a command does not use: it refuses them. One rule for every command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Collection

    from lmedit.plan import Plan
    from lmedit.registry import LoadedMethod


def typed_options(plan: Plan, loaded: LoadedMethod) -> list[tuple[str, str]]:
    """The options of *loaded* that the user typed one by one: as typed, and the option's name.

    Those of a preset or of an options file are not among them.
    """
    given = [(f"-o {key}", key.removeprefix(f"{loaded.name}.")) for key, _ in plan.options]
    given += [("--seed", "seed")] if plan.seed is not None else []
    given += [("--compute", "compute")] if plan.compute is not None else []
    fields = loaded.method.options.model_fields
    return [(typed, name) for typed, name in given if name in fields]


def refuse_options(plan: Plan, loaded: LoadedMethod, used: Collection[str], why: str) -> None:
    """Raise `click.UsageError` for a typed option that is not among *used*.

    *why* is the end of the sentence: what the option does not do, and where it belongs.
    """
    for typed, name in typed_options(plan, loaded):
        if name not in used:
            raise click.UsageError(f"{typed} {why}")


def check_prepared_options(plan: Plan, loaded: LoadedMethod) -> None:
    """Refuse options that do not change what *loaded* prepares."""
    options = loaded.method.options
    if loaded.method.prepares_on is not None:
        refuse_options(
            plan,
            loaded,
            {*options.prepares, *options.prepares_too},
            f"does not change what {loaded.name} prepares; remove it here, and give it to lmedit "
            "edit",
        )


def check_locating_options(plan: Plan, loaded: LoadedMethod, *, probe: bool) -> None:
    """Refuse options and flags that locating, or with *probe* probing, does not use.

    Where a preparation is needed, its options are used too.
    """
    from lmedit.pipeline import locates_unprepared

    options, name = loaded.method.options, loaded.name
    if options.locates is None:
        return
    used = {*options.locates, *options.probes, *(options.probes_too if probe else ())}
    if loaded.method.prepares_on is not None and not locates_unprepared(loaded, probe=probe):
        used |= {*options.prepares, *options.prepares_too}
    elif plan.corpora:
        raise click.UsageError(f"--corpus is not used: {name} needs no preparation here; remove it")
    if not probe:
        others = options.model_fields.keys() - ({*options.probes_too} - used)
        refuse_options(plan, loaded, others, "is used only with --probe; remove it")
    why = f"does not change where {name} would edit; remove it here, and give it to lmedit edit"
    refuse_options(plan, loaded, used, why)
