"""Write `docs/reference/cli.md` from the commands' own help: `python docs/make_cli_page.py`.

The tests compare the page with what this gives, so the page cannot drift.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.testing import CliRunner

from lmedit.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = """# The command line

Data goes to stdout, progress and notes to stderr. Exit codes: 0 done, 1 an error that one line
explains, 2 usage. `-m` defaults to the embedded model `demo`, so everything here runs offline;
`LMEDIT_MODEL` changes the default, `LMEDIT_CACHE` the place of prepared statistics, and
`LMEDIT_PLUGINS` which methods are visible (unset: all; empty: none; a comma list: those).

A fact is `--prompt '{} is in the city of' --subject 'The Eiffel Tower' --target Rome`, or
`--fact FILE` with the same as JSON (`prompt`, `subject`, `target_new`, `target_true`; `-` reads
stdin). A prompt that is written out in full is fine too, as long as the subject stands in it once.

This page is made by `docs/make_cli_page.py` from the commands' own help.
"""


def page() -> str:
    """The whole page."""
    runner = CliRunner()
    parts = [HEAD]
    for names in commands(main):
        text = runner.invoke(main, [*names, "--help"], prog_name="lmedit", terminal_width=90)
        title = f"{'#' * (len(names) + 1)} lmedit {' '.join(names)}"
        parts.append(f"{title}\n\n```text\n{text.output.strip()}\n```\n")
    return "\n".join(parts)


def commands(group: click.Group, *before: str) -> Iterator[tuple[str, ...]]:
    """The names that lead to each command, a group's own commands after it."""
    for name in group.list_commands(click.Context(group)):
        yield (*before, name)
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)


if __name__ == "__main__":
    (Path(__file__).parent / "reference" / "cli.md").write_text(page(), encoding="utf-8")
