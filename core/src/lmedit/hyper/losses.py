"""The two losses of a hypernetwork's training, and what is shown beside them; all in nats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def edit_loss(log_p: Tensor, tokens: Tensor, edit_of: Tensor, edits: int) -> Tensor:
    """-1/T sum_t log p(o_t) of each edit, (edits,).

    *log_p* (n, V) stands before the target tokens *tokens* (n,), *edit_of* (n,) says whose they
    are.
    """
    picked = log_p.gather(1, tokens[:, None]).squeeze(1)
    return -_mean_by(picked, edit_of, edits)


def locality_loss(log_p: Tensor, log_p_0: Tensor, edit_of: Tensor, edits: int) -> Tensor:
    """KL(before || after), the mean over each edit's tokens, (edits,); both are (n, V)."""
    kl = (log_p_0.exp() * (log_p_0 - log_p)).sum(-1)
    return _mean_by(kl, edit_of, edits)


def _mean_by(values: Tensor, edit_of: Tensor, edits: int) -> Tensor:
    total = values.new_zeros(edits).index_add(0, edit_of, values)
    count = values.new_zeros(edits).index_add(0, edit_of, values.new_ones(len(values)))
    return total / count.clamp(min=1)


@dataclass(frozen=True)
class Scores:
    """Means over edits: losses in nats, shares of tokens and edits from 0 to 1."""

    edit: float
    apart: float
    success: float
    """Share of edits whose target's tokens are all top-1."""
    kept: float
    """Share of other texts' tokens whose top-1 did not change."""

    def total(self, weight_edit: float, weight_apart: float) -> float:
        """What the training makes small."""
        return weight_edit * self.edit + weight_apart * self.apart


def all_right(log_p: Tensor, tokens: Tensor, edit_of: Tensor, edits: int) -> Tensor:
    """Whether all of an edit's target tokens are top-1, (edits,) of 0 and 1."""
    right = (log_p.argmax(-1) == tokens).to(log_p.dtype)
    return (_mean_by(right, edit_of, edits) == 1).to(log_p.dtype)


def unchanged(log_p: Tensor, log_p_0: Tensor, edit_of: Tensor, edits: int) -> Tensor:
    """Share of an edit's other tokens whose top-1 is the same before and after, (edits,)."""
    same = (log_p.argmax(-1) == log_p_0.argmax(-1)).to(log_p.dtype)
    return _mean_by(same, edit_of, edits)
