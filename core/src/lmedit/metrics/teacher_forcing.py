"""The one scorer: the probability of a target after a prompt, in any batch size and order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lmedit.replay.batches import BATCH_TOKENS, read_rows, target_places, target_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.replay.unmerged import RowEdits


@dataclass(frozen=True)
class TargetScore:
    """A target after a prompt: mean log-probability per token (nats); are all tokens top-1?"""

    log_probability: float
    correct: bool


def score_targets(
    lm: Lm,
    pairs: Sequence[tuple[str, str]],
    batch_tokens: int = BATCH_TOKENS,
    under: RowEdits | None = None,
) -> list[TargetScore]:
    """Teacher-forced scores of (prompt, target) *pairs*, in their order, each *under* its edit.

    -n(o|p) = (1/T) sum_t log P(o_t | p, o_<t), softmax in float32
    (docs/explanation/comparing.md).
    """
    rows = target_rows(lm, pairs)

    def read(i: int, logits: Tensor) -> TargetScore:
        ids = torch.tensor(rows[i][1], device=logits.device)
        steps = logits.float().log_softmax(-1)
        picked = steps.gather(1, ids[:, None]).mean().item()
        return TargetScore(picked, bool((steps.argmax(-1) == ids).all()))

    ids = [prompt + target[:-1] for prompt, target in rows]
    return read_rows(lm, ids, read, batch_tokens, target_places(rows), under)


def first_token_ranks(
    lm: Lm, pairs: Sequence[tuple[str, str]], under: RowEdits | None = None
) -> list[int]:
    """For each (prompt, target), the rank of the target's first token among all next tokens.

    1 is the most probable token. Equal tokens share the best rank.
    """
    rows = target_rows(lm, pairs)

    def read(i: int, logits: Tensor) -> int:
        last = logits[-1]
        return 1 + int((last > last[rows[i][1][0]]).sum())

    ids = [prompt for prompt, _ in rows]
    return read_rows(lm, ids, read, places=[[len(row) - 1] for row in ids], under=under)
