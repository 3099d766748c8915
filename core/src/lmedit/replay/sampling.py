"""Sample texts from a model: many rows of one length, one token at a time, with a KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmedit.replay.ways import ways_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit.models import Lm


@torch.no_grad()
def sample_rows(
    lm: Lm,
    rows: Sequence[Sequence[int]],
    new_tokens: int,
    random: torch.Generator,
    top_k: int | None = None,
) -> list[list[int]]:
    """Continue *rows* of token ids, all of one length, by *new_tokens* tokens each.

    Each token is drawn from the *top_k* most probable ones (None: from all) at temperature 1.
    End-of-text does not stop a row. *random* decides every draw: the same generator state, rows
    and model give the same tokens. Another number of rows gives other tokens.
    """
    found = [list(row) for row in rows]
    new = torch.tensor(found, device=lm.device)
    cache, cached = None, ways_of(lm).cached
    for _ in range(new_tokens):
        if cached:
            out = lm.model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, logits = out.past_key_values, out.logits
        else:
            logits = lm.logits(lm.batch(found))
        drawn = _draw(logits[:, -1].float().cpu(), random, top_k)
        for row, token in zip(found, drawn.tolist(), strict=True):
            row.append(token)
        new = drawn[:, None].to(lm.device)
    return found


def start_token(lm: Lm) -> int:
    """The token that a text begins with: BOS, or EOS if there is none, or that of "The"."""
    for token in (lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return int(lm.encode("The")[0])


def _draw(logits: Tensor, random: torch.Generator, top_k: int | None) -> Tensor:
    """One token id for each row of *logits* (B, V), as (B,)."""
    if top_k is None:
        below = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
        # torch.multinomial draws a number for each of the V tokens; this draws one for each row.
        at = below[:, -1:] * torch.rand(len(below), 1, generator=random, dtype=torch.float64)
        return torch.searchsorted(below, at, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    best = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    chosen = torch.multinomial(best.values.softmax(-1), 1, generator=random)
    return best.indices.gather(1, chosen)[:, 0]
