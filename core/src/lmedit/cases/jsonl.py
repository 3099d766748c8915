"""A user's own fact as a `Case`: one JSON object per line; see `docs/reference/cases.md`."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from lmedit.cases.fields import name_of, need_text, optional_texts, template
from lmedit.types import Case, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS = frozenset(
    {"id", "subject", "prompt", "target_new", "target_true", "paraphrases", "neighbours"}
)


def case_from(record: Mapping[str, Any], index: int) -> Case:
    """The case of *record*; the prompt has {} for the subject, or the subject itself, once.

    A record without a subject is a question and its answer; its prompt has no {}.
    """
    for name in record:
        if name not in KEYS:
            near = get_close_matches(name, KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(KEYS))}"
            raise ValueError(f"field {name!r} is unknown; {hint}")
    prompt, subject = need_text(record, "prompt"), None
    if record.get("subject") is not None:
        prompt, subject = template(prompt, need_text(record, "subject"), "prompt")
    true = record.get("target_true")
    return Case(
        id=name_of(record, "id", index),
        request=Request(
            prompt=prompt,
            subject=subject,
            target_new=need_text(record, "target_new"),
            target_true=None if true is None else need_text(record, "target_true"),
        ),
        paraphrases=optional_texts(record, "paraphrases"),
        neighbours=optional_texts(record, "neighbours"),
    )
