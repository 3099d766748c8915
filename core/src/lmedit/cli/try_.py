"""`lmedit try`: ask the base and the edited model side by side."""

from __future__ import annotations

import sys
from itertools import chain
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
from lmedit.cli.patch_files import look_at, open_with

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from lmedit.models import Lm
    from lmedit.models.chat import Chat

ENDING = ".safetensors"


@click.command(name="try")
@click.argument("given", nargs=-1, required=True, metavar="PATCH... [PROMPT]...")
@click.option(
    "--near",
    metavar="NAME|FILE",
    help="Neighbours to ask: cases, or a text file of prompts, one per line.  "
    "[default: as lmedit edit chooses them]",
)
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Ask each prompt through the tokenizer's chat template, or as it is.  "
    "[default: as the patch was made]",
)
@click.option("--system", metavar="TEXT", help="With --chat: the system prompt.")
@model_flags
@json_flag
def try_(
    given: tuple[str, ...],
    near: str | None,
    chat: bool | None,
    system: str | None,
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
    if system is not None and not chat:
        raise click.UsageError("--system is for a chat; give --chat too, or remove --system")
    from lmedit.actions.trying import Question, columns_text, look, questions_of
    from lmedit.models import check_files

    looked = look_at(model, patches)
    check_files(looked.model, download=download, chat=bool(chat))
    opened, found = open_with(looked, device=device, dtype=dtype, download=download)
    names = [path.stem if _alone(path, patches) else str(path) for path in patches]
    updates = {name: update for name, (update, _) in zip(names, found, strict=True)}
    facts = [facts for _, facts in found]
    chats = _chats(opened.lm, facts, system, chat=chat)
    own = [] if prompts else questions_of(opened.lm, facts, near, chats)
    typed = prompts or _read_typed()
    answers = []
    for question in chain(own, (Question(text, chats[0]) for text in typed)):
        columns = look(opened.lm, updates, question)
        told = None if question.chat is None else {"system": question.chat.system}
        answers.append({"prompt": question.prompt, "chat": told, "models": columns})
        if not as_json:
            say(columns_text(question, columns))
    if as_json:
        say(as_json_text(answers))


def _chats(
    lm: Lm, facts: Sequence[Mapping[str, Any]], system: str | None, *, chat: bool | None
) -> list[Chat | None]:
    """The chat for the facts of each patch: as it was made, or as the user says.

    Raises `click.UsageError` if typed prompts could be asked in several ways.
    """
    from lmedit.actions.trying import chats_of
    from lmedit.models.chat import chat_of

    if chat is not None:
        return [chat_of(lm.tokenizer, system, lm.name) if chat else None] * len(facts)
    found = chats_of(lm, facts)
    if len(set(found)) > 1:
        raise click.UsageError(
            "the patches were made with different chats; give --chat, with --system TEXT if there "
            "was one, or --no-chat"
        )
    if found[0] is not None:
        note("asked through the chat template, as the patch was made; --no-chat asks plainly")
    return found


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


def _read_typed() -> Iterator[str]:
    """The lines of stdin that are not blank. A terminal shows a mark for each."""
    terminal = sys.stdin.isatty()
    while True:
        if terminal:
            note("prompt (Ctrl-D ends):")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
