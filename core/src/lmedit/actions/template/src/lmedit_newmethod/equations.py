"""The formulas of newmethod, as plain functions of tensors, with the paper's letters.

W (H, D) is a block's MLP output matrix, k (D,) a key, v = W k (H,) its value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def least_change(r: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest change with (W + left right) k = W k + r: r (H, 1), and k^T / (k^T k) (1, D)."""
    return r[:, None], k[None] / (k @ k)


def step(gradient: Tensor, s: Tensor) -> Tensor:
    """r (H,): the step of length s down the gradient (H,) of the new answer's loss by v."""
    return -s * gradient / gradient.norm()
