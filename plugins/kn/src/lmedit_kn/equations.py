"""Knowledge neurons (Dai et al. 2022, arXiv 2104.08696), as plain functions of tensors.

a (L, D) are a prompt's activations at its last token, one row for each of L layers; a neuron is a
layer and one of D places. P is the probability of the answer's token there.
"""

from __future__ import annotations

import torch
from torch import Tensor


def path(rule: str, m: int) -> Tensor:
    """The m points t in [0, 1] at which the gradient along t * a is taken, in float64.

    `inclusive`: 0 to 1 with both ends (the released code); `right`: k / m for k = 1 ... m (the
    paper's equation 2); `midpoint`: (k - 1/2) / m, whose error falls with m squared.
    """
    k = torch.arange(m, dtype=torch.float64)
    if rule == "inclusive":
        return k / max(1, m - 1)
    return (k + (1.0 if rule == "right" else 0.5)) / m


def attribution(a: Tensor, mean_gradient: Tensor) -> Tensor:
    """a/m * sum_k dP/da at t_k a (equation 2), elementwise over a (..., D).

    *mean_gradient* is that of the m points. Over a layer's neurons the attributions sum to
    P(a) - P(0) as m grows (completeness).
    """
    return a * mean_gradient


def threshold_of(scores: Tensor, adaptive: float | None, fixed: float | None,
                 percentile: float | None) -> float:  # fmt: skip
    """The attribution that a neuron must exceed, from the one criterion that is not None.

    *adaptive* is a share of the largest score, *percentile* counts over all layers and neurons.
    """
    if adaptive is not None:
        return adaptive * float(scores.max())
    if fixed is not None:
        return fixed
    if percentile is None:
        raise ValueError("one of adaptive, fixed and percentile must be given")
    return float(torch.quantile(scores.double().flatten(), percentile / 100))


def coarse(scores: Tensor, threshold: float) -> Tensor:
    """Which neurons (L, D) stay after the coarse selection: those above the threshold."""
    return scores > threshold


def shared(chosen: Tensor, share: float) -> Tensor:
    """Which neurons stay after the fine selection: those of more than *share* of the n prompts.

    *chosen* (n, L, D) holds each prompt's coarse selection.
    """
    return chosen.sum(0) > share * len(chosen)


def exchange(old: Tensor, new: Tensor, lambda_old: float, lambda_new: float) -> Tensor:
    """What is added to a neuron's value (H,): -lambda_1 e_old + lambda_2 sum e_new (section 5.1).

    *old* (H,) and *new* (T, H) are embeddings: of the present answer, of the new one's tokens.
    """
    return lambda_new * new.sum(0) - lambda_old * old
