"""`lmedit edit best`, and `lmedit edit METHOD --budget`: the first edit within a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.common import (
    PLACE,
    as_json_text,
    fact_values,
    flags,
    note,
    plan_of,
    refuse_unused,
    say,
)

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit.compare.limits import Limit

BEST = "best"
"""As METHOD of `lmedit edit`: the first of several methods that passes."""
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
    near: str | None,
    heldout: Path | None,
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
    from lmedit.actions.best import Budget, Search
    from lmedit.actions.best_text import best_text
    from lmedit.actions.choices import choices_of
    from lmedit.actions.given_fact import request_from_fact
    from lmedit.early import check_readable
    from lmedit.errors import LimitError
    from lmedit.plan import set_up

    check_readable("--heldout", heldout)
    if near is not None:
        from lmedit.actions.probes import check_near

        check_near(near)
    setup = set_up(plan, note)
    request = request_from_fact(setup.lm, values, note)
    search = Search(setup.lm, request, Budget(limits, near, heldout, plan.drawn_from))
    choices, left_out = choices_of(setup)
    result = search.result(search.run(choices), left_out, out)
    say(as_json_text(result) if as_json else best_text(result))
    if result["patch"] is None:
        raise LimitError(f"{result['refused']}; no patch is written")
    if not as_json:
        note(f"the model is BASE; the edit is in {result['patch']}")


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
