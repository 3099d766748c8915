"""What the base and the edited model answer to the same prompts, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmedit.actions.probes import ask_through_chat, probes_of
from lmedit.actions.top import top_of
from lmedit.errors import RequestError
from lmedit.metrics.generate import greedy
from lmedit.metrics.locality import kl, next_log_probabilities
from lmedit.replay.unmerged import under_one
from lmedit_play.sessions import seen_with

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmedit import Lm, Request, Update
    from lmedit.replay.unmerged import UnmergedEdits

WRITES = 16
"""How many tokens a model writes after each prompt, as `lmedit try` does."""


MOST_KNOWN = 512
"""How many prompts and facts of the unedited model are remembered."""


class Base:
    """What the unedited model answers; every tab asks it the same, so it is computed once."""

    def __init__(self, lm: Lm) -> None:
        self.lm = lm
        self._prompts: dict[str, dict[str, str]] = {}
        self._answers: dict[str, tuple[dict[str, Any], Tensor]] = {}

    def prompts(self, request: Request | None, texts: Sequence[str] = ()) -> dict[str, str]:
        """See `prompts_of`."""
        key = "" if request is None else request.model_dump_json()
        if key not in self._prompts:
            _make_room(self._prompts)
            self._prompts[key] = prompts_of(self.lm, request, ())
        return self._prompts[key] | prompts_of(self.lm, None, texts)

    def answers(self, asked: Sequence[str]) -> tuple[list[dict[str, Any]], Tensor]:
        """The text, the top tokens and log P (N, V) of the next token after each of *asked*."""
        known = {prompt: self._answers[prompt] for prompt in asked if prompt in self._answers}
        new = [prompt for prompt in dict.fromkeys(asked) if prompt not in known]
        if new:
            found, logs = _answers(self.lm, new, None)
            known |= dict(zip(new, zip(found, logs, strict=True), strict=True))
            _make_room(self._answers)
            self._answers |= known
        both = [known[prompt] for prompt in asked]
        return [answer for answer, _ in both], torch.stack([logs for _, logs in both])


def _make_room(known: dict[str, Any]) -> None:
    if len(known) >= MOST_KNOWN:
        known.clear()


def prompts_of(lm: Lm, request: Request | None, texts: Sequence[str]) -> dict[str, str]:
    """The prompts to look at, by kind: those of `lmedit edit` for *request*, and own *texts*.

    The model must be unedited. Raises `RequestError` for a blank text.
    """
    found: dict[str, str] = {}
    if request is not None:
        found |= {"prompt": request.text, **probes_of(lm, request).prompts}
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise RequestError("the prompt is blank; write a text")
        found[f"your text {number}"] = text
    return found


def look_at_both(
    base: Base, prompts: Mapping[str, str], updates: Sequence[Update]
) -> list[dict[str, Any]]:
    """The answers after each of *prompts* without and with *updates*; see `pieces.view`.

    `kl` is KL(base || edited) of the next token in nats. The weights stay as they are.
    """
    lm = base.lm
    asked = [ask_through_chat(lm, prompt) for prompt in prompts.values()]
    if not asked:
        return []
    before, was = base.answers(asked)
    with seen_with(lm, updates) as edits:
        after, now = _answers(lm, asked, edits)
    distances = kl(was, now).flatten().tolist()
    return [
        {"kind": kind, "prompt": prompt, "before": b, "after": a, "kl": max(0.0, distance)}
        for (kind, prompt), b, a, distance in zip(
            prompts.items(), before, after, distances, strict=True
        )
    ]


def _answers(
    lm: Lm, asked: Sequence[str], edits: UnmergedEdits | None
) -> tuple[list[dict[str, Any]], Tensor]:
    """The text and the top tokens after each of *asked*; log P of the next tokens (N, V)."""
    texts = greedy(lm, asked, WRITES, under=under_one(edits, len(asked)))
    logs = next_log_probabilities(lm, asked, under=under_one(edits, len(asked)))
    found = [
        {"writes": text, "top": top_of(lm, row.exp())}
        for text, row in zip(texts, logs, strict=True)
    ]
    return found, logs.double()
