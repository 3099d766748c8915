"""A model's health on held-out text: perplexity, and how far an edit moves its predictions.

A text is cut into windows of at most `window` tokens; the next one begins with the last token of
the one before, so every token but a text's first is predicted exactly once, from at least one and
at most `window - 1` tokens. Sums are in float64 over rows, the same in any batch and order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from lmedit.errors import RequestError
from lmedit.metrics.locality import kl
from lmedit.metrics.passes import BATCH_TOKENS, by_length, log_probabilities, read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from lmedit.models import Lm

POSITIONS_AT_ONCE = 64
"""Positions of which float64 log-probabilities are held at a time."""
WINDOW = 512
"""Tokens in one window, where neither the user nor the model sets fewer."""
PROTOCOL: Mapping[str, str] = MappingProxyType({
    "perplexity": "exp of the mean negative log-likelihood per token, windows that share one token",
    "KL": "KL(base || edited) of the next-token distribution, nats, mean over held-out tokens",
})  # fmt: skip


@dataclass(frozen=True)
class Health:
    """Held-out text under the unedited and the edited model; `kl` in nats per token."""

    n_tokens: int
    perplexity_base: float
    perplexity_edited: float
    kl: float


def windows(lm: Lm, texts: Iterable[str], window: int = WINDOW) -> list[list[int]]:
    """The ids of *texts* (documents, or the lines of an open file) in windows; blank ones drop.

    A text of one token has nothing to predict and drops too.
    """
    width = min(window, lm.max_positions)
    if width < 2:
        raise RequestError(f"a window of {width} tokens predicts nothing; give at least 2")
    rows = []
    for text in texts:
        ids = lm.encode(text.rstrip("\r\n")) if text.strip() else []
        rows += [ids[start : start + width] for start in range(0, len(ids) - 1, width - 1)]
    if not rows:
        raise RequestError("the held-out text has no two tokens in a row; give a longer one")
    return rows


def perplexity(
    lm: Lm, texts: Iterable[str], window: int = WINDOW, batch_tokens: int = BATCH_TOKENS
) -> float:
    """exp(-(1/N) sum log P(x_t | x before in its window)), N the number of predicted tokens."""
    rows = windows(lm, texts, window)
    sums = read_rows(lm, rows, lambda i, logits: _loss(logits, rows[i]), batch_tokens)
    return math.exp(math.fsum(sums) / _predicted(rows))


def health(
    lm: Lm,
    texts: Iterable[str],
    edited: Callable[[], AbstractContextManager[Any]],
    window: int = WINDOW,
    batch_tokens: int = BATCH_TOKENS,
) -> Health:
    """Perplexity before and after, and mean KL(base || edited), on *texts*.

    ``edited()`` is a context in which *lm* is edited, such as
    ``lambda: editor.applied(update)``; outside it *lm* must be the base. It is entered once for
    every batch, between the base's and its own pass: two batches of logits are held at a time,
    never the whole text's (about 2 x batch_tokens x V numbers).
    """
    rows = windows(lm, texts, window)
    sums = []
    for members in by_length([len(row) for row in rows], batch_tokens):
        sums += _compared(lm, [rows[i] for i in members], edited, batch_tokens)
    n = _predicted(rows)
    base, after, moved = (math.fsum(column) / n for column in zip(*sums, strict=True))
    return Health(n, math.exp(base), math.exp(after), moved)


def _compared(
    lm: Lm,
    rows: Sequence[Sequence[int]],
    edited: Callable[[], AbstractContextManager[Any]],
    batch_tokens: int,
) -> list[tuple[float, float, float]]:
    """For each row: the summed loss of the base, of the edited model, and the summed KL."""
    before = read_rows(lm, rows, lambda _, logits: logits, batch_tokens)

    def read(i: int, logits: Tensor) -> tuple[float, float, float]:
        return _loss(before[i], rows[i]), _loss(logits, rows[i]), _moved(before[i], logits)

    with edited():
        return read_rows(lm, rows, read, batch_tokens)


def _loss(logits: Tensor, row: Sequence[int]) -> float:
    """The summed negative log-likelihood of the tokens of *row* after its first."""
    ids = torch.tensor(row[1:], device=logits.device)[:, None]
    parts = zip(*(torch.split(t, POSITIONS_AT_ONCE) for t in (logits[:-1], ids)), strict=True)
    return -math.fsum(float(log_probabilities(z).gather(1, i).sum()) for z, i in parts)


def _moved(base: Tensor, edited: Tensor) -> float:
    """The summed KL(base || edited) of all positions but the last, from logits."""
    both = (torch.split(z[:-1], POSITIONS_AT_ONCE) for z in (base, edited))
    parts = zip(*both, strict=True)
    return math.fsum(float(kl(log_probabilities(p), log_probabilities(q)).sum()) for p, q in parts)


def _predicted(rows: Sequence[Sequence[int]]) -> int:
    return sum(len(row) - 1 for row in rows)
