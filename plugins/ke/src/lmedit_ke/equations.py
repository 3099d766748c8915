"""KE's update (De Cao et al. 2021; Mitchell's form for GPT), as plain functions of tensors.

W (d_out, d_in) is an edited matrix, dL/dW = sum_n delta_n x_n^T its gradient. The network gives for
each matrix two pairs of vectors and a number s.
"""

from __future__ import annotations

import torch
from torch import Tensor


def split(output: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """a_c (B, c), a_r (B, r), b_c, b_r and s (B, 1) out of (B, 2 (r + c) + 1), in that order.

    A = softmax(a_r) a_c^T and B = softmax(b_r) b_c^T: the softmax is over the rows alone.
    """
    sizes = [columns, rows, columns, rows, 1]
    a_c, a_r, b_c, b_r, s = torch.split(output, sizes, dim=-1)
    return a_c, a_r.softmax(-1), b_c, b_r.softmax(-1), s


def update(
    x: Tensor,
    delta: Tensor,
    a: tuple[Tensor, Tensor],
    b: tuple[Tensor, Tensor],
    s: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Delta = scale * sigma(s) (dL/dW * A + B), * elementwise, as exact factors.

    x (B, N, d_in) and delta (B, N, d_out) are the gradient's; *a* and *b* are pairs of vectors
    (B, d_out), (B, d_in) with A = a_out a_in^T. A product with a rank-one matrix scales the
    factors: sum_n (delta_n * a_out) (x_n * a_in)^T. Returns (B, d_out, N + 1) and (B, N + 1, d_in).
    """
    gate = scale * torch.sigmoid(s)[:, :, None]  # (B, 1, 1)
    left = torch.cat([delta * a[0][:, None], b[0][:, None]], dim=1)
    right = torch.cat([x * a[1][:, None], b[1][:, None]], dim=1)
    return gate * left.mT, right
