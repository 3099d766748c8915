"""Fine-tuning of one matrix (Zhu et al. 2020, arXiv 2012.00363), as plain functions of tensors.

W (d_out, d_in) is the trained matrix, Delta its change, so training starts at Delta = 0.
Log-probabilities are in nats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def changed_output(out: Tensor, x: Tensor, Delta: Tensor, Delta_b: Tensor | None = None) -> Tensor:
    """(W + Delta) x + b + Delta_b, given *out* = W x + b; x is (..., d_in), out (..., d_out)."""
    out = out + (x.to(Delta.dtype) @ Delta.T).to(out.dtype)
    return out if Delta_b is None else out + Delta_b.squeeze(1).to(out.dtype)


def negative_log_likelihood(log_probabilities: Tensor) -> Tensor:
    """-1/T sum_t log P(o_t | p) over the target's T tokens, (T,) to a scalar in nats."""
    return -log_probabilities.mean()


def within(Delta: Tensor, epsilon: float) -> Tensor:
    """FT-L's constraint: every entry of Delta in [-epsilon, epsilon] (L-infinity norm)."""
    return Delta.clamp(-epsilon, epsilon)
