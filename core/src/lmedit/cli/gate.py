"""The flags of a gate, and the gate that they and a recipe describe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmedit.cli.ability_flags import include_flag
from lmedit.cli.common import flags, refuse_unused
from lmedit.cli.parameter_types import PLACE

if TYPE_CHECKING:
    from lmedit.actions.gate import Gate
    from lmedit.edits.model_folders import EditedModel
    from lmedit.edits.recipes import Recipe

gate_flags = flags(
    click.option(
        "--gate",
        metavar="LIMITS",
        help="Limits that the model must hold, such as 'KL<0.02, ppl<1.05, NS>0.95'. Terms are "
        "the columns of lmedit compare; ppl is perplexity after / before; abilities.TASK is "
        "edited - base on a task of the lm-evaluation-harness.",
    ),
    click.option(
        "--near",
        metavar="NAME|FILE",
        help="With a gate: neighbours, as cases or as a text file of prompts.  [default: the "
        "world's, else names from the model itself]",
    ),
    click.option(
        "--heldout",
        type=PLACE,
        metavar="FILE",
        help="With a gate: the text for KL and perplexity.  [default: the world's, else plain "
        "sentences]",
    ),
    include_flag,
)


def refuse_without_gate(recipe: Path | None, gate: str | None) -> None:
    """Raise `click.UsageError` for a flag of a gate where there is neither gate nor recipe."""
    if recipe is None and gate is None:
        refuse_unused("is for --gate", "--near", "--heldout", "--include-path")


def gate_of(
    recipe: Recipe | None,
    recipe_path: Path | None,
    *,
    gate: str | None,
    near: str | None,
    heldout: Path | None,
    include_path: Path | None = None,
    download: bool = False,
) -> Gate | None:
    """The gate of the flags and of the recipe; None if neither has one. No model is needed.

    The limits of both must hold. The files of the flags win. Raises `OptionError`, `CasesError`, or
    `click.UsageError` if a flag has no use.
    """
    from lmedit.actions.gate import Gate
    from lmedit.actions.gauge import tasks_for
    from lmedit.actions.probes import check_near
    from lmedit.compare.limits import parse_limits
    from lmedit.early import check_readable

    limits = [] if gate is None else [*parse_limits(gate, "--gate")]
    if recipe is not None and recipe_path is not None and recipe.gate:
        limits += parse_limits(recipe.gate, f"{recipe_path}: gate")
        theirs = recipe.beside(recipe_path, recipe.heldout)
        near = near or recipe.beside(recipe_path, recipe.near)
        heldout = heldout or (None if theirs is None else Path(theirs))
        include_path = include_path or recipe.tasks_beside(recipe_path)
    if not limits:
        refuse_unused("is for --gate", "--near", "--heldout", "--include-path")
        return None
    check_readable("--heldout", heldout)
    if near is not None:
        check_near(near)
    tasks = tasks_for(limits, include_path, download=download)
    if tasks is None:
        refuse_unused("is for limits on abilities.TASK", "--include-path")
    return Gate(tuple(limits), near, heldout, tasks)


def through_gate(edited: EditedModel, gate: Gate | None, what: str) -> EditedModel:
    """*edited* with what *gate* measured on it; unchanged without a gate.

    Raises `LimitError` if the gate fails; *what* is the culprit.
    """
    if gate is None:
        return edited
    from lmedit.actions.gate import check_gate, measure_gate

    result = measure_gate(edited, gate)
    check_gate(gate, result, what)
    return replace(edited, gate=result)
