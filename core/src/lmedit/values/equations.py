"""The loss of a value (Meng et al. 2022, arXiv 2202.05262, equation 4), as functions of tensors.

v_0 (..., H) is a vector of the model, delta (..., H) is added to it. A leading dimension counts
places. Log-probabilities are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def target_loss(log_probabilities: Tensor) -> Tensor:
    """-1/N sum_j log P(o* | x_j + p) (equation 4, first term).

    *log_probabilities* (N, T): of the T target tokens after each of the N contexts; a
    multi-token target counts with its mean over tokens.
    """
    return -log_probabilities.mean()


def essence_drift(log_p: Tensor, log_p_0: Tensor, *, per_entry: bool = False) -> Tensor:
    """KL(p_delta || p_0) of the next token after "{subject} is a" (equation 4, second term).

    Both are (V,) in nats. *per_entry* divides by V, as torch's `reduction="mean"` does, on
    whose scale the paper's factor 1e2 is stated.
    """
    kl = F.kl_div(log_p_0, log_p, reduction="sum", log_target=True)
    return kl / len(log_p) if per_entry else kl


def decay(delta: Tensor, v_0: Tensor) -> Tensor:
    """|delta| / |v_0|^2, the released code's penalty on the step; its gradient at 0 is 0.

    Summed over the places.
    """
    return (delta.norm(dim=-1) / v_0.norm(dim=-1) ** 2).sum()


def clamp(delta: Tensor, v_0: Tensor, factor: float) -> Tensor:
    """*delta* scaled back to norm factor |v_0| at each place where it is longer (released code)."""
    longest = factor * v_0.norm(dim=-1, keepdim=True)
    length = delta.norm(dim=-1, keepdim=True)
    return torch.where(length > longest, delta * (longest / length), delta)
