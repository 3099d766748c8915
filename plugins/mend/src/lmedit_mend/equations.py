"""MEND's transform of gradient factors (Mitchell et al. 2022), as plain functions of tensors.

A row z (d,) is an input and an output gradient of one token, d = d_in + d_out. Mitchell's network
g has two layers of low rank, each beside a skip connection (section 3.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-7


def normalise(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """(x - mean) / (std + 1e-7) for each coordinate (section 3.2); x is (..., d)."""
    return (x - mean) / (variance.sqrt() + EPSILON)


def merge(count: Tensor, mean: Tensor, squares: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared deviations, with the rows x (N, d) added.

    In float64 and in one step for all rows; row by row (Welford) gives the same.
    """
    new = count + len(x)
    off = x.mean(0) - mean
    squares = squares + ((x - x.mean(0)) ** 2).sum(0) + off**2 * count * len(x) / new
    return new, mean + off * len(x) / new, squares


def layer(
    z: Tensor, U: Tensor, V: Tensor, b: Tensor, scale: Tensor, shift: Tensor, *, rectified: bool
) -> Tensor:
    """z + act(s_m * (U V z + b) + o_m) for rows z (N, d); U (d, r), V (r, d), the others (d,).

    *scale* and *shift* belong to one matrix of those that share U, V and b. `clamp` in place of a
    ReLU: its gradient at zero is one, and at the start everything is at zero.
    """
    h = scale * (z @ V.T @ U.T + b) + shift
    return z + (h.clamp(min=0) if rectified else h)


def step(alpha: Tensor, sign: float, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """The change sign * alpha * sum_n delta_n x_n^T as factors: (..., d_out, N), (..., N, d_in)."""
    return sign * alpha * delta.mT, x
