"""`lmedit edit best`, and `lmedit edit METHOD --budget`: the first edit within a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.ability_flags import include_flag
from lmedit.cli.common import (
    as_json_text,
    fact_values,
    flags,
    note,
    plan_of,
    refuse_unused,
    say,
)
from lmedit.cli.parameter_types import PLACE

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.actions.best import Budget
    from lmedit.compare.limits import Limit
    from lmedit.plan import Plan

BEST = "best"
"""As METHOD of `lmedit edit`: the first of several methods that passes."""
OF_BUDGET = ("--budget", "--heldout", "--include-path")
"""The flags of a budget."""
METHODS = "methods"
"""The option of `edit best` that names the methods to try."""

budget_flags = flags(
    click.option(
        "--budget",
        metavar="LIMITS",
        help="Limits of the edit, such as 'KL<0.02, NS>0.95, ppl<1.05'. Terms are the columns of "
        "lmedit compare; ppl is perplexity after / before.  [default of best: KL<=0.5, ppl<=2]",
    ),
    click.option(
        "--heldout",
        type=PLACE,
        metavar="FILE",
        help="With a budget: the text for KL and perplexity.  [default: the world's, else plain "
        "sentences]",
    ),
    include_flag,
)


def check_out(out: Path | None) -> None:
    """Raise `ArtifactError` if no patch can be written to *out*; no model is loaded."""
    from lmedit.storage.ours import check_place

    if out is not None:
        check_place(out)


def edit_within(
    method: str,
    given: dict[str, Any],
    budget: str | None,
    files: tuple[str | None, Path | None, Path | None],
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Try METHOD, or for ``best`` several methods, and write the first edit within *budget*.

    Raises `LimitError` if none is; then nothing is written.
    """
    limits = _limits(method, given, budget)
    values = fact_values(given)
    plan = plan_of(given)
    from lmedit.actions.best import Search
    from lmedit.actions.best_text import best_text
    from lmedit.actions.choices import choices_of
    from lmedit.actions.given_fact import request_from_fact
    from lmedit.errors import LimitError
    from lmedit.plan import set_up

    within = _budget(limits, files, plan)
    setup = set_up(plan, note)
    request = request_from_fact(setup.lm, values, note)
    search = Search(setup.lm, request, within)
    choices, left_out = choices_of(setup)
    result = search.result(search.run(choices), left_out, out)
    say(as_json_text(result) if as_json else best_text(result))
    if result["patch"] is None:
        raise LimitError(f"{result['refused']}; no patch is written")
    if not as_json:
        note(f"the model is BASE; the edit is in {result['patch']}")


def _budget(
    limits: tuple[Limit, ...], files: tuple[str | None, Path | None, Path | None], plan: Plan
) -> Budget:
    """The budget of *limits*, with the files of --near, --heldout and --include-path."""
    from lmedit.actions.best import Budget
    from lmedit.actions.gauge import tasks_for
    from lmedit.actions.probes import check_near
    from lmedit.early import check_readable

    near, heldout, include = files
    check_readable("--heldout", heldout)
    if near is not None:
        check_near(near)
    tasks = tasks_for(limits, include, download=plan.download)
    if tasks is None:
        refuse_unused("is for limits on abilities.TASK", "--include-path")
    return Budget(limits, near, heldout, plan.drawn_from, tasks)


def _limits(method: str, given: dict[str, Any], budget: str | None) -> tuple[Limit, ...]:
    """The limits of *budget*; *given* gets the methods to try."""
    from lmedit.compare.limits import parse_limits

    refuse_unused("has no use beside a budget", "--force")
    given["methods"] = (method,) if method != BEST else _methods(given)
    if method != BEST and any(key == METHODS for key, _ in given["pairs"]):
        raise click.UsageError("-o methods is for lmedit edit best; remove it")
    return parse_limits(budget, "--budget") if budget is not None else ()


def _methods(given: dict[str, Any]) -> tuple[str, ...]:
    """Remove ``-o methods`` from *given*; return the methods that it names, each once."""
    found: tuple[str, ...] = ()
    pairs = []
    for key, value in given["pairs"]:
        if key != METHODS:
            pairs.append((key, value))
            continue
        found = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
        if not found:
            raise click.UsageError("-o methods names no method; write -o methods rome,ft")
    given["pairs"] = tuple(pairs)
    return found
