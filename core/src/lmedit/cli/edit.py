"""`lmedit edit METHOD FACT`: compute an edit, show before and after, write it as a patch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lmedit.cli.best import BEST, OF_BUDGET, budget_flags, check_out, edit_within
from lmedit.cli.common import (
    as_json_text,
    asking_flags,
    fact_flags,
    fact_of,
    fact_values,
    json_flag,
    method_flags,
    model_flags,
    note,
    plan_of,
    refuse_unused,
    say,
)
from lmedit.cli.foreign import isolate_flag, runs_method
from lmedit.cli.parameter_types import COUNT, OUT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


@click.command()
@click.argument("method")
@fact_flags
@click.option("-O", "--out", type=OUT, help="The patch file to write.")
@click.option(
    "--force",
    is_flag=True,
    help="Write the patch also if the edit did not take, damages the model, or is mostly lost "
    "by rounding.",
)
@click.option(
    "--near",
    metavar="NAME|FILE",
    help="Neighbours to look at before and after: cases, or a text file of prompts, one per line.  "
    "[default: the world's, else names from the model itself]",
)
@budget_flags
@click.option(
    "--facts",
    metavar="NAME|FILE",
    help="Edit all these facts with one change: cases, see docs/reference/cases.md.",
)
@click.option("--limit", type=COUNT, help="With --facts: use the first N facts.")
@asking_flags
@model_flags
@method_flags
@isolate_flag
@json_flag
@runs_method
def edit(
    method: str,
    out: Path | None,
    near: str | None,
    budget: str | None,
    heldout: Path | None,
    include_path: Path | None,
    facts: str | None,
    *,
    force: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Edit one fact with METHOD, show the model before and after, and write the edit as a patch.

    The model on disk is not changed; the patch holds the change. The command ends with a verdict:
    does the model now write the whole target? An edit that did not take, or that damages the
    model, is refused. Then no patch is written and the exit code is 1, unless --force is given.

    With --budget, the edit is tried beside the weights. It is written only if the model gives the
    answer after the prompt and all paraphrases, and all limits hold. METHOD best tries all
    methods, from cheap to dear, and takes the first that passes; -o methods rome,ft names some.

    With --facts, METHOD computes one change for many facts (memit, emmet, alphaedit, ...). If the
    model is a folder of `lmedit apply`, the method knows the earlier edits there.
    """
    check_out(out)
    if facts is not None:
        refuse_unused("is for one fact, and --facts names many", "--near", *OF_BUDGET)
        given["methods"] = (method,)
        _edit_many(facts, given, out, force=force, as_json=as_json)
        return
    refuse_unused("is for --facts", "--limit")
    if budget is not None or method == BEST:
        edit_within(method, given, budget, (near, heldout, include_path), out, as_json=as_json)
        return
    refuse_unused("is for --budget", *OF_BUDGET)
    given["methods"] = (method,)
    values = fact_values(given)
    plan = plan_of(given)
    if near is not None:
        from lmedit.actions.probes import check_near

        check_near(near)
    from lmedit.actions.edit import Looking, edit_one
    from lmedit.actions.edit_text import edit_text
    from lmedit.plan import set_up

    setup = set_up(plan, note)
    request = fact_of(setup, values)
    looking = Looking(setup.lm, request, near)
    _ = looking.before  # a model that knows the new answer is told before a long preparation
    (editor,) = setup.editors()
    result = edit_one(editor, request, out, force=force, looking=looking)
    _print(result, edit_text, as_json=as_json)


def _edit_many(
    facts: str, given: dict[str, Any], out: Path | None, *, force: bool, as_json: bool
) -> None:
    """One change for all facts of *facts*."""
    flags = ("prompt", "subject", "target", "target_true", "fact")
    if any(given.pop(flag) is not None for flag in flags):
        raise click.UsageError("give one fact, or --facts for many, not both")
    plan = plan_of(given | {"cases_name": facts})
    from lmedit.actions.earlier import earlier_edits
    from lmedit.actions.edit_many import edit_many, many_text, requests_of
    from lmedit.plan import set_up
    from lmedit.registry import check_joins

    setup = set_up(plan, note)
    for loaded in setup.methods:
        check_joins(loaded)
    requests = requests_of(plan.load_cases(), note)
    earlier = earlier_edits(setup.lm, note, [setup.options(each) for each in setup.methods])
    (editor,) = setup.editors()
    result = edit_many(editor, requests, out, earlier, force=force)
    _print(result, many_text, as_json=as_json)


def _print(result: Mapping[str, Any], text: Callable[[Any], str], *, as_json: bool) -> None:
    """Print *result*, and where the patch is. Raises `RequestError` if no patch was written."""
    from lmedit.errors import RequestError

    say(as_json_text(result) if as_json else text(result))
    if result["patch"] is None:
        raise RequestError(f"{result['refused']}; no patch is written without --force")
    if not as_json:
        if result["refused"]:
            note(f"--force: the patch is written, although {result['refused']}")
        note(f"the model is BASE; the edit is in {result['patch']}")
