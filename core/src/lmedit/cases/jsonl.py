"""A user's own fact as a `Case`: one JSON object per line; see `docs/reference/cases.md`."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

from lmedit.cases.fields import id_of, need_text, optional_texts, template
from lmedit.types import Case, Join, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS = frozenset(
    {
        "id",
        "subject",
        "prompt",
        "question",
        "target_new",
        "answer",
        "target_true",
        "paraphrases",
        "neighbours",
        "join",
    }
)
JOINS = get_args(Join)


def case_from(record: Mapping[str, Any], index: int) -> Case:
    """The case of *record*; the prompt has {} for the subject, or the subject itself, once.

    A record without a subject is a question and its answer; its prompt has no {}. It may name
    them so: "question" for the prompt and "answer" for the new target.
    """
    for name in record:
        if name not in KEYS:
            near = get_close_matches(name, KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(KEYS))}"
            raise ValueError(f"field {name!r} is unknown; {hint}")
    asked, answer = _either(record, "prompt", "question"), _either(record, "target_new", "answer")
    prompt, subject = need_text(record, asked), None
    if record.get("subject") is not None:
        prompt, subject = template(prompt, need_text(record, "subject"), asked)
    true, join = record.get("target_true"), record.get("join")
    if join is not None and join not in JOINS:
        raise ValueError(f"field 'join' is {join!r}; one of {', '.join(JOINS)} was expected")
    return Case(
        id=id_of(record, "id", index),
        request=Request(
            prompt=prompt,
            subject=subject,
            target_new=need_text(record, answer),
            target_true=None if true is None else need_text(record, "target_true"),
            join=join,
        ),
        paraphrases=optional_texts(record, "paraphrases"),
        neighbours=optional_texts(record, "neighbours"),
    )


def _either(record: Mapping[str, Any], name: str, other: str) -> str:
    """*name*, or *other* if the record uses that name. Raises `ValueError` if it has both."""
    if name in record and other in record:
        raise ValueError(f"fields {name!r} and {other!r} mean the same; write one of them")
    return other if other in record else name
