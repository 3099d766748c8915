"""What the base and the edited model answer to the same prompts, side by side.

What was asked once is remembered: the base never changes, and a digest names each edit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from lmedit.actions.damage import sample_held_out
from lmedit.actions.edit import Looking
from lmedit.actions.probes import ask_through_chat
from lmedit.actions.top import top_of
from lmedit.errors import RequestError
from lmedit.metrics.generate import greedy
from lmedit.metrics.locality import kl, next_log_probabilities
from lmedit.replay.unmerged import under_one
from lmedit_play.sessions import seen_with

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from lmedit import Lm, Request, Update
    from lmedit.metrics.health import HeldOut
    from lmedit.replay.unmerged import UnmergedEdits

WRITES = 16
"""How many tokens a model writes after each prompt, as `lmedit try` does."""


MOST_KNOWN = 512
"""How many prompts, and how many facts and sets of edits, are remembered."""


@dataclass
class Seen:
    """The answers and the health of the model with certain edits on."""

    answers: dict[str, tuple[dict[str, Any], float]] = field(default_factory=dict)
    """By prompt: the answer, and KL(base || edited) of the next token in nats."""
    health: Mapping[str, Any] | None = None
    """`perplexity` and `KL` on the held-out text."""


class Base:
    """What the unedited model answers; every tab asks it the same, so it is computed once."""

    def __init__(self, lm: Lm) -> None:
        self.lm = lm
        self._looking: dict[str, Looking] = {}
        self._answers: dict[str, tuple[dict[str, Any], Tensor]] = {}
        self._seen: dict[tuple[str, ...], Seen] = {}

    @cached_property
    def held(self) -> tuple[str, HeldOut]:
        """A few lines of held-out text with the model's predictions, and their name."""
        return sample_held_out(self.lm)

    def looking(self, request: Request) -> Looking:
        """What `lmedit edit` asks for *request*, and what the model answers."""
        key = request.model_dump_json()
        if key not in self._looking:
            _make_room(self._looking)
            self._looking[key] = Looking(self.lm, request, held=self.held)
        return self._looking[key]

    def prompts(self, request: Request | None, texts: Sequence[str] = ()) -> dict[str, str]:
        """The prompts to look at, by kind: those of `lmedit edit` for *request*, and own *texts*.

        Raises `RequestError` for a blank text.
        """
        found = {} if request is None else dict(self.looking(request).prompts)
        for number, text in enumerate(texts, start=1):
            if not text.strip():
                raise RequestError("the prompt is blank; write a text")
            found[f"your text {number}"] = text
        return found

    def seen(self, edits: Mapping[str, Update]) -> Seen:
        """The known answers with *edits* on, by digest; without edits, nothing is kept."""
        key = tuple(edits)
        if not key:
            return Seen()
        if key not in self._seen:
            _make_room(self._seen)
            self._seen[key] = Seen()
        return self._seen[key]

    def health(self, edits: Mapping[str, Update]) -> Mapping[str, Any]:
        """`perplexity`, and `KL` from the base in nats per token, on the held-out text."""
        _, held = self.held
        seen = self.seen(edits)
        if seen.health is None:
            with seen_with(self.lm, [*edits.values()]) as under:
                seen.health = held.measure(self.lm, under_one(under, 1)) if edits else held.base
        return seen.health

    def ask_base(self, prompts: Iterable[str]) -> None:
        """Ask the unedited model *prompts*, so that its answers are known."""
        self.answers([ask_through_chat(self.lm, prompt) for prompt in prompts])

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


def _make_room(known: dict[Any, Any]) -> None:
    if len(known) >= MOST_KNOWN:
        known.clear()


def look_at_both(
    base: Base, prompts: Mapping[str, str], edits: Mapping[str, Update]
) -> list[dict[str, Any]]:
    """The answers after each of *prompts* without and with *edits*; see `pieces.view`.

    *edits* are changes by their digests. `kl` is KL(base || edited) of the next token in nats. The
    weights stay as they are.
    """
    lm = base.lm
    asked = [ask_through_chat(lm, prompt) for prompt in prompts.values()]
    if not asked:
        return []
    before, _ = base.answers(asked)
    seen = base.seen(edits).answers
    known = {prompt: seen[prompt] for prompt in asked if prompt in seen}
    if new := [prompt for prompt in dict.fromkeys(asked) if prompt not in known]:
        with seen_with(lm, [*edits.values()]) as under:
            after, now = _answers(lm, new, under)
        distances = kl(base.answers(new)[1], now).flatten().tolist()
        known |= dict(zip(new, zip(after, distances, strict=True), strict=True))
        _make_room(seen)
        seen |= known
    looks = []
    for (kind, prompt), text, was in zip(prompts.items(), asked, before, strict=True):
        is_now, distance = known[text]
        look = {"kind": kind, "prompt": prompt, "before": was, "after": is_now}
        looks.append({**look, "kl": max(0.0, distance)})
    return looks


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
