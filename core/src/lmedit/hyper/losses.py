"""The two losses of a hypernetwork's training in nats, and the scores of its validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def edit_loss(log_p: Tensor, tokens: Tensor, edit_of: Tensor, edits: int) -> Tensor:
    """-1/T sum_t log p(o_t) of each edit, (edits,).

    *log_p* (n, V) are the log-probabilities at the positions that predict the target tokens
    *tokens* (n,). *edit_of* (n,) holds the edit of each token.
    """
    picked = log_p.gather(1, tokens[:, None]).squeeze(1)
    return -_mean_by(picked, edit_of, edits)


def locality_loss(log_p: Tensor, log_p_0: Tensor, edit_of: Tensor, edits: int) -> Tensor:
    """KL(before || after) in nats, the mean over each edit's tokens, (edits,); inputs (n, V)."""
    kl = (log_p_0.exp() * (log_p_0 - log_p)).sum(-1)
    return _mean_by(kl, edit_of, edits)


def _mean_by(values: Tensor, edit_of: Tensor, edits: int) -> Tensor:
    total = values.new_zeros(edits).index_add(0, edit_of, values)
    count = values.new_zeros(edits).index_add(0, edit_of, values.new_ones(len(values)))
    return total / count.clamp(min=1)


@dataclass(frozen=True)
class Scores:
    """Means over edits: losses in nats, shares between 0 and 1."""

    edit: float
    apart: float
    success: float
    """Share of edits whose target tokens are all the most probable ones."""
    kept: float
    """Share of tokens of other texts whose most probable prediction did not change."""

    def total(self, weight_edit: float, weight_apart: float) -> float:
        """The training loss."""
        return weight_edit * self.edit + weight_apart * self.apart


def all_right(log_p: Tensor, tokens: Tensor, edit_of: Tensor, edits: int) -> Tensor:
    """1 for an edit whose target tokens are all the most probable ones, else 0; (edits,)."""
    right = (log_p.argmax(-1) == tokens).to(log_p.dtype)
    return (_mean_by(right, edit_of, edits) == 1).to(log_p.dtype)


def share_unchanged(log_p: Tensor, log_p_0: Tensor, edit_of: Tensor, edits: int) -> Tensor:
    """Share of an edit's other tokens whose most probable prediction is as before, (edits,)."""
    same = (log_p.argmax(-1) == log_p_0.argmax(-1)).to(log_p.dtype)
    return _mean_by(same, edit_of, edits)
