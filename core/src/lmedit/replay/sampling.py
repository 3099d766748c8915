"""Sample texts from a model: many rows of one length, one token at a time, with a KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from lmedit.replay.ways import ways_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lmedit.models import Lm


@torch.no_grad()
def sample_rows(
    lm: Lm,
    rows: Sequence[Sequence[int]],
    new_tokens: int,
    random: torch.Generator,
    top_k: int | None = None,
    tell: Callable[[int], object] = lambda _: None,
) -> list[list[int]]:
    """Continue *rows* of token ids, all of one length, by *new_tokens* tokens each.

    Each token is drawn from the *top_k* most probable ones (None: from all) at temperature 1.
    End-of-text does not stop a row. *random* decides every draw: the same generator state, rows
    and model give the same tokens. Another number of rows gives other tokens. *tell* gets the
    number of tokens of each row so far.
    """
    from lmedit.replay.kv_cache import give_room  # it imports transformers

    found = [list(row) for row in rows]
    new = torch.tensor(found, device=lm.device)
    cache, cached = None, ways_of(lm).cached
    for number in range(new_tokens):
        if cached:
            out = lm.model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
            if cache is None:
                give_room(out.past_key_values, len(rows[0]) + new_tokens)
            cache, logits = out.past_key_values, out.logits
        else:
            logits = lm.logits(lm.batch(found))
        drawn = _draw(logits[:, -1].float().cpu(), random, top_k)
        for row, token in zip(found, drawn.tolist(), strict=True):
            row.append(token)
        new = drawn[:, None].to(lm.device)
        tell(number + 1)
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
        return _draw_any(logits.softmax(-1), random)
    best = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    chosen = torch.multinomial(best.values.softmax(-1), 1, generator=random)
    return best.indices.gather(1, chosen)[:, 0]


GROUP = 256
"""How many tokens are summed before one of them is drawn."""


def _draw_any(probabilities: Tensor, random: torch.Generator) -> Tensor:
    """One token id (B,) by *probabilities* (B, V): draw a group of tokens, then one of the group.

    A running sum over all V tokens takes several times as long.
    """
    rows, tokens = probabilities.shape
    missing = -tokens % GROUP
    whole = functional.pad(probabilities, (0, missing)) if missing else probabilities
    groups = whole.view(rows, -1, GROUP)
    group = _draw_by_weight(groups.sum(-1), random)
    within = _draw_by_weight(groups[torch.arange(rows), group], random)
    return (group * GROUP + within).clamp(max=tokens - 1)


def _draw_by_weight(weights: Tensor, random: torch.Generator) -> Tensor:
    """One index (B,) for each row of *weights* (B, n); each row uses one random number."""
    below = weights.cumsum(-1, dtype=torch.float64)
    at = below[:, -1:] * torch.rand(len(below), 1, generator=random, dtype=torch.float64)
    return torch.searchsorted(below, at, right=True)[:, 0].clamp(max=weights.shape[-1] - 1)
