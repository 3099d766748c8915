"""`lmedit methods`: list the installed methods, from package metadata alone."""

from __future__ import annotations

import click

from lmedit.cli.common import as_json_text, json_flag, note, say
from lmedit.cli.foreign import check_entries


@click.command()
@click.option("--check", is_flag=True, help="Also load each method, and show which ones fail.")
@json_flag
def methods(*, check: bool, as_json: bool) -> None:
    """List the installed methods: name, version, state, paper. No method is imported."""
    from lmedit import registry

    found = registry.entries()
    if check:
        found = check_entries(found)
    if as_json:
        say(as_json_text([entry.__dict__ for entry in found]))
        return
    for entry in found:
        named = entry.distribution in entry.reason
        why = entry.reason if named else f"{entry.distribution}: {entry.reason}"
        said = entry.paper if entry.state == "ok" else why
        say(f"{entry.name:<10} {entry.version:<8} {entry.state:<8} {said}")
    if not found:
        note("no method is installed; pip install lmedit-rome")
