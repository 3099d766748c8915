"""`lmedit try`: ask the base and the edited model side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmedit.cli.common import (
    as_json_text,
    json_flag,
    model_flags,
    note,
    say,
)
from lmedit.cli.patch_files import base_for, open_with

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ENDING = ".safetensors"


@click.command(name="try")
@click.argument("given", nargs=-1, required=True, metavar="PATCH... [PROMPT]...")
@click.option(
    "--near",
    metavar="NAME|FILE",
    help="Neighbours to ask: cases, or a text file of prompts, one per line.  "
    "[default: as lmedit edit chooses them]",
)
@model_flags
@json_flag
def try_(
    given: tuple[str, ...],
    near: str | None,
    model: str,
    device: str,
    dtype: str,
    *,
    download: bool,
    as_json: bool,
) -> None:
    """Show the base and the edited model side by side: greedy text and the top 5 tokens.

    Each patch has a column of its own; with several patches, the last column has all of them.
    Without a PROMPT, the command asks the facts of the patches and their neighbours. Then it reads
    prompts from stdin, one per line, until the input ends. Nothing is written.
    """
    patches, prompts = _split(given)
    if near is not None:
        if prompts:
            raise click.UsageError("--near is for the facts of the patches; remove the prompts")
        from lmedit.actions.probes import check_near

        check_near(near)
    from lmedit.actions.trying import columns_text, look, prompts_of

    model = base_for(model, patches)
    opened, found = open_with(patches, model, device=device, dtype=dtype, download=download)
    names = [path.stem if _alone(path, patches) else str(path) for path in patches]
    updates = {name: update for name, (update, _) in zip(names, found, strict=True)}
    asked: Iterable[str] = prompts
    if not prompts:
        own = prompts_of(opened.lm, [facts for _, facts in found], near)
        asked = _and_typed(own.values())
    answers = []
    for prompt in asked:
        columns = look(opened.lm, updates, prompt)
        answers.append({"prompt": prompt, "models": columns})
        if not as_json:
            say(columns_text(prompt, columns))
    if as_json:
        say(as_json_text(answers))


def _split(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The patches and the prompts in *given*. Raises `click.UsageError`."""
    patches: list[Path] = []
    prompts: list[str] = []
    for text in given:
        if not prompts and (text.endswith(ENDING) or (len(text) < 256 and Path(text).is_file())):
            patches.append(Path(text))
        else:
            prompts.append(text)
    if not patches:
        raise click.UsageError(f"{given[0]!r} is no patch file; name a patch before the prompts")
    if len(set(patches)) < len(patches):
        raise click.UsageError("a patch is named twice; name each patch once")
    return patches, prompts


def _alone(path: Path, patches: Sequence[Path]) -> bool:
    """Whether no other patch has the name of *path*."""
    return sum(other.stem == path.stem for other in patches) == 1


def _and_typed(first: Iterable[str]) -> Iterator[str]:
    """*first*, then the lines of stdin that are not blank. A terminal shows a mark for each."""
    yield from first
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            note("prompt (Ctrl-D ends):")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
