"""The most probable next tokens after a prompt, as values for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmedit.metrics.locality import next_log_probabilities
from lmedit.replay.unmerged import under_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.replay.unmerged import UnmergedEdits

TOP = 5


def top_tokens(
    lm: Lm, prompt: str, count: int = TOP, edits: UnmergedEdits | None = None
) -> list[dict[str, Any]]:
    """The *count* most probable next tokens after *prompt*, with their probabilities.

    With *edits*, they are those under its one edit.
    """
    if edits is None:
        return top_of(lm, lm.next_probabilities(prompt), count)
    logs = next_log_probabilities(lm, [prompt], under=under_one(edits, 1))
    return top_of(lm, logs[0].exp(), count)


def tops_of(
    lm: Lm, prompts: Sequence[str], edits: UnmergedEdits | None = None
) -> list[list[dict[str, Any]]]:
    """As `top_tokens` for each of *prompts*, in shared passes."""
    logs = next_log_probabilities(lm, prompts, under=under_one(edits, len(prompts)))
    return [top_of(lm, row.exp()) for row in logs]


def top_of(lm: Lm, probabilities: Tensor, count: int = TOP) -> list[dict[str, Any]]:
    """The *count* tokens with the largest *probabilities* (V,)."""
    best = probabilities.topk(count)
    return [
        {"token": lm.decode([int(index)]), "p": float(p)}
        for p, index in zip(best.values, best.indices, strict=True)
    ]
