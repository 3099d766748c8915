"""`lmedit edit METHOD FACT`: compute an edit, show before and after, write it as a patch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lmedit.cli.common import (
    fact_flags,
    fact_of,
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
    help="Edit also where a model of half precision rounds most of the edit away.",
)
@model_flags
@method_flags
@json_flag
def edit(method: str, out: Path | None, *, force: bool, as_json: bool, **given: Any) -> None:
    """Edit one fact with METHOD, show the model before and after, write the edit as a patch.

    The model on disk is left alone; the patch holds the change.
    """
    from lmedit.actions.edit import edit_one
    from lmedit.actions.edit_text import edit_text
    from lmedit.plan import set_up

    given["methods"] = (method,)
    setup = set_up(plan_of(given), note)
    request = fact_of(setup.lm, **given)
    (editor,) = setup.editors()
    result = edit_one(editor, request, out, force=force)
    if as_json:
        click.echo(json.dumps(result, indent=1, ensure_ascii=False))
        return
    click.echo(edit_text(result))
    note(f"the model is BASE; the edit is in {result['patch']}")
