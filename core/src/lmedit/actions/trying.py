"""The base and the edited models side by side on prompts: the work of `lmedit try`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmedit.actions.probes import probes_of
from lmedit.actions.top import top_tokens
from lmedit.edits.ledger import applied
from lmedit.errors import ArtifactError, RequestError
from lmedit.metrics.generate import greedy
from lmedit.models.chat import Chat, chat_of
from lmedit.types import Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmedit.models import Lm
    from lmedit.types import Update

WRITES, WIDTH = 16, 28
"""How many tokens each model writes; the width of a column in characters."""
BASE, ALL = "base", "all"
"""The columns of the model without a patch, and of all patches together."""


@dataclass(frozen=True)
class Question:
    """A prompt, and the chat through which it is asked; None: it is asked as it is."""

    prompt: str
    chat: Chat | None = None

    @property
    def text(self) -> str:
        """What the model reads. A blank prompt stays blank."""
        return self.chat.wrap(self.prompt) if self.chat and self.prompt.strip() else self.prompt


def chats_of(lm: Lm, facts: Sequence[Mapping[str, Any]]) -> list[Chat | None]:
    """The chat with which each patch of *facts* was made, with the template of *lm*; or None.

    Raises `ArtifactError` if the facts of a patch do not tell it, `ModelError` without a template.
    """
    found = []
    for fact in facts:
        asking = fact.get("asking") or {}
        chat = asking.get("chat") if isinstance(asking, dict) else asking
        system = chat.get("system") if isinstance(chat, dict) else None
        if not isinstance(chat, dict | None) or not isinstance(system, str | None):
            raise ArtifactError("a patch does not tell how its prompts were asked; make it again")
        found.append(None if chat is None else chat_of(lm.tokenizer, system, lm.name))
    return found


def questions_of(
    lm: Lm,
    facts: Sequence[Mapping[str, Any]],
    near: str | None,
    chats: Sequence[Chat | None],
) -> list[Question]:
    """The prompts of the patches' *facts*, with neighbours as `lmedit edit` chooses them.

    *lm* is without the edits, and *chats* has the chat of each patch. *near* is a file of
    neighbours, see `probes_of`.
    """
    found: list[Question] = []
    for fact, chat in zip(facts, chats, strict=True):
        lm.chat = chat
        told = fact.get("request") or next(iter(fact.get("requests", [])), None)
        if told is None:
            continue
        request = Request.model_validate(told)
        asked = [request.text, *probes_of(lm, request, near).prompts.values()]
        found += [Question(prompt, chat) for prompt in asked]
    return found


def look(lm: Lm, updates: Mapping[str, Update], question: Question) -> list[dict[str, Any]]:
    """What *lm* answers to *question* and its top tokens: alone, with each update, with all.

    Afterwards *lm* has the same weights as before. Raises `RequestError` for a blank prompt or one
    that is too long.
    """
    prompt, lm.chat = question.text, question.chat
    if not prompt.strip():
        raise RequestError("the prompt is blank; write a text")
    columns: dict[str, Sequence[Update]] = {BASE: ()}
    columns |= {name: (update,) for name, update in updates.items()}
    if len(updates) > 1:
        columns[ALL] = tuple(updates.values())
    found = []
    for name, chosen in columns.items():
        with ExitStack() as stack:
            for update in chosen:
                stack.enter_context(applied(lm, update))
            (text,) = greedy(lm, [prompt], WRITES)
            found.append({"model": name, "writes": text, "top": top_tokens(lm, prompt)})
    return found


def columns_text(question: Question, found: Sequence[Mapping[str, Any]]) -> str:
    """*found* by `look` as text: one column for each model."""
    rows = [[each["model"] for each in found], [" ".join(each["writes"].split()) for each in found]]
    for number in range(max(len(each["top"]) for each in found)):
        rows.append([_token(each["top"][number]) for each in found])
    marks = ["", "writes", "top", *[""] * len(rows)]
    lines = [
        f"{mark:<8}{''.join(_cells(row))}".rstrip() for mark, row in zip(marks, rows, strict=False)
    ]
    through = " (through the chat template)" if question.chat else ""
    return "\n".join([f"prompt: {question.prompt}{through}", *lines])


def _token(top: Mapping[str, Any]) -> str:
    return f"{top['token'].strip() or repr(top['token'])} {top['p']:.3f}"


def _cells(row: Sequence[str]) -> Iterator[str]:
    for text in row:
        short = text if len(text) < WIDTH else f"{text[: WIDTH - 4]}..."
        yield f"{short:<{WIDTH}}"
