"""The joint solution of MEMIT, EMMET and AlphaEdit, as plain functions of tensors.

W (H, D) is a block's MLP output matrix. K (D, n) are the keys of the n facts of a batch. The change
adds R (H, n), the residuals, at these keys. B (D, t) are the keys of earlier facts. C (D, D) is
E[k k^T] of ordinary text. All methods give ``dW = R X^T`` with

    X = half^T (kappa I + T T^T)^-1 T E = half^T T (kappa I + T^T T)^-1 E,   T = half [B K]

where ``half^T half`` is C^-1 (MEMIT, EMMET) or the projector onto the free directions (AlphaEdit),
and E are the last n columns of the identity. The first form solves for D unknowns, the second for
t + n. Both are exact.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Spread = Literal["linear", "sqrt"]


def combination(T: Tensor, n: int, kappa: float) -> Tensor:
    """T (kappa I + T^T T)^-1 E for T (D', t + n): the last *n* columns, (D', n), in float64.

    With *kappa* 0 the columns of T must be independent.
    """
    G = T.T @ T
    G.diagonal().add_(kappa)
    E = torch.eye(len(G), dtype=G.dtype, device=G.device)[:, -n:]
    return T @ torch.cholesky_solve(E, torch.linalg.cholesky(G))


def combine_columns(T: Tensor, L: Tensor) -> Tensor:
    """(L L^T)^-1 T for L L^T = kappa I + T T^T of all keys, and for any of the columns of T."""
    return torch.cholesky_solve(T, L)


def whiten(S: Tensor, L: Tensor) -> Tensor:
    """L^-1 S: the keys S (D, N) in the coordinates in which C = L L^T is the identity."""
    return torch.linalg.solve_triangular(L, S, upper=False)


def unwhiten(Y: Tensor, L: Tensor) -> Tensor:
    """L^-T Y, the transpose of `whiten`."""
    return torch.linalg.solve_triangular(L.T, Y, upper=True)


def project(S: Tensor, V: Tensor, *, complement: bool) -> Tensor:
    """P S with P = V V^T, or P = I - V V^T if V (D, d) spans the *complement*."""
    within = V @ (V.T @ S)
    return S - within if complement else within


def free_below(values: Tensor, threshold: float) -> int:
    """How many of the ascending eigenvalues of C lie below *threshold* (AlphaEdit, code)."""
    return int((values < threshold).sum())


def free_share(values: Tensor, share: float) -> int:
    """The largest number of smallest eigenvalues whose sum is at most *share* of tr C.

    It does not change if all keys are scaled; `free_below` does.
    """
    within = values.clamp(min=0).cumsum(0) <= share * values.clamp(min=0).sum()
    return int(within.sum())


def blend(C: Tensor, B: Tensor, weight: float) -> Tensor:
    """(B B^T / t + weight C) / (weight + 1): text and the t earlier keys B (D, t) (BetaEdit)."""
    return (B @ B.T / B.shape[1] + weight * C) / (weight + 1)


def part_of(residual: Tensor, left: int, spread: Spread) -> Tensor:
    """The part of the residual for this layer if *left* layers are left, this one included.

    linear: R / left (MEMIT). sqrt: R / sqrt(left) (PMET); it gives most to the lowest layer.
    """
    return residual / (left if spread == "linear" else math.sqrt(left))


def nearness(T: Tensor) -> Tensor:
    """|cos| of the angles between the columns of T (D', N), with zeros on the diagonal."""
    unit = T / T.norm(dim=0)
    return (unit.T @ unit).abs().fill_diagonal_(0)
