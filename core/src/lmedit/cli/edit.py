"""`lmedit edit METHOD FACT`: compute an edit, show before and after, write it as a patch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lmedit.cli.common import (
    asking_flags,
    fact_flags,
    fact_of,
    fact_values,
    json_flag,
    method_flags,
    model_flags,
    note,
    plan_of,
)


@click.command()
@click.argument("method")
@fact_flags
@click.option("-O", "--out", type=click.Path(path_type=Path), help="The patch file to write.")
@click.option(
    "--force",
    is_flag=True,
    help="Write the patch also if the edit did not take, damages the model, or is mostly lost "
    "by rounding.",
)
@click.option(
    "--near",
    metavar="NAME|FILE",
    help="Neighbours to look at: cases, or a text file of prompts, one per line.  [default: "
    "the world's, else names from the model itself]",
)
@asking_flags
@model_flags
@method_flags
@json_flag
def edit(
    method: str, out: Path | None, near: str | None, *, force: bool, as_json: bool, **given: Any
) -> None:
    """Edit one fact with METHOD, show the model before and after, and write the edit as a patch.

    The model on disk is not changed; the patch holds the change. The command ends with a verdict:
    does the model now write the whole target? An edit that did not take, or that damages the
    model, is refused. Then no patch is written and the exit code is 1, unless --force is given.
    """
    given["methods"] = (method,)
    plan, values = plan_of(given), fact_values(given)
    from lmedit.actions.edit import edit_one
    from lmedit.actions.edit_text import edit_text
    from lmedit.errors import RequestError
    from lmedit.plan import set_up

    setup = set_up(plan, note)
    request = fact_of(setup, values)
    (editor,) = setup.editors()
    result = edit_one(editor, request, out, force=force, near=near)
    if as_json:
        click.echo(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        click.echo(edit_text(result))
    if result["patch"] is None:
        raise RequestError(f"{result['refused']}; no patch is written without --force")
    if not as_json:
        if result["refused"]:
            note(f"--force: the patch is written, although {result['refused']}")
        note(f"the model is BASE; the edit is in {result['patch']}")
