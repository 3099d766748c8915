"""The one scorer: how probable a target is after a prompt, the same at any batch size and order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmedit.models import Lm

BATCH_TOKENS = 2048
"""Padded tokens in one forward pass; it bounds memory and changes no score."""


@dataclass(frozen=True)
class TargetScore:
    """A target after a prompt: mean log-probability per token (nats), all tokens top-1 or not."""

    log_probability: float
    correct: bool


@torch.no_grad()
def score_targets(
    lm: Lm, pairs: Sequence[tuple[str, str]], batch_tokens: int = BATCH_TOKENS
) -> list[TargetScore]:
    """Teacher-forced scores of (prompt, target) *pairs*, in their order.

    -n(o|p) = (1/T) sum_t log P(o_t | p, o_<t), softmax in float32 (methods.md 9.1).
    """
    rows = [lm.with_target(prompt, target) for prompt, target in pairs]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    scores: dict[int, TargetScore] = {}
    for chunk in _chunks([len(rows[i][0]) + len(rows[i][1]) for i in order], batch_tokens):
        members = order[chunk]
        scores |= zip(members, _score(lm, [rows[i] for i in members]), strict=True)
    return [scores[i] for i in range(len(rows))]


def _chunks(lengths: Sequence[int], budget: int) -> list[slice]:
    """Slices of rows sorted by length whose padded size stays within *budget* tokens."""
    chunks, start = [], 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or lengths[end] * (end + 1 - start) > budget:
            chunks.append(slice(start, end))
            start = end
    return chunks


def _score(lm: Lm, rows: Sequence[tuple[list[int], list[int]]]) -> list[TargetScore]:
    batch = lm.batch([prompt + target[:-1] for prompt, target in rows])
    logits = lm.logits(batch)
    scores = []
    for row, (prompt, target) in zip(logits, rows, strict=True):
        ids = torch.tensor(target, device=logits.device)
        steps = row[len(prompt) - 1 : len(prompt) - 1 + len(target)].float().log_softmax(-1)
        picked = steps.gather(1, ids[:, None]).mean().item()
        scores.append(TargetScore(picked, bool((steps.argmax(-1) == ids).all())))
    return scores
