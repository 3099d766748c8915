"""`lmedit play`: see edits in a browser; the page is the distribution lmedit-play."""

from __future__ import annotations

from typing import Any

import click

from lmedit.cli.common import asking_flags, method_flags, model_flags, note, plan_of
from lmedit.cli.foreign import leave_out_foreign
from lmedit.cli.parameter_types import NumberType

PORT = NumberType(0, 65535, whole=True)


@click.command()
@click.option(
    "--methods",
    metavar="NAME,...",
    help="The methods to offer, a list with commas.  [default: every method of this project]",
)
@click.option("--cases", "cases_name", metavar="NAME|FILE", help="Cases whose facts are offered.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=PORT, default=7860, show_default=True, help="0: any free port.")
@click.option(
    "--token",
    envvar="LMEDIT_TOKEN",
    show_envvar=True,
    help="A secret that every request must show; --host of another machine needs it.",
)
@click.option("--open/--no-open", "opens", default=False, help="Open the page in the browser.")
@asking_flags
@model_flags
@method_flags
def play(
    methods: str | None, host: str, port: float, token: str | None, *, opens: bool, **given: Any
) -> None:
    """Open the playground: a page that shows where a fact lies, edits it, and takes it back.

    The page works offline. It listens on this machine alone, unless --host names another address.
    Edits stay beside the weights, so the model never changes, and each tab has its own edits.
    Methods of other projects are offered only if you name them. Name those that you trust. Each of
    their acts runs in a process of its own.
    """
    from lmedit.storage.installed import load_play

    package = load_play()
    given["methods"] = tuple(part.strip() for part in (methods or "").split(",") if part.strip())
    plan, left_out = leave_out_foreign(plan_of(given))
    where = {"host": host, "port": int(port), "token": token}
    package.serve(plan, note, **where, opens=opens, left_out=left_out)
