"""Facts as rows of ids, and their losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lmedit_ft.equations import negative_log_likelihood

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lmedit import Lm, Request


@dataclass(frozen=True)
class Item:
    """A fact as a row of ids, the positions to read, the tokens wanted there, and its name."""

    ids: list[int]
    at: list[int]
    tokens: list[int]
    name: str


def item_of(lm: Lm, request: Request, *, end: bool = False, forced: bool = True) -> Item:
    """Prompt and target of *request*; with *end* the end-of-text token belongs to the target.

    Each token of the target is read behind those before it; if not *forced*, all are read at the
    prompt's last token.
    """
    prompt, target = lm.with_target(request.text, request.target_new)
    stop = lm.tokenizer.eos_token_id
    target = [*target, stop] if end and stop is not None else target
    name = f"{request.text}|{request.target_new}"
    last = len(prompt) - 1
    if not forced:
        return Item(prompt, [last] * len(target), target, name)
    return Item(prompt + target[:-1], [last + i for i in range(len(target))], target, name)


def places_of(items: Sequence[Item], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The row, the position and the token, (n,) each, of the n places that *items* read."""
    places = [
        (row, at, token)
        for row, item in enumerate(items)
        for at, token in zip(item.at, item.tokens, strict=True)
    ]
    rows, at, tokens = torch.tensor(places, device=device).T
    return rows, at, tokens


def losses_of(items: Sequence[Item], logits: Tensor, tokens: Tensor) -> Tensor:
    """The loss in nats of each of *items*, from the logits (n, V) at their places.

    It is a mean over the item's tokens.
    """
    log_p = logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    parts = torch.split(log_p, [len(item.tokens) for item in items])
    return torch.stack([negative_log_likelihood(part) for part in parts])
