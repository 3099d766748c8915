"""ROME's formulas (Meng et al. 2022, arXiv 2202.05262), as plain functions of tensors.

Letters as in the paper: W (H, D) is a block's MLP output matrix, k (D,) a key, v (H,) a value, v =
W k + b. C (D, D) is E[k k^T], kept as its Cholesky factor L with C = L L^T. The vector u (D,) is
the direction C^-1 k*, Lambda (H,) the vector that the edit adds per unit of u.
"""

from __future__ import annotations

import torch
from torch import Tensor


def direction(L: Tensor | None, k: Tensor) -> Tensor:
    """u = C^-1 k / |C^-1 k| in float64 (equation 2); without statistics C = I."""
    k = k.double()
    u = k if L is None else torch.cholesky_solve(k[:, None], L.double()).squeeze(1)  # (D,)
    return u / u.norm()


def insertion(residual: Tensor, key: Tensor, u: Tensor) -> Tensor:
    """Lambda = (v* - W k*) / (k* . u) (equation 2); with it, W' k* = v* is exact.

    *residual* (H,) is v* - W k*, *key* (D,) is k*. Then the edit is W' = W + Lambda u^T.
    """
    return residual.double() / (key.double() @ u)  # (H,)
