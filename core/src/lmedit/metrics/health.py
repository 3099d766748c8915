"""A model's health on held-out text: perplexity, and how far an edit moves its predictions.

A text is split into windows of at most `window` tokens. A window begins with the last token of the
window before. So every token but the first is predicted exactly once, from 1 to `window - 1`
tokens. Sums are in float64 over rows; batch size and order do not change them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lmedit.errors import RequestError
from lmedit.metrics.locality import kl
from lmedit.replay.batches import BATCH_TOKENS, log_probabilities, read_rows
from lmedit.storage.cache import key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from lmedit.models import Lm
    from lmedit.replay.unmerged import RowEdits

POSITIONS_AT_ONCE = 64
"""How many positions have float64 log-probabilities at the same time."""
WINDOW = 512
"""Tokens in a window, unless the user or the model sets fewer."""


def windows(lm: Lm, texts: Iterable[str], window: int = WINDOW) -> list[list[int]]:
    """The ids of *texts* (documents, or the lines of an open file) in windows.

    Blank texts and texts of one token are dropped; there is nothing to predict.
    """
    width = min(window, lm.max_positions)
    if width < 2:
        raise RequestError(f"a window of {width} tokens predicts nothing; give at least 2")
    rows = []
    for text in texts:
        ids = lm.encode(text.rstrip("\r\n")) if text.strip() else []
        rows += [ids[start : start + width] for start in range(0, len(ids) - 1, width - 1)]
    if not rows:
        raise RequestError("the held-out text has no line of two tokens; give a longer text")
    return rows


class HeldOut:
    """Held-out text and the base model's predictions for it, to compare edited models with.

    It keeps the base's logits of all tokens, in the model's dtype on the CPU: N x V numbers.
    """

    def __init__(
        self,
        lm: Lm,
        texts: Iterable[str],
        window: int = WINDOW,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        """Run *texts* through *lm*, which must be the base model now."""
        self.rows = windows(lm, texts, window)
        self.digest = key_of(rows=self.rows)
        self.batch_tokens = batch_tokens
        self.n_tokens = sum(len(row) - 1 for row in self.rows)
        self._base = read_rows(lm, self.rows, lambda _, logits: logits.cpu(), batch_tokens)
        self.base = self._mean(self._sums(i, logits) for i, logits in enumerate(self._base))

    def measure(self, lm: Lm, under: RowEdits | None = None) -> dict[str, float | None]:
        """`perplexity` of *lm* as it is now, and mean `KL`(base || *lm*) in nats per token.

        *under* is the edit to score with.
        """
        each = under and under.repeat([len(self.rows)])
        return self._mean(read_rows(lm, self.rows, self._sums, self.batch_tokens, under=each))

    def _sums(self, i: int, logits: Tensor) -> tuple[float, float]:
        """The summed loss and KL of row *i*, whose tokens have *logits*."""
        base = self._base[i].to(logits.device)
        return _loss(logits, self.rows[i]), _total_kl(base, logits)

    def _mean(self, sums: Iterable[tuple[float, float]]) -> dict[str, float | None]:
        loss, moved = (math.fsum(column) / self.n_tokens for column in zip(*sums, strict=True))
        return {"perplexity": math.exp(min(loss, LARGEST)), "KL": moved}


LARGEST = 700.0
"""A mean loss (nats) above this counts as this; its exponential is still a float."""


def _loss(logits: Tensor, row: Sequence[int]) -> float:
    """The summed negative log-likelihood of all tokens of *row* but the first."""
    ids = torch.tensor(row[1:], device=logits.device)[:, None]
    parts = zip(*(torch.split(t, POSITIONS_AT_ONCE) for t in (logits[:-1], ids)), strict=True)
    return -math.fsum(float(log_probabilities(z).gather(1, i).sum()) for z, i in parts)


def _total_kl(base: Tensor, edited: Tensor) -> float:
    """The summed KL(base || edited) of all positions but the last, from logits."""
    both = (torch.split(z[:-1], POSITIONS_AT_ONCE) for z in (base, edited))
    parts = zip(*both, strict=True)
    return math.fsum(float(kl(log_probabilities(p), log_probabilities(q)).sum()) for p, q in parts)
