"""ROME's formulas (Meng et al. 2022, arXiv 2202.05262), as plain functions of tensors.

Letters as in the paper: W (H, D) is a block's MLP output matrix, k (D,) a key, v (H,) a value,
v = W k + b. C (D, D) is E[k k^T], kept as its Cholesky factor L with C = L L^T. u (D,) is the
direction C^-1 k*, Lambda (H,) what the edit adds per unit of u. Log-probabilities are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def direction(L: Tensor | None, k: Tensor) -> Tensor:
    """u = C^-1 k / |C^-1 k| in float64 (equation 2); without statistics C = I."""
    k = k.double()
    u = k if L is None else torch.cholesky_solve(k[:, None], L.double()).squeeze(1)  # (D,)
    return u / u.norm()


def insertion(residual: Tensor, key: Tensor, u: Tensor) -> Tensor:
    """Lambda = (v* - W k*) / (k* . u) (equation 2): what makes W' k* = v* exact.

    *residual* (H,) is v* - W k*, *key* (D,) is k*. Then the edit is W' = W + Lambda u^T.
    """
    return residual.double() / (key.double() @ u)  # (H,)


def target_loss(log_probabilities: Tensor) -> Tensor:
    """-1/N sum_j log P(o* | x_j + p) (equation 4, first term).

    *log_probabilities* (N, T): of the T target tokens after each of the N contexts; a
    multi-token target counts with its mean over tokens.
    """
    return -log_probabilities.mean()


def drift(log_p: Tensor, log_p_0: Tensor, *, per_entry: bool = False) -> Tensor:
    """KL(p_delta || p_0) of the next token after "{subject} is a" (equation 4, second term).

    Both are (V,) in nats. *per_entry* divides by V, as torch's `reduction="mean"` does, on
    whose scale the paper's factor 1e2 is stated.
    """
    kl = F.kl_div(log_p_0, log_p, reduction="sum", log_target=True)
    return kl / len(log_p) if per_entry else kl


def decay(delta: Tensor, v_0: Tensor) -> Tensor:
    """|delta| / |v_0|^2, the released code's penalty on the step; its gradient at 0 is 0."""
    return delta.norm() / v_0.norm() ** 2


def clamped(delta: Tensor, v_0: Tensor, factor: float) -> Tensor:
    """*delta* scaled back to norm factor |v_0| where it is longer (released code)."""
    longest = factor * v_0.norm()
    length = delta.norm()
    return delta * (longest / length) if length > longest else delta
