"""`lmedit cases list` and `lmedit cases pull NAME`: known sets of cases and their addresses."""

from __future__ import annotations

import click

from lmedit.cli.common import as_json_text, json_flag, note, say


@click.group()
def cases() -> None:
    """List the known sets of cases, and download one from its official address."""


@cases.command("list")
@json_flag
def list_(*, as_json: bool) -> None:
    """List the known sets: name, state, size, address. Nothing is downloaded."""
    from lmedit.cases import SOURCES, pulled_file

    sources = [(source, pulled_file(source.name).is_file()) for source in SOURCES.values()]
    if as_json:
        found = [{**source.__dict__, "present": present} for source, present in sources]
        say(as_json_text(found))
        return
    for source, present in sources:
        state = "present" if present else "hub" if source.hub else "-"
        size = "size unknown" if source.size is None else f"{source.size / 1e6:.1f} MB"
        say(f"{source.name:<25} {state:<8} {size:>12}  {source.url}")


@cases.command("pull")
@click.argument("name")
@json_flag
def pull(name: str, *, as_json: bool) -> None:
    """Download the set NAME into the cache. Then `--cases NAME` finds it.

    An interrupted download continues later, if the set's SHA-256 is known.
    """
    from lmedit.cases import pull_cases

    pulled = pull_cases(name)
    if as_json:
        say(as_json_text({**pulled.__dict__, "path": str(pulled.path)}))
    else:
        say(pulled.path)
    state = "verified" if pulled.verified else "not verified, because its digest is not known"
    note(f"{name}: {pulled.size} bytes, SHA-256 {pulled.sha256}: {state}")
