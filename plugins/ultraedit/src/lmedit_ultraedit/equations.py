"""The editor of UltraEdit (Gu et al. 2025) and MALMEN (Tan et al. 2024), as functions of tensors.

A matrix W (d_out, d_in) gives v = W h. A row z = [h; g] belongs to one token that predicts an
answer: h (d_in,) is the matrix' input, g (d_out,) the gradient of the loss at its output. T rows
of all facts give one change of W. Rows are normalised with moments that grow with every edit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-7
"""Added to a standard deviation."""
FLAT = 1e-10
"""Directions with less than this part of the largest deviation count as empty."""


class Moments(NamedTuple):
    """Number (), mean (d,) and sums of squared deviations (d,) of rows, in float64.

    `spread` is R (r, d_out) with R^T R = sum of (g - mean)(g - mean)^T over the gradients, or None
    if nobody needs it.
    """

    number: Tensor
    mean: Tensor
    squares: Tensor
    spread: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, without a missing spread."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}


def moments_of(h: Tensor, g: Tensor, *, spread: bool) -> Moments:
    """The moments of the rows [h; g], h (N, d_in) and g (N, d_out). One row has no deviation."""
    z = torch.cat([h, g], 1).double()
    mean = z.mean(0)
    off = z - mean
    R = shorten(off[:, h.shape[1] :]) if spread else None
    return Moments(z.new_tensor(len(z)), mean, off.square().sum(0), R)


def merge(one: Moments, other: Moments) -> Moments:
    """The moments of the rows of both (Chan et al. 1983); any grouping gives the same.

    The released code multiplies the *unbiased* variance of a batch by its size. So its deviations
    are too large after small batches, and NaN after a batch of one row.
    """
    number = one.number + other.number
    off = other.mean - one.mean
    weight = one.number * other.number / number
    mean = one.mean + off * other.number / number
    squares = one.squares + other.squares + weight * off.square()
    spread = None
    if one.spread is not None and other.spread is not None:
        between = weight.sqrt() * off[-one.spread.shape[1] :]
        spread = shorten(torch.cat([one.spread, other.spread, between[None]]))
    return Moments(number, mean, squares, spread)


def shorten(R: Tensor) -> Tensor:
    """A matrix with the same R^T R and at most as many rows as columns."""
    return torch.linalg.qr(R, mode="r")[1] if len(R) > R.shape[1] else R


def normalise(z: Tensor, moments: Moments) -> Tensor:
    """(z - mean) / (sigma + epsilon) for each coordinate of the rows z (N, d)."""
    sigma = (moments.squares / (moments.number - 1).clamp(min=1)).sqrt()
    return (z.to(sigma) - moments.mean) / (sigma + EPSILON)


def whiten(g: Tensor, moments: Moments) -> Tensor:
    """(g - mean) with the covariance of the gradients taken out, in its directions (StableEdit).

    g is (N, d_out). Directions without spread are empty; in them the result is zero.
    """
    assert moments.spread is not None
    _, values, V = torch.linalg.svd(moments.spread, full_matrices=False)
    sigma = values / (moments.number - 1).clamp(min=1).sqrt()
    scale = torch.where(values > FLAT * values.max(), 1 / (sigma + EPSILON), 0.0)
    off = g.to(V) - moments.mean[-g.shape[1] :]
    return (off @ V.T * scale) @ V


def block(y: Tensor, A: Tensor, B: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """y + scale * max(0, (y A) B + b) + shift for rows y (N, d); A (d, r), B (r, d), others (d,).

    `clamp` in place of a ReLU: its gradient at zero is one, and at the start everything is at zero.
    """
    return y + scale * ((y @ A) @ B + b).clamp(min=0) + shift


def asked_shifts(rate: Tensor, h_hat: Tensor, h: Tensor, g: Tensor) -> Tensor:
    """D (T, d_out): what each token's output should gain, -rate (h_hat . h) g.

    h_hat (T, d_in) is the normalised input; h (T, d_in) and g (T, d_out) come from the network. In
    UltraEdit h is h_hat, and g is the normalised gradient.
    """
    return -rate * (h_hat * h).sum(1, keepdim=True) * g


def solve_shifts(H: Tensor, D: Tensor, ridge: Tensor, *, dual: bool | None = None) -> Tensor:
    """Y with dW = Y^T H or dW = Y^T: the least squares of dW h_t = d_t with a ridge.

    dW^T = (H^T H + ridge I)^-1 H^T D for the inputs H (T, d_in), as they are, and D (T, d_out).
    *dual* solves for T unknowns, Y = (H H^T + ridge I)^-1 D (T, d_out); else Y = dW^T. By default
    the smaller one is solved.
    """
    dual = len(H) <= H.shape[1] if dual is None else dual
    G = H @ H.T if dual else H.T @ H
    A = G + ridge * torch.eye(len(G), dtype=G.dtype, device=G.device)
    return torch.cholesky_solve(D if dual else H.T @ D, torch.linalg.cholesky(A))


def shift_factors(H: Tensor, D: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
    """dW as factors: (d_out, T) and H, or dW itself and the identity if T > d_in."""
    Y = solve_shifts(H, D, ridge)
    dual = len(H) <= H.shape[1]
    return Y.T, H if dual else torch.eye(H.shape[1], dtype=H.dtype, device=H.device)
