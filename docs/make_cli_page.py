"""Write `docs/reference/cli.md` from the commands' own help: `python docs/make_cli_page.py`.

A test compares the page with the output of `page`, so the page stays up to date.
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

Data goes to stdout, progress and notes to stderr. The exit code is 0 for success, 1 for an error
that one line explains, and 2 for wrong usage.

| variable | meaning |
|---|---|
| `LMEDIT_MODEL` | the default of `-m`; if unset: `demo`, the embedded model, without network |
| `LMEDIT_CACHE` | the folder of prepared statistics and trained editors |
| `LMEDIT_PLUGINS` | the visible methods; unset: all; empty: none; or a list with commas |

Name a fact in one of two ways:

- `--prompt '{} is in the city of' --subject 'The Eiffel Tower' --target Rome`. A complete prompt
  works too, if the subject stands in it exactly once.
- `--fact FILE`, with the same as JSON: `prompt`, `subject`, `target_new`, `target_true`. `-` reads
  stdin.

`docs/make_cli_page.py` makes this page from the commands' own help.
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
