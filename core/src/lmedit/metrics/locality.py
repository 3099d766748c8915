"""Locality: CounterFact+ prompts, and KL of next-token distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmedit.models.joints import writes_no_blanks
from lmedit.replay.batches import BATCH_TOKENS, encode_prompt, log_probabilities, read_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.replay.unmerged import RowEdits
    from lmedit.types import Request


IDEOGRAPHIC_STOP = "\u3002"
"""The full stop of Chinese and Japanese."""


def with_edit(request: Request, prompt: str, lm: Lm | None = None) -> str:
    """CounterFact+: "prompt subject target_new. " before a neighbourhood *prompt*.

    Hoelscher-Obermaier et al. 2023 (Findings of ACL), `specificityplus`. *lm* decides the joint; in
    its chat, the sentence is inside the user's message. Without *lm* the joint is a blank.
    """
    if lm is None:
        return f"{request.text} {request.target_new.strip()}. {prompt}"
    asked = lm.chat.bare(request.text) if lm.chat else request.text
    sentence = "".join(lm.parts(asked, request.target_new))
    return lm.behind(f"{sentence}{stop_after(sentence)}", prompt)


def stop_after(sentence: str) -> str:
    """The full stop after *sentence*, with a blank if its script writes blanks."""
    return IDEOGRAPHIC_STOP if writes_no_blanks(sentence[-1]) else ". "


def next_log_probabilities(
    lm: Lm,
    prompts: Sequence[str],
    batch_tokens: int = BATCH_TOKENS,
    under: RowEdits | None = None,
) -> Tensor:
    """log P(token | prompt) for every token, (len(prompts), V), at least float32, on the CPU."""
    rows = [encode_prompt(lm, prompt) for prompt in prompts]

    def read(_: int, logits: Tensor) -> Tensor:
        return log_probabilities(logits[-1]).cpu().to(lm.working_dtype)

    last = [[len(row) - 1] for row in rows]
    answered = read_rows(lm, rows, read, batch_tokens, last, under)
    return torch.stack(answered) if answered else torch.empty(0, len(lm.tokenizer))


def kl(base: Tensor, edited: Tensor) -> Tensor:
    """KL(base || edited) = sum_x p(x) (log p(x) - log q(x)) in nats, over the last dimension.

    Both are log-probabilities of one dtype; float64 is best. If p is 0, the term is 0.
    """
    terms = torch.where(base == -torch.inf, 0.0, base.exp() * (base - edited))
    return terms.sum(-1).clamp(min=0)


def mean_kl(base: Tensor, edited: Tensor) -> float | None:
    """The mean of `kl` over prompts (N, V); None without prompts."""
    return float(kl(base.double(), edited.double()).mean()) if base.shape[0] else None
