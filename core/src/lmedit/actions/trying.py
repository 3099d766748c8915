"""The base and the edited models side by side on prompts: the work of `lmedit try`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lmedit.actions.edit import top_tokens
from lmedit.actions.probes import probes_of
from lmedit.edits.ledger import applied
from lmedit.errors import RequestError
from lmedit.metrics.generate import greedy
from lmedit.types import Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lmedit.models import Lm
    from lmedit.types import Update

WRITES, WIDTH = 16, 28
"""How many tokens each model writes; the width of a column in characters."""
BASE, ALL = "base", "all"
"""The columns of the model without a patch, and of all patches together."""


def prompts_of(lm: Lm, facts: Sequence[Mapping[str, Any]], near: str | None) -> dict[str, str]:
    """The prompts of the patches' *facts*, with neighbours as `lmedit edit` chooses them, by kind.

    *lm* is without the edits. *near* is a file of neighbours, see `probes_of`.
    """
    found: dict[str, str] = {}
    for fact in facts:
        told = fact.get("request") or next(iter(fact.get("requests", [])), None)
        if told is None:
            continue
        request = Request.model_validate(told)
        mark = "" if not found else f" {len(found) + 1}"
        found[f"prompt{mark}"] = request.text
        prompts = probes_of(lm, request, near).prompts
        found |= {f"{kind}{mark and ' of' + mark}": text for kind, text in prompts.items()}
    return found


def look(lm: Lm, updates: Mapping[str, Update], prompt: str) -> list[dict[str, Any]]:
    """What *lm* writes after *prompt* and its top tokens: alone, with each update, with all.

    Afterwards *lm* is as before. Raises `RequestError` for a blank prompt or one that is too long.
    """
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


def columns_text(prompt: str, found: Sequence[Mapping[str, Any]]) -> str:
    """*found* by `look` as text: one column for each model."""
    rows = [[each["model"] for each in found], [" ".join(each["writes"].split()) for each in found]]
    for number in range(max(len(each["top"]) for each in found)):
        rows.append([_token(each["top"][number]) for each in found])
    marks = ["", "writes", "top", *[""] * len(rows)]
    lines = [
        f"{mark:<8}{''.join(_cells(row))}".rstrip() for mark, row in zip(marks, rows, strict=False)
    ]
    return "\n".join([f"prompt: {prompt}", *lines])


def _token(top: Mapping[str, Any]) -> str:
    return f"{top['token'].strip() or repr(top['token'])} {top['p']:.3f}"


def _cells(row: Sequence[str]) -> Iterator[str]:
    for text in row:
        short = text if len(text) < WIDTH else f"{text[: WIDTH - 4]}..."
        yield f"{short:<{WIDTH}}"
